import { Engine } from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { workplace } from './workplace.mjs'

const { disk, stateDirectory, replica, remove } = workplace()
const clock = new ManualClock(Date.UTC(2026, 0, 1))

// A replica that cannot be reached: the engine retries by its table, and health says so.
let isDown = false
const wrapTransport = (transport) => ({
  connect: (signal) => (isDown ? Promise.reject(new Error('link down')) : transport.connect(signal)),
})

const engine = await Engine.open({ stateDirectory, clock, wrapTransport })
const policy = { replicationFrequencySeconds: 30 }
const web01 = await engine.enable({ name: 'web01', disks: [disk], replica, policy })
await web01.startInitialReplication()

isDown = true
await web01.replicate().catch((error) => console.log(`failed: ${error.code}`))
const { health, healthDetails } = await web01.measure()
console.log(`health ${health}: ${healthDetails.map((detail) => detail.text).join('; ')}`)

isDown = false
await web01.replicate()
console.log(`health ${(await web01.measure()).health}`)

await engine.close()
remove()
