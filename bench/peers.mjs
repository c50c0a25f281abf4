// Whole programs against each other, interleaved in one run: resync, copy, cycles, memory, reopening after a kill.
// `--quick` runs all of it on small images, to see that it runs; its numbers say nothing and are not saved.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Engine, syncDisks } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { interleave, isInstalled, machine, must, ratios, summary } from './measure.mjs'
import { save } from './report.mjs'

const isQuick = process.argv.includes('--quick')
const rounds = isQuick ? 1 : 5
const MIB = 2 ** 20
const GIB = 2 ** 30
const root = fileURLToPath(new URL('..', import.meta.url))
const cli = join(root, 'packages/cli/dist/main.js')
const limit = join(root, 'target/release/secondsite-bench-limit')
const disks = mkdtempSync(join(tmpdir(), 'secondsite-bench-'))
const memory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-bench-'))
const random = new SeededRandom(1)

function image(path, sizeBytes) {
  const file = openSync(path, 'w+')
  ftruncateSync(file, sizeBytes)
  return file
}

/** An image of which every second 64 MiB are data, half of it compressible. */
function fill(path, sizeBytes, dataBytes) {
  const file = image(path, sizeBytes)
  const noise = random.bytes(MIB)
  const text = Buffer.alloc(MIB, 'a line of a configuration file = value\n')
  for (let written = 0; written < dataBytes; written += MIB) {
    const block = Math.floor(written / (64 * MIB))
    writeSync(
      file,
      written % (2 * MIB) === 0 ? noise : text,
      0,
      MIB,
      (block * 128 * MIB + (written % (64 * MIB))) % sizeBytes,
    )
  }
  closeSync(file)
}

/** Random 4 KiB writes in the data of an image. */
function touch(path, sizeBytes, count) {
  const file = openSync(path, 'r+')
  for (let index = 0; index < count; index += 1) {
    const pair = random.below(Math.floor(sizeBytes / (128 * MIB)) || 1)
    writeSync(file, random.bytes(4096), 0, 4096, pair * 128 * MIB + 4096 * random.below((64 * MIB) / 4096))
  }
  closeSync(file)
}

async function resync() {
  const sizeBytes = isQuick ? 128 * MIB : 8 * GIB
  const [source, replica] = [join(disks, 'source.raw'), join(disks, 'replica.raw')]
  fill(source, sizeBytes, sizeBytes / 2)
  must('cp', ['--sparse=always', source, replica])
  must('cargo', ['build', '--release', '--quiet', '-p', 'secondsite-bench-limit'], { cwd: root })
  const touched = () => touch(source, sizeBytes, isQuick ? 20 : 2000)
  const contestants = [
    { name: 'limit program', prepare: touched, run: () => void must(limit, [source, replica]) },
    { name: 'secondsite sync', prepare: touched, run: async () => keep(await syncDisks(source, replica)) },
  ]
  if (isInstalled('rsync')) {
    const args = ['--ignore-times', '--inplace', '--no-whole-file', source, replica]
    contestants.push({ name: 'rsync --inplace', prepare: touched, run: () => void must('rsync', args) })
  }
  const results = ratios(await interleave(contestants, rounds), 'limit program')
  const method = `Two ${sizeBytes / GIB} GiB raw images, half of them holes; before each run 2000 random 4 KiB writes to the source; page cache warm; library call in this process, peers with their start.`
  return { title: 'Resync of a nearly equal pair (P1)', method, unit: 's', results, lastReport: last }
}

let last
function keep(report) {
  last = report
}

async function copy() {
  const sizeBytes = isQuick ? 128 * MIB : 4 * GIB
  const source = join(disks, 'copy.raw')
  const target = join(disks, 'copied.raw')
  fill(source, sizeBytes, sizeBytes / 2)
  const gone = () => rmSync(target, { force: true })
  const contestants = [
    { name: 'secondsite sync', prepare: gone, run: async () => keep(await syncDisks(source, target)) },
  ]
  const peer = (name, tool, args) =>
    isInstalled(tool) && contestants.push({ name, prepare: gone, run: () => void must(tool, args) })
  peer('nbdcopy --flush', 'nbdcopy', ['--flush', source, target])
  peer('cp --sparse=always', 'cp', ['--sparse=always', source, target])
  peer('qemu-img convert', 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, target])
  const base = isInstalled('nbdcopy') ? 'nbdcopy --flush' : 'secondsite sync'
  const results = ratios(await interleave(contestants, rounds), base)
  const method = `One ${sizeBytes / GIB} GiB raw image, half of it holes, to a file that does not exist; page cache warm. secondsite and nbdcopy make the copy durable before they end, cp and qemu-img do not.`
  return { title: 'Initial copy (P3)', method, unit: 's', results }
}

