// Recovery points: applying with undo against writing the same bytes (P9), and the time from nothing to a disk that a test
// failover is served from (P13); commit, reversal and failback by what was changed. `--quick` only shows that it runs; its numbers say nothing and are not saved.
import {
  closeSync,
  existsSync,
  ftruncateSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SeededRandom } from '@secondsite/engine/testing'
import * as native from '@secondsite/native'
import { interleave, machine, ratios, summary } from './measure.mjs'
import { save } from './report.mjs'
import { goingHome } from './way-home.mjs'

const isQuick = process.argv.includes('--quick')
const rounds = isQuick ? 1 : 3
const MIB = 2 ** 20
const logBytes = (isQuick ? 16 : 512) * MIB
const pointCount = isQuick ? 4 : 24
const rangesPerPoint = isQuick ? 50 : 4000
const diskId = '00112233-4455-6677-8899-aabbccddeeff'
const folder = mkdtempSync(join(process.env.SECONDSITE_BENCH_FOLDER ?? tmpdir(), 'secondsite-recovery-'))
const random = new SeededRandom(1)
const block = random.bytes(4 * MIB)
let fileCount = 0

const newPath = (suffix) => join(folder, `${fileCount++}.${suffix}`)

/** A file with bytes in its first part, durable; the rest is a hole. */
function makeImage(dataBytes, sizeBytes = dataBytes) {
  const path = newPath('raw')
  writeData(path, dataBytes)
  const file = openSync(path, 'r+')
  ftruncateSync(file, sizeBytes)
  closeSync(file)
  return path
}

function writeData(path, dataBytes) {
  const file = openSync(path, 'w')
  for (let at = 0; at < dataBytes; at += block.length)
    writeSync(file, block, 0, Math.min(block.length, dataBytes - at), at)
  fsyncSync(file)
  closeSync(file)
}

/** A sealed log that writes `ranges` (flat pairs). */
function makeLog(source, ranges) {
  const path = newPath('hrl')
  native.buildTrackedBatch(source, ranges, path, Number.MAX_SAFE_INTEGER)
  return path
}

/** Ranges of `pieceBytes` in order, `count` of the `ofCount` that there are. */
function someRanges(pieceBytes, count, ofCount) {
  const ranges = []
  for (let index = 0; index < ofCount && ranges.length < 2 * count; index += 1) {
    if (random.below(ofCount - index) < count - ranges.length / 2) ranges.push(index * pieceBytes, pieceBytes)
  }
  return ranges
}

function trackedSource(path) {
  const trackingDirectory = newPath('track')
  mkdirSync(trackingDirectory)
  return native.openTracked({ path, trackingDirectory, diskId, flushMode: 'disk' }).handle
}

/** Bytes that this process read from and wrote to block devices. */
function ioBytes() {
  const text = readFileSync('/proc/self/io', 'utf8')
  const field = (name) => Number(new RegExp(`^${name}: (\\d+)`, 'm').exec(text)[1])
  return field('read_bytes') + field('write_bytes')
}

