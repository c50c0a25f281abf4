// A process that protects one machine, exports its disks and runs one cycle after the other, until somebody kills it.
// Sends { ready } when the export is there and { cycles } after each cycle; ends in order when asked to stop.
import { join } from 'node:path'
import { Engine } from '@secondsite/engine'

const [folder, ...disks] = process.argv.slice(2)
const KIB = 1024
const options = { stateDirectory: join(folder, 'state'), frameBytes: 64 * KIB, batchBytes: 1024 * KIB }
const stopping = new AbortController()
process.once('message', () => stopping.abort())

const engine = await Engine.open(options)
const replica = { directory: join(folder, 'replica') }
const isNew = engine.machines.length === 0
const machine = isNew ? await engine.enable({ name: 'web01', disks, replica }) : engine.machine('web01')
const nbd = await machine.exportNbd({ listen: `unix:${join(folder, 'web01.sock')}` })
const recovery = machine.disks.map((disk) => disk.recovery.kind)
process.send({ ready: { recovery, uris: machine.disks.map((disk) => nbd.uri(disk)) } })

if (machine.state === 'ReadyForInitialReplication') await machine.startInitialReplication()
let cycles = 0
while (!stopping.signal.aborted) {
  await machine.replicate()
  cycles += 1
  process.send({ cycles })
}
await nbd.close()
await machine.replicate()
const { resyncReason } = await machine.measure()
await engine.close()
process.send({ stopped: { state: machine.state, resyncReason } })
process.disconnect()
