// Runs one verb of recovery and ends itself with SIGKILL just before step number `killAt`; 0 means never.
// Prints the names of the steps it passed as JSON when it comes to its end.
import { join } from 'node:path'
import { Engine, openReplica, reverseReplication } from '@secondsite/engine'

const [folder, verb, killAtText, nowMsText, argument = ''] = process.argv.slice(2)
const killAt = Number(killAtText)
const steps = []

function step(name) {
  steps.push(name)
  if (steps.length === killAt) process.kill(process.pid, 'SIGKILL')
}

// Stands still; nothing is due by itself.
const clock = {
  nowMs: () => Number(nowMsText),
  nowNs: () => BigInt(nowMsText) * 1_000_000n,
  sleep: async () => {},
  setTimer: () => () => {},
}
const options = { clock, step, threadCountMax: 1 }
const openEngine = (name) => Engine.open({ ...options, stateDirectory: join(folder, name), frameBytes: 65_536 })
const openTheReplica = () => openReplica({ ...options, directory: join(folder, 'replica') })
const pattern = new Uint8Array(12_288).fill(0x5a)

async function onReplica(action) {
  const replica = await openTheReplica()
  await action(replica)
  await replica.close()
}

async function onEngine(action) {
  const engine = await openEngine('state')
  await action(engine.machine('web01'), engine)
  await engine.close()
}

const point = { timeMs: Number(argument) }
const verbs = {
  testFailover: () =>
    onReplica(async (replica) => {
      const test = await replica.startTestFailover({ point })
      await test.disks[0].write(65_536, pattern)
      await test.stop()
    }),
  startFailover: () => onReplica((replica) => replica.startFailover({ point })),
  startPlanned: () => onReplica((replica) => replica.startFailover({ kind: 'Planned' })),
  changeRecoveryPoint: () => onReplica((replica) => replica.changeRecoveryPoint(point)),
  cancelFailover: () => onReplica((replica) => replica.cancelFailover()),
  commitFailover: () => onReplica((replica) => replica.commitFailover()),
  restore: () => onReplica((replica) => replica.restore(point, { directory: join(folder, 'out') })),
  prepareFailover: () => onEngine((machine) => machine.prepareFailover()),
  expire: () =>
    onEngine(async (machine, engine) => {
      await machine.disks[0].write(65_536, pattern)
      await machine.replicate()
      await engine.settled()
    }),
  reverse: () =>
    onReplica(async (replica) => {
      const [home, away] = [await openEngine('state'), await openEngine('away-state')]
      const directory = join(folder, 'home-store')
      await reverseReplication(replica, { engine: away, former: { engine: home }, directory })
      await away.close()
      await home.close()
    }),
}

await verbs[verb]()
process.stdout.write(JSON.stringify(steps))