async function applying(title, pieceBytes) {
  const source = trackedSource(makeImage(2 * logBytes))
  const image = makeImage(2 * logBytes)
  const log = makeLog(source, someRanges(pieceBytes, logBytes / pieceBytes, (2 * logBytes) / pieceBytes))
  let point = 0
  let undoDirectory = ''
  const amplification = []
  const apply = (hasUndo) => {
    const before = ioBytes()
    const startedMs = performance.now()
    if (hasUndo) native.saveUndo(image, [log], { undoDirectory, point, diskId })
    native.applyLogs(image, [log], true)
    const seconds = (performance.now() - startedMs) / 1000
    if (hasUndo) amplification.push((ioBytes() - before) / logBytes)
    return logBytes / MIB / seconds
  }
  const prepare = () => {
    point += 1
    undoDirectory = newPath('undo')
  }
  const results = await interleave(
    [
      {
        name: 'sequential write and sync',
        run: () => {
          const path = newPath('raw')
          const startedMs = performance.now()
          writeData(path, logBytes)
          const speed = logBytes / MIB / ((performance.now() - startedMs) / 1000)
          rmSync(path)
          return speed
        },
      },
      { name: 'secondsite, without undo', run: () => apply(false) },
      { name: 'secondsite, with undo', prepare, run: () => apply(true) },
    ],
    rounds,
  )
  native.closeTracked(source)
  const { median } = summary(amplification)
  const method =
    `A log of ${logBytes / MIB} MiB in pieces of ${pieceBytes / 1024} KiB is applied to an image of ${(2 * logBytes) / MIB} MiB full of data, all on one disk, page cache warm; ` +
    `every byte is saved first. The process read and wrote ${median.toFixed(2)} bytes of the disk for each byte of the log (P9: at most 3, and at least 0.5 of the sequential write).`
  return { title, method, unit: 'MiB/s', results: ratios(results, 'sequential write and sync') }
}

/** A replica with undo of every point, most of it a hole. */
function makeReplica(sizeBytes) {
  const image = makeImage(64 * MIB, sizeBytes)
  const undoDirectory = newPath('undo')
  const units = Math.floor(sizeBytes / 4096)
  for (let point = 1; point <= pointCount; point += 1) {
    const ranges = new Set(Array.from({ length: rangesPerPoint }, () => random.below(units)))
    const pairs = [...ranges].sort((a, b) => a - b).flatMap((unit) => [unit * 4096, 4096])
    native.saveUndoRanges(image, pairs, { undoDirectory, point, diskId })
  }
  return { image, undoDirectory }
}

/** Opens a point, an overlay over it, and an export of that: seconds. */
async function testFailover({ image, undoDirectory }, point) {
  const directory = newPath('overlay')
  const startedMs = performance.now()
  const view = native.openView({ image, undoDirectory, point })
  const overlay = native.createOverlay({ directory, view: view.handle, image })
  const exported = { name: 'test', handle: overlay.handle, isReadOnly: false, description: '' }
  const listen = `unix:${join(folder, 'nbd.sock')}`
  const server = native.startNbd({ listen, exports: [exported], spinUs: 0, connectionCountMax: 16 })
  await native.readDevice(overlay.handle, 0, new Uint8Array(4096))
  const seconds = (performance.now() - startedMs) / 1000
  native.stopNbd(server.handle)
  native.closeDevice(overlay.handle)
  native.closeDevice(view.handle)
  rmSync(directory, { recursive: true })
  return seconds * 1000
}

async function failingOver() {
  const results = []
  for (const gib of isQuick ? [1] : [1, 64, 1024]) {
    const replica = makeReplica(gib * 1024 * MIB)
    const samples = []
    for (let round = 0; round < rounds; round += 1) {
      for (let point = 1; point <= pointCount; point += 1) samples.push(await testFailover(replica, point))
    }
    results.push({ name: `secondsite, ${gib} GiB`, ...summary(samples) })
  }
  const method =
    `Each of ${pointCount} points, with ${rangesPerPoint} ranges of 4 KiB saved for each: view, overlay and NBD server made, and the first block read, in one process. ` +
    'P13: below 200 ms for any point, whatever the size.'
  return { title: 'P13 a test failover', method, unit: 'ms', results }
}

try {
  const groups = [
    await applying('P9 apply in pieces of 1 MiB', MIB),
    await applying('P9 apply in pieces of 64 KiB', 64 * 1024),
    await failingOver(),
    await goingHome({ folder, isQuick, rounds }),
  ]
  if (isQuick) process.stdout.write(`${JSON.stringify(groups, null, 2)}\n`)
  else save('recovery', { machine: machine(), groups })
} finally {
  if (existsSync(folder)) rmSync(folder, { recursive: true })
}
