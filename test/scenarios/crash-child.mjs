// Runs one job of the engine and ends itself with SIGKILL just before step number `killAt`; 0 means never.
// Prints the names of the steps it passed as JSON when it comes to its end.
import { Engine } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { truncateSync } from 'node:fs'
import { join } from 'node:path'

const [folder, job, killAtText, seedText] = process.argv.slice(2)
const killAt = Number(killAtText)
const random = new SeededRandom(Number(seedText))
const steps = []

function step(name) {
  steps.push(name)
  if (steps.length === killAt) process.kill(process.pid, 'SIGKILL')
}

const KIB = 1024
const options = { stateDirectory: join(folder, 'state'), frameBytes: 64 * KIB, batchBytes: 512 * KIB, windowBytes: 512 * KIB }

async function scribble(machine, count) {
  for (let index = 0; index < count; index += 1) {
    const disk = machine.disks[random.below(machine.disks.length)]
    const lengthBytes = 512 * (1 + random.below(64))
    await disk.write(512 * random.below((disk.sizeBytes - lengthBytes) / 512), random.bytes(lengthBytes))
  }
}

const jobs = {
  async initial(engine) {
    await scribble(engine.machine('web01'), 10)
    await engine.machine('web01').startInitialReplication()
  },
  async cycle(engine) {
    await scribble(engine.machine('web01'), 20)
    await engine.machine('web01').replicate()
    await scribble(engine.machine('web01'), 20)
    await engine.machine('web01').replicate()
  },
  async resync(engine) {
    await scribble(engine.machine('web01'), 20)
    await engine.machine('web01').resynchronize({ restart: true })
  },
}

jobs.add = async (engine) => {
  const machine = engine.machine('web01')
  await machine.addDisk(join(folder, 'new.raw'))
  await scribble(machine, 20)
  // It is copied by itself; the cycle behind that closes it.
  while ((await machine.measure()).disks.some((disk) => disk.copyState === 'copying')) {
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  await machine.replicate()
}
jobs.remove = async (engine) => {
  const machine = engine.machine('web01')
  await scribble(machine, 20)
  await machine.removeDisk('data.raw')
  await machine.replicate()
}

const SHRUNK_BYTES = 1024 * KIB + 66_048
jobs.shrink = async (engine) => {
  const machine = engine.machine('web01')
  await scribble(machine, 20)
  const [disk] = machine.disks
  await disk.write(disk.sizeBytes - 4096, random.bytes(4096))
  truncateSync(disk.path, SHRUNK_BYTES)
  await machine.acceptShrink({ 'os.raw': SHRUNK_BYTES })
  await scribble(machine, 20)
  await machine.replicate()
}

const engine = await Engine.open({ ...options, step })
await jobs[job](engine)
await engine.close()
process.stdout.write(JSON.stringify(steps))
