// The small parts, by tinybench: what one call of the engine costs on a warm page cache. What has no door from JavaScript
// (append and recovery of a log) is measured by `cargo bench -p secondsite-hrl`, which runs behind.
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { spawnSync } from 'node:child_process'
import { applyLogs, digestDisk, Engine } from '@secondsite/engine'
import { decodeFrame, encodeFrame, SeededRandom } from '@secondsite/engine/testing'
import { Bench } from 'tinybench'
import { machine } from './measure.mjs'
import { save } from './report.mjs'

const isQuick = process.argv.includes('--quick')
const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-bench-'))
const random = new SeededRandom(2)
const sizeBytes = 256 * 2 ** 20
const small = random.bytes(4096)
const large = random.bytes(1 << 20)

function image(name) {
  const path = join(folder, name)
  const file = openSync(path, 'w+')
  for (let at = 0; at < sizeBytes; at += large.length) writeSync(file, large, 0, large.length, at)
  ftruncateSync(file, sizeBytes)
  return { path, file }
}

const place = (bytes) => bytes.length * random.below(sizeBytes / bytes.length)

const plain = image('plain.raw')
const tracked = image('tracked.raw')
const engine = await Engine.open({ stateDirectory: join(folder, 'state') })
const web01 = await engine.enable({
  name: 'web01',
  disks: [tracked.path],
  replica: { directory: join(folder, 'replica') },
})
const [disk] = web01.disks

/** A sealed log of 64 MiB in entries of 64 KiB: what a cycle leaves that cannot be shipped. */
async function makeLog() {
  const { path, file } = image('logged.raw')
  closeSync(file)
  let isCut = false
  const maker = await Engine.open({
    stateDirectory: join(folder, 'log-state'),
    wrapTransport: (inner) => ({
      connect: (signal) => (isCut ? Promise.reject(new Error('cut')) : inner.connect(signal)),
    }),
  })
  const replica = { directory: join(folder, 'log-replica') }
  const policy = { resyncThresholdPercent: 100, coalesce: { enabled: false } }
  const machine = await maker.enable({ name: 'log', disks: [path], replica, policy })
  await machine.startInitialReplication()
  const block = random.bytes(64 * 1024)
  for (let n = 0; n < 1024; n += 1) await machine.disks[0].write(place(block), block)
  isCut = true
  await machine.replicate().catch(() => {})
  const [sealed] = machine.disks[0].unreleasedLogs()
  await maker.close()
  return sealed.path
}

const log = await makeLog()
const noise = random.bytes(4 << 20)
const text = new Uint8Array(Buffer.alloc(4 << 20, 'a line of a configuration file = value\n'))
const encoded = {
  noise: encodeFrame(noise, 0, 'adaptive').bytes,
  text: encodeFrame(text, 0, 'adaptive').bytes,
}

const bench = new Bench({ time: isQuick ? 20 : 1000, warmupTime: isQuick ? 5 : 200 })
bench
  .add('plain pwrite 4 KiB', () => void writeSync(plain.file, small, 0, small.length, place(small)))
  .add('secondsite tracked write 4 KiB', () => disk.write(place(small), small))
  .add('plain pwrite 1 MiB', () => void writeSync(plain.file, large, 0, large.length, place(large)))
  .add('secondsite tracked write 1 MiB', () => disk.write(place(large), large))
  .add('secondsite read 4 KiB', () => disk.read(place(small), small.length))
  .add('secondsite digest 256 MiB, xxh3-128', () => digestDisk(plain.path, { digest: 'xxh3-128' }))
  .add('secondsite digest 256 MiB, blake3', () => digestDisk(plain.path, { digest: 'blake3' }))
  .add('secondsite apply 64 MiB in 1024 entries, verified', () => applyLogs([log], plain.path))
  .add('secondsite encode 4 MiB of noise, adaptive (raw)', () => void encodeFrame(noise, 0, 'adaptive'))
  .add('secondsite encode 4 MiB of text, adaptive (zstd)', () => void encodeFrame(text, 0, 'adaptive'))
  .add('secondsite encode 4 MiB of text, lz4', () => void encodeFrame(text, 0, 'lz4'))
  .add('secondsite decode 4 MiB, raw', () => void decodeFrame(encoded.noise))
  .add('secondsite decode 4 MiB, zstd', () => void decodeFrame(encoded.text))
await bench.run()
console.table(
  bench.table(({ name, result }) => ({ name, 'median µs': (result.latency.p50 * 1000).toFixed(1) })),
)

const results = bench.tasks.map(({ name, result }) => {
  const { p50, min, max, samplesCount } = result.latency
  return {
    name,
    median: p50 * 1000,
    min: min * 1000,
    max: max * 1000,
    count: samplesCount ?? result.latency.samples?.length ?? 0,
  }
})
const method =
  'One call at a time from JavaScript, files in memory (tmpfs). A tracked write crosses to a thread of the core and back; the plain one is a synchronous call on the same thread.'
await engine.close()
closeSync(plain.file)
closeSync(tracked.file)
rmSync(folder, { recursive: true })
if (!isQuick) spawnSync('cargo', ['bench', '--quiet', '-p', 'secondsite-hrl'], { stdio: 'inherit' })
if (!isQuick)
  save('parts', { machine: machine(), groups: [{ title: 'Small parts', method, unit: 'µs', results }] })
