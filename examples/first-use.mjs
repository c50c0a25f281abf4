import { Engine } from '@secondsite/engine'
import { workplace } from './workplace.mjs'

const { disk, stateDirectory, replica, remove } = workplace()
const engine = await Engine.open({ stateDirectory })

const web01 = await engine.enable({ name: 'web01', disks: [disk], replica })
await web01.startInitialReplication()
await web01.disks[0].write(4096, Buffer.alloc(4096, 7))
const cycle = await web01.replicate()
const { equal } = await web01.verify()
console.log(`state ${web01.state}, sent ${cycle.sentBytes} bytes, equal: ${equal}`)

await engine.close()
remove()
