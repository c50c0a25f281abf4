// A file of the machine is ruined; the replica shows the state before, and takes over from there.
import { join } from 'node:path'
import { Engine, openReplica } from '@secondsite/engine'
import { workplace } from './workplace.mjs'

const { disk, stateDirectory, replica, remove } = workplace()
const engine = await Engine.open({ stateDirectory })
const policy = { recoveryPoints: 8, recoveryPointIntervalSeconds: 1 }
const web01 = await engine.enable({ name: 'web01', disks: [disk], replica, policy })
await web01.disks[0].write(0, Buffer.alloc(4096, 'good '))
await web01.startInitialReplication()
await new Promise((done) => setTimeout(done, 1100))
await web01.disks[0].write(0, Buffer.alloc(4096, 'ruined '))
await web01.replicate()
await engine.close()

// The primary is gone. Everything below needs the folder of the replica alone.
const site = await openReplica({ directory: replica.directory })
const before = (await site.points()).filter((point) => !point.isLatest).at(-1)
const view = await site.openView({ point: before.number })
console.log(
  `point ${before.number} begins with ${Buffer.from(await view.disks[0].read(0, 512)).toString('utf8', 0, 4)}`,
)
await view.close()
const [restored] = await site.restore(
  { point: before.number },
  { directory: join(stateDirectory, 'restored') },
)
console.log(`restored ${restored.name}`)

const failover = await site.startFailover({ point: { point: before.number } })
const first = Buffer.from(await failover.disks[0].read(0, 512))
await failover.disks[0].write(4096, Buffer.alloc(4096, 'written after the failover '))
await site.commitFailover()
console.log(`failed over to ${first.toString('utf8', 0, 4)}, state ${await site.state()}`)

await site.close()
remove()
