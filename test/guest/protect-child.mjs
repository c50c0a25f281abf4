// A process that protects one machine, exports its disks and runs one cycle after the other, until somebody kills it.
// Its argument is JSON: { folder, disks, logDirectory?, isHeld? }. With isHeld cycles begin when it is told to.
//
// Sends { ready } when the export is there, { copied } after the initial replication, { cycles } after each cycle and
// { resync } with its reason after each resynchronization; takes "go" and "stop", and ends in order after the latter.
import { once } from 'node:events'
import { join } from 'node:path'
import { Engine } from '@secondsite/engine'

const { folder, disks, logDirectory, isHeld } = JSON.parse(process.argv[2])
// Batches have their usual size (64 MiB): where the log folder has less room, smaller ones are made.
const options = { stateDirectory: join(folder, 'state'), frameBytes: 64 * 1024 }
const stopping = new AbortController()
process.on('message', (message) => message === 'stop' && stopping.abort())

const engine = await Engine.open(options)
const machine = engine.machines.length === 0 ? await protect() : engine.machine('web01')
const nbd = await machine.exportNbd({ listen: `unix:${join(folder, 'web01.sock')}` })
const recovery = machine.disks.map((disk) => disk.recovery.kind)
process.send({ ready: { recovery, uris: machine.disks.map((disk) => nbd.uri(disk)) } })

if (machine.state === 'ReadyForInitialReplication') await machine.startInitialReplication()
process.send({ copied: true })
if (isHeld) await once(process, 'message')
for (let cycles = 1; !stopping.signal.aborted; cycles += 1) {
  await replicate()
  process.send({ cycles })
}
await nbd.close()
await replicate()
const { state } = machine
await engine.close()
process.send({ stopped: { state } })
process.disconnect()

function protect() {
  const inputs = disks.map((path) => (logDirectory ? { path, trackingDirectory: logDirectory } : path))
  const policy = { autoResynchronize: { enabled: false } }
  return engine.enable({ name: 'web01', disks: inputs, replica: { directory: join(folder, 'replica') }, policy })
}

// A cycle that cannot run because a resynchronization is due leads to that, and to the cycle after it.
async function replicate() {
  try {
    await machine.replicate()
  } catch (error) {
    const { resyncReason } = await machine.measure()
    if (resyncReason === null) throw error
    await machine.resynchronize()
    process.send({ resync: resyncReason })
    await machine.replicate()
  }
}