async function cycles() {
  const sizeBytes = isQuick ? 64 * MIB : 2 * GIB
  const cycleBytes = sizeBytes / 4
  const disk = join(memory, 'cycle.raw')
  closeSync(image(disk, sizeBytes))
  const engine = await Engine.open({ stateDirectory: join(memory, 'state') })
  try {
    const policy = { resyncThresholdPercent: 100, replicationFrequencySeconds: 86_400 }
    const web01 = await engine.enable({
      name: 'web01',
      disks: [disk],
      replica: { directory: join(memory, 'replica') },
      policy,
    })
    await web01.startInitialReplication()
    const block = random.bytes(64 * 1024)
    const rates = { write: [], cycle: [] }
    for (let round = 0; round < rounds; round += 1) {
      const writing = performance.now()
      await writeBlocks(web01.disks[0], block, cycleBytes, sizeBytes)
      rates.write.push(cycleBytes / 1e6 / ((performance.now() - writing) / 1000))
      const cycling = performance.now()
      const { rawBytes } = await web01.replicate()
      rates.cycle.push(rawBytes / 1e6 / ((performance.now() - cycling) / 1000))
    }
    const results = [
      { name: 'secondsite tracked write', ...summary(rates.write) },
      { name: 'secondsite cycle', ...summary(rates.cycle) },
    ]
    const method = `64 KiB writes at random places of a ${sizeBytes / MIB} MiB disk, four in flight, ${cycleBytes / MIB} MiB a cycle, random bytes (incompressible); all files in memory (tmpfs), as this machine's disk writes 0.25 GB/s. A cycle is cut, coalesce, encode, transport in memory, spool, verify, apply.`
    return { title: 'Engine cycles', method, unit: 'MB/s', results }
  } finally {
    await engine.close()
    rmSync(join(memory, 'replica'), { recursive: true })
    rmSync(join(memory, 'state'), { recursive: true })
  }
}

async function writeBlocks(disk, block, totalBytes, sizeBytes) {
  let left = totalBytes / block.length
  const worker = async () => {
    while (left > 0) {
      left -= 1
      await disk.write(block.length * random.below(sizeBytes / block.length), block)
    }
  }
  await Promise.all([worker(), worker(), worker(), worker()])
}

/** What grows with the data and what does not: a resync by allocated bytes, a cycle by bytes written, cycles by those before. */
async function growth() {
  const unit = isQuick ? 16 * MIB : 512 * MIB
  const results = []
  for (const factor of [1, 2, 4]) {
    const [source, replica] = [join(memory, 'growth.raw'), join(memory, 'growth-replica.raw')]
    fill(source, factor * 2 * unit, factor * unit)
    must('cp', ['--sparse=always', source, replica])
    const name = `secondsite sync, ${(factor * unit) / MIB} MiB allocated`
    results.push({ name, ...summary(await times(rounds, () => syncDisks(source, replica))) })
    for (const path of [source, replica]) rmSync(path)
  }
  results.push(...(await cycleGrowth(unit)))
  const method =
    'In memory. Disks of twice their allocated bytes; cycles of a 1 GiB disk with 64 KiB writes; the last line comes after 200 cycles were kept and forgotten.'
  return { title: 'How cost grows (P15)', method, unit: 's', results: ratios(results, results[0].name) }
}

async function times(count, work) {
  const values = []
  for (let round = 0; round < count; round += 1) {
    const startedMs = performance.now()
    await work()
    values.push((performance.now() - startedMs) / 1000)
  }
  return values
}

async function cycleGrowth(unit) {
  const sizeBytes = 2 * unit
  const disk = join(memory, 'cycles.raw')
  closeSync(image(disk, sizeBytes))
  const engine = await Engine.open({ stateDirectory: join(memory, 'growth-state') })
  const policy = {
    resyncThresholdPercent: 100,
    replicationFrequencySeconds: 86_400,
    coalesce: { enabled: false },
  }
  const replica = { directory: join(memory, 'growth-replica') }
  const web01 = await engine.enable({ name: 'web01', disks: [disk], replica, policy })
  await web01.startInitialReplication()
  const block = random.bytes(64 * 1024)
  const cycle = async (bytes) => {
    const values = []
    for (let round = 0; round < rounds; round += 1) {
      await writeBlocks(web01.disks[0], block, bytes, sizeBytes)
      values.push(...(await times(1, () => web01.replicate())))
    }
    return summary(values)
  }
  const results = []
  for (const factor of [1, 2, 4]) {
    const bytes = (factor * unit) / 8
    results.push({ name: `secondsite cycle, ${bytes / MIB} MiB written`, ...(await cycle(bytes)) })
  }
  for (let n = 0; n < (isQuick ? 5 : 200); n += 1) await web01.replicate()
  results.push({
    name: `secondsite cycle, ${unit / 8 / MIB} MiB written, 200 cycles later`,
    ...(await cycle(unit / 8)),
  })
  await engine.close()
  return results
}

