/**
 * What tests of the engine and of what is built on it need: time, randomness, disks, files and transports that obey.
 */

export type { FileFault, FileOperation } from '../native/faults.js'
export { SeededRandom } from '../random.js'
export type { ByteStream } from '../transport/byte-channel.js'
export { ByteChannel, lostError } from '../transport/byte-channel.js'
export { BytePipe } from '../transport/byte-pipe.js'
export type { Channel, Serve, Transport } from '../transport/channel.js'
export { CHANNEL_QUEUE_BYTES_MAX } from '../transport/channel.js'
export type { MemoryTransport } from '../transport/memory.js'
export { memoryTransport } from '../transport/memory.js'
export type { AnyMessage, HeaderOf, Message, MessageType, ReplyType } from '../transport/messages.js'
export { errorMessage, message } from '../transport/messages.js'
export { encodeMessage, MessageDecoder } from '../transport/wire.js'
export type { FaultRule } from './faulty-file-system.js'
export { ArmedFault, FaultyFileSystem } from './faulty-file-system.js'
export type { FaultyTransportOptions, TransportFaults } from './faulty-transport.js'
export { FaultyTransport } from './faulty-transport.js'
export { ManualClock } from './manual-clock.js'
export type { MemoryDiskOptions } from './memory-disk.js'
export { MemoryDisk } from './memory-disk.js'
