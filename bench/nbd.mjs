// The tracked export against servers that track nothing, with fio over a Unix socket, interleaved in one run.
// `--quick` only shows that it runs; its numbers say nothing and are not saved. `--only WORD` measures the groups whose
// title has that word, and leaves the other tables as they are.
import { fork, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Engine } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { interleave, isInstalled, machine, ratios, summary } from './measure.mjs'
import { save } from './report.mjs'

const isQuick = process.argv.includes('--quick')
const only = process.argv.includes('--only') ? process.argv.at(-1) : ''
const rounds = isQuick ? 1 : 3
const seconds = isQuick ? 1 : 3
const MIB = 2 ** 20
const sizeBytes = (isQuick ? 64 : 1024) * MIB
const root = fileURLToPath(new URL('.', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'secondsite-nbd-'))
const memory = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-nbd-'))
const random = new SeededRandom(1)
const stops = []

/** A disk full of bytes, written in 4 KiB pieces at random places, so that its pages are small ones. */
function makeDisk(path) {
  const file = openSync(path, 'w+')
  // The rest is a hole: logs of a run may grow past the part that is written to, and must not reach the threshold.
  // Nothing long is written first: its large folios would stay, and each 4 KiB write walks all buffers of one.
  ftruncateSync(file, 32 * sizeBytes)
  closeSync(file)
  const args = [
    '--name=warm',
    `--filename=${path}`,
    '--ioengine=psync',
    '--rw=randwrite',
    '--bs=4k',
    '--invalidate=0',
  ]
  spawnSync('fio', [...args, `--size=${sizeBytes}`, '--norandommap=0'], { stdio: 'ignore' })
  return path
}

