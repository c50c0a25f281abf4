// A process that protects one disk and exports it, for benches. Told by messages: { cycle } runs one, { cycles: true }
// runs one after the other until { cycles: false }, { resync } compares everything, { measure } answers. Ends on disconnect.
import { Engine } from '@secondsite/engine'

const [folder, disk, socket, policyText, spin] = process.argv.slice(2)
const engine = await Engine.open({ stateDirectory: `${folder}/state` })
const replica = { directory: `${folder}/replica` }
const policy = { resyncThresholdPercent: 100, replicationFrequencySeconds: 86_400, ...JSON.parse(policyText) }
const machine = await engine.enable({ name: 'bench', disks: [disk], replica, policy })
await machine.startInitialReplication()
const nbd = await machine.exportNbd({ listen: `unix:${socket}`, spinMicroseconds: Number(spin) })
let cycles = new AbortController()
let cycling = Promise.resolve()

async function cycleOn(signal) {
  while (!signal.aborted) await machine.replicate()
}

async function answer(message) {
  if (message.cycle) await machine.replicate()
  if (message.resync) await machine.resynchronize()
  if (message.cycles === true) {
    cycles = new AbortController()
    cycling = cycleOn(cycles.signal)
  }
  if (message.cycles === false) {
    cycles.abort()
    await cycling
  }
  const { user, system } = process.cpuUsage()
  process.send({ key: message.key, measurement: await machine.measure(), cpuSeconds: (user + system) / 1e6 })
}

process.on('message', (message) => {
  answer(message).catch((error) => process.send({ key: message.key, error: String(error) }))
})
process.once('disconnect', async () => {
  cycles.abort()
  await cycling
  await engine.close()
  process.exit(0)
})
process.send({ ready: nbd.uri(machine.disks[0]) })