/** Peak memory of a process that copies, cycles and verifies a sparse disk. */
async function memoryUse() {
  const sizes = isQuick ? [GIB] : [GIB, 64 * GIB, 4096 * GIB]
  const results = []
  for (const sizeBytes of sizes) {
    const folder = mkdtempSync(join(memory, 'sparse-'))
    closeSync(image(join(folder, 'd.raw'), sizeBytes))
    const program = `
      import { Engine } from '@secondsite/engine'
      const engine = await Engine.open({ stateDirectory: process.argv[2] + '/state' })
      const web01 = await engine.enable({ name: 'm', disks: [process.argv[2] + '/d.raw'], replica: { directory: process.argv[2] + '/replica' } })
      for (let at = 0; at < 512; at += 1) await web01.disks[0].write(at * 1048576, Buffer.alloc(65536, at))
      await web01.startInitialReplication()
      await web01.replicate()
      await engine.close()
      process.stdout.write(String(process.resourceUsage().maxRSS / 1024))`
    const answer = must(process.execPath, ['--input-type=module', '-e', program, 'x', folder], { cwd: root })
    results.push({ name: `secondsite, ${sizeBytes / GIB} GiB disk`, ...summary([Number(answer)]) })
    rmSync(folder, { recursive: true })
  }
  const method =
    'Peak resident memory of a process that protects a sparse disk with 32 MiB of data: initial replication and a cycle.'
  return { title: 'Memory (P12)', method, unit: 'MiB', results }
}

/** Time to open an engine after its process was killed with a long open log. */
async function reopen() {
  const logBytes = isQuick ? 64 * MIB : 4 * GIB - 256 * MIB
  const folder = mkdtempSync(join(memory, 'reopen-'))
  closeSync(image(join(folder, 'd.raw'), 8 * GIB))
  const program = `
    import { Engine } from '@secondsite/engine'
    const engine = await Engine.open({ stateDirectory: process.argv[2] + '/state' })
    const web01 = await engine.enable({ name: 'm', disks: [process.argv[2] + '/d.raw'], replica: { directory: process.argv[2] + '/replica' } })
    const block = Buffer.alloc(65536, 7)
    for (let at = 0; at < ${logBytes}; at += 4 * block.length) {
      await Promise.all([0, 1, 2, 3].map((part) => web01.disks[0].write((at + part * block.length) % ${8 * GIB}, block)))
    }
    process.stdout.write('written')
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program, 'x', folder], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(child.stdout, 'data')
  child.kill('SIGKILL')
  await once(child, 'exit')
  const startedMs = performance.now()
  const engine = await Engine.open({ stateDirectory: join(folder, 'state') })
  const seconds = (performance.now() - startedMs) / 1000
  const { kind } = engine.machine('m').disks[0].recovery
  await engine.close()
  rmSync(folder, { recursive: true })
  if (kind !== 'process-death') throw new Error(`the disk was found ${kind}`)
  const method = `Engine.open after SIGKILL with an open log of ${(logBytes / GIB).toFixed(2)} GiB in 64 KiB entries (tmpfs).`
  return {
    title: 'Reopening after a kill (P14)',
    method,
    unit: 's',
    results: [{ name: 'secondsite open', ...summary([seconds]) }],
  }
}

if (!existsSync(cli)) throw new Error('run npm run setup first')
try {
  const groups = []
  for (const scenario of [resync, copy, cycles, growth, memoryUse, reopen]) {
    const group = await scenario()
    groups.push(group)
    process.stdout.write(`${group.title}\n`)
    for (const result of group.results) {
      process.stdout.write(
        `  ${result.name}: ${result.median.toPrecision(3)} ${group.unit}${result.ratio ? `, ratio ${result.ratio.toFixed(2)}` : ''}\n`,
      )
    }
  }
  if (!isQuick) save('peers', { machine: machine(), groups })
} finally {
  for (const folder of [disks, memory]) rmSync(folder, { recursive: true, force: true })
}