/** Takes a disk out of the page cache: what is written back and what was not, alike for every server. */
function makeCold(path) {
  const args = [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0']
  if (spawnSync('dd', args, { stdio: 'ignore' }).status !== 0) throw new Error(`dd left ${path} in the cache`)
}

/** Seconds of both modes that a process has taken, from ticks of 10 ms. */
function cpuSeconds(pid) {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** A server with a disk of its own. */
async function foreign(name, command, argsOf) {
  const home = join(folder, name.replaceAll(' ', '-'))
  mkdirSync(home)
  const [disk, socket] = [makeDisk(join(home, 'disk.raw')), join(home, 'nbd.sock')]
  const child = spawn(command, argsOf(disk, socket), { stdio: 'ignore' })
  stops.push(async () => {
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  while (!existsSync(socket)) await new Promise((done) => setTimeout(done, 20))
  return { name, disk, pid: child.pid, uri: `nbd+unix:///?socket=${socket}`, settle: async () => {} }
}

async function secondsite(name, policy = {}, spin = 0) {
  const home = join(folder, name.replaceAll(' ', '-'))
  mkdirSync(home)
  const disk = makeDisk(join(home, 'disk.raw'))
  const child = fork(join(root, 'nbd-server.mjs'), [
    home,
    disk,
    join(home, 'nbd.sock'),
    JSON.stringify(policy),
    String(spin),
  ])
  const [{ ready }] = await once(child, 'message')
  let key = 0
  const ask = async (message) => {
    key += 1
    const mine = key
    child.send({ ...message, key: mine })
    for (;;) {
      const [answer] = await once(child, 'message')
      if (answer.key !== mine) continue
      if (answer.error) throw new Error(`${name}: ${answer.error}`)
      return answer
    }
  }
  stops.push(async () => {
    const ended = once(child, 'exit')
    child.disconnect()
    await ended
  })
  return { name, disk, pid: child.pid, uri: ready, ask, settle: () => ask({ cycle: true }) }
}

/** One run of fio; its own numbers. */
async function fio(server, args) {
  const common = [
    '--name=b',
    '--ioengine=nbd',
    `--uri=${server.uri}`,
    `--size=${sizeBytes}`,
    '--time_based',
    '--thread',
  ]
  const rest = [
    `--runtime=${seconds}`,
    '--group_reporting',
    '--output-format=json',
    '--percentile_list=50:99:99.9',
    ...args,
  ]
  const before = cpuSeconds(server.pid)
  const child = spawn('fio', [...common, ...rest], { cwd: memory })
  let text = ''
  child.stdout.on('data', (piece) => (text += piece))
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`fio ended with ${code}: ${text.slice(0, 500)}`)
  const [job] = JSON.parse(text.slice(text.indexOf('{'))).jobs
  const side = args.some((arg) => /^--rw=(rand)?read$/.test(arg)) ? job.read : job.write
  const percentiles = side.clat_ns.percentile ?? {}
  return {
    iops: side.iops,
    megabytes: side.bw_bytes / 1e6,
    cpuUs: ((cpuSeconds(server.pid) - before) * 1e6) / side.total_ios,
    p99Us: percentiles['99.000000'] / 1000,
    p999Us: percentiles['99.900000'] / 1000,
  }
}

const groups = []

/** The groups measured now in the place of the older ones of their titles. */
function withOthers(measured) {
  const older = JSON.parse(readFileSync(new URL('results/nbd.json', import.meta.url), 'utf8')).groups
  const isOlder = ({ title }) => older.some((group) => group.title === title)
  const kept = older.map((group) => measured.find(({ title }) => title === group.title) ?? group)
  return [...kept, ...measured.filter((group) => !isOlder(group))]
}

async function group(title, method, unit, servers, args, pick = (run) => run.iops, isCold = false) {
  if (!title.includes(only)) return
  const [tails, costs] = [0, 0].map(() => new Map(servers.map(({ name }) => [name, []])))
  const contestants = servers.map((server) => ({
    name: server.name,
    prepare: async () => {
      await server.settle()
      if (isCold) makeCold(server.disk)
    },
    run: async () => {
      const run = await fio(server, args)
      tails.get(server.name).push(run.p999Us)
      costs.get(server.name).push(run.cpuUs)
      return pick(run)
    },
  }))
  const results = ratios(await interleave(contestants, rounds), servers[0].name)
  for (const result of results) {
    result.p999Us = summary(tails.get(result.name)).median
    result.cpuUs = summary(costs.get(result.name)).median
  }
  const tail = results.map(({ name, p999Us }) => `${name} ${p999Us.toFixed(0)}`).join(', ')
  const cost = results.map(({ name, cpuUs }) => `${name} ${cpuUs.toFixed(1)}`).join(', ')
  const said = `${method} p99.9 in µs: ${tail}. CPU of the server in µs a request: ${cost}.`
  process.stdout.write(`  CPU µs a request: ${cost}\n`)
  report({ title, method: said, unit, results })
}

function report(made) {
  groups.push(made)
  process.stdout.write(`${made.title}\n`)
  for (const { name, median, min, max, ratio } of made.results) {
    const share = ratio === undefined ? '' : `  ${ratio.toFixed(2)}x`
    process.stdout.write(
      `  ${name}: ${median.toPrecision(4)} (${min.toPrecision(3)}-${max.toPrecision(3)}) ${made.unit}${share}\n`,
    )
  }
}

const cache = `${sizeBytes / MIB} MiB of a sparse disk on ext4, written only in 4 KiB pieces at random places (small folios), page cache warm; log, replica and image on the same disk; a cycle before each run, outside of it.`

const write = (bs, depth, ...more) => [`--bs=${bs}`, `--iodepth=${depth}`, '--rw=randwrite', ...more]

async function throughput(nbdkit, others, tracked, spinning, logFlush) {
  const all = [nbdkit, ...others, tracked]
  await group('P4 randwrite 4k qd32', cache, 'IOPS', all, write('4k', 32))
  await group('P4 randwrite 4k qd1', cache, 'IOPS', [...all, spinning], write('4k', 1))
  await group('P5 randread 4k qd32, warm', cache, 'IOPS', all, ['--bs=4k', '--iodepth=32', '--rw=randread'])
  await group(
    'P5 randread 4k qd32, cold',
    cache.replace('page cache warm', 'taken out of the page cache before each run'),
    'IOPS',
    all,
    ['--bs=4k', '--iodepth=32', '--rw=randread'],
    (run) => run.iops,
    true,
  )
  await group('P5 write 64k qd16', cache, 'MB/s', all, write('64k', 16), (run) => run.megabytes)
  await group(
    'P5 write 1M qd8',
    cache,
    'MB/s',
    all,
    ['--bs=1M', '--iodepth=8', '--rw=write'],
    (run) => run.megabytes,
  )
  await group('P5 four connections, randwrite 4k qd8 each', cache, 'IOPS', all, write('4k', 8, '--numjobs=4'))
  await group(
    'P6 randwrite 4k qd1, flush after each',
    cache,
    'IOPS',
    [...all, logFlush],
    write('4k', 1, '--fsync=1'),
  )
  await group(
    'P6 randwrite 4k qd32, flush after 32',
    cache,
    'IOPS',
    [...all, logFlush],
    write('4k', 32, '--fsync=32'),
  )
}

/** The same server at rest and while it replicates. */
async function foreground(tracked) {
  if (!'P7'.includes(only)) return
  const args = ['--bs=4k', '--iodepth=8', '--rw=randwrite', '--rate_iops=20000']
  const runs = { 'at rest': [], 'cycles running': [], 'a resynchronization running': [] }
  for (let round = 0; round < rounds; round += 1) {
    await tracked.settle()
    runs['at rest'].push(await fio(tracked, args))
    await tracked.ask({ cycles: true })
    runs['cycles running'].push(await fio(tracked, args))
    await tracked.ask({ cycles: false })
    const resync = tracked.ask({ resync: true })
    runs['a resynchronization running'].push(await fio(tracked, args))
    await resync
  }
  for (const [title, unit, of] of [
    ['P7 throughput', 'IOPS', (run) => run.iops],
    ['P7 p99', 'µs', (run) => run.p99Us],
  ]) {
    const results = Object.entries(runs).map(([name, list]) => ({
      name: `secondsite, ${name}`,
      ...summary(list.map(of)),
    }))
    const method = `4 KiB writes at random places, eight in flight, 20 000 a second asked for. ${cache}`
    report({ title, method, unit, results: ratios(results, 'secondsite, at rest') })
  }
}

/** How long a cut over sixteen disks holds writes, each of them being written to. */
async function cuts() {
  if (!'P8'.includes(only)) return
  const home = join(memory, 'cuts')
  const disks = Array.from({ length: 16 }, (_, n) => join(home, `disk${n}.raw`))
  mkdirSync(home)
  for (const disk of disks) {
    const file = openSync(disk, 'w')
    // The rest is a hole: logs must not reach the threshold.
    ftruncateSync(file, 4096 * MIB)
    closeSync(file)
  }
  const engine = await Engine.open({ stateDirectory: join(home, 'state') })
  const policy = { resyncThresholdPercent: 100, replicationFrequencySeconds: 86_400 }
  const cut = await engine.enable({
    name: 'cut',
    disks,
    replica: { directory: join(home, 'replica') },
    policy,
  })
  await cut.startInitialReplication()
  const over = new AbortController()
  const block = random.bytes(4096)
  const writer = async (disk) => {
    while (!over.signal.aborted) await disk.write(4096 * random.below((64 * MIB) / 4096), block)
  }
  const writing = Promise.all(cut.disks.map(writer))
  const holds = []
  for (let n = 0; n < (isQuick ? 5 : 200); n += 1) {
    await cut.replicate()
    holds.push(Math.max(...cut.disks.map((disk) => disk.status().lastHoldNs)) / 1e6)
  }
  over.abort()
  await writing
  await engine.close()
  const sorted = holds.sort((a, b) => a - b)
  const p99 = sorted[Math.ceil(sorted.length * 0.99) - 1]
  const method = `${holds.length} cuts over 16 disks in memory, the first 64 MiB of each written to in 4 KiB pieces all the while. p99 ${p99.toFixed(3)} ms.`
  report({
    title: 'P8 time that a cut holds writes',
    method,
    unit: 'ms',
    results: [{ name: 'secondsite cut', ...summary(holds) }],
  })
}

/** Loss in time with a cut every second and 20 MB/s of writes. */
async function rpo() {
  if (!'P11'.includes(only)) return
  const server = await secondsite('rpo', { replicationFrequencySeconds: 1 })
  const runtime = isQuick ? 5 : 60
  await fio(server, ['--bs=16k', '--iodepth=8', '--rw=randwrite', '--rate=20m', `--runtime=${runtime}`])
  const { measurement } = await server.ask({ measure: true })
  const { p50Ms, p99Ms, sampleCount } = measurement.rpo
  const method = `A cut every second, 20 MB/s of 16 KiB writes at random places for ${runtime} s, replica on the same disk; ${sampleCount} cycles. The loss just before a cycle arrives, the worst there is; p50 ${p50Ms} ms.`
  report({
    title: 'P11 loss in time, p99',
    method,
    unit: 'ms',
    results: [{ name: 'secondsite p99', ...summary([p99Ms]) }],
  })
}

/** What needs a server of each kind. */
async function besideOthers() {
  const nbdkit = await foreign('nbdkit file', 'nbdkit', (disk, socket) => ['-f', '-U', socket, 'file', disk])
  const qemu = await foreign('qemu-nbd', 'qemu-nbd', (disk, socket) => [
    '-t',
    '-e',
    '8',
    '-f',
    'raw',
    '-k',
    socket,
    '--cache=writeback',
    '--aio=threads',
    disk,
  ])
  const tracked = await secondsite('secondsite')
  const spinning = await secondsite('secondsite, spin 50', {}, 50)
  const logFlush = await secondsite('secondsite, flush mode log', { flushMode: 'log' })
  await throughput(nbdkit, [qemu], tracked, spinning, logFlush)
  await foreground(tracked)
}

try {
  for (const tool of ['fio', 'nbdkit', 'qemu-nbd'])
    if (!isInstalled(tool)) throw new Error(`${tool} is not installed`)
  if (!['P8', 'P11'].includes(only)) await besideOthers()
  await cuts()
  await rpo()
  if (!isQuick) save('nbd', { machine: machine(), groups: only === '' ? groups : withOthers(groups) })
} finally {
  for (const stop of stops) await stop()
  for (const made of [folder, memory]) rmSync(made, { recursive: true, force: true })
}
