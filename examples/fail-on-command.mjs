import { Engine } from '@secondsite/engine'
import { FaultyFileSystem, MemoryDisk } from '@secondsite/engine/testing'
import { workplace } from './workplace.mjs'

const { stateDirectory, replica, remove } = workplace()
const disk = await MemoryDisk.create({ sizeBytes: 16 * 1024 * 1024 })
await disk.fillRandom({ seed: 1, lengthBytes: 1024 * 1024 })

const engine = await Engine.open({ stateDirectory })
const web01 = await engine.enable({ name: 'web01', disks: [disk.path], replica })
await web01.startInitialReplication()

// The disk of the logs is full: the guest does not notice, and what it wrote is compared later.
const files = new FaultyFileSystem()
const full = files.fail({ path: disk.directory, suffix: '.hrl', operation: 'write', error: 'ENOSPC' })
await web01.disks[0].write(4096, Buffer.alloc(4096, 7))
console.log(`the log failed ${full.strikes} times; tracking goes on in the ${web01.disks[0].status().mode}`)
files.heal()

await web01.replicate().catch((error) => console.log(`a cycle is not possible: ${error.code}`))
const { reason, comparedBytes } = await web01.resynchronize()
console.log(`resynchronized because of ${reason}, ${comparedBytes} bytes compared`)
console.log(`first difference: ${await disk.firstDifference(`${replica.directory}/disk.raw.raw`)}`)

await engine.close()
await disk.remove()
remove()
