/**
 * A transport inside one process: both sides in one engine, and the way to test without a network.
 */

import { SecondsiteError, throwIfAborted } from '../errors.js'
import { ByteChannel, type ByteStream } from './byte-channel.js'
import { BytePipe } from './byte-pipe.js'
import type { Channel, Serve, Transport } from './channel.js'

/** A {@link Transport} inside one process, which a test can break. */
export interface MemoryTransport extends Transport {
  /** Breaks every connection made so far, as a network does: without a goodbye. */
  breakAll(): void
}

/**
 * A transport whose every channel is handed to `serve` on the other side.
 *
 * @example
 * const transport = memoryTransport((channel) => void replica.serve(channel))
 */
export function memoryTransport(serve: Serve): MemoryTransport {
  const pipes: BytePipe[] = []
  return {
    async connect(signal): Promise<Channel> {
      throwIfAborted(signal)
      const there = new BytePipe()
      const back = new BytePipe()
      pipes.splice(0, pipes.length, ...pipes.filter((pipe) => pipe.isOpen), there, back)
      handOver(serve, new ByteChannel(streamOver(back, there)))
      return new ByteChannel(streamOver(there, back))
    },
    breakAll() {
      for (const pipe of pipes.splice(0)) pipe.break()
    },
  }
}

/** One end of a connection over two pipes. */
export function streamOver(out: BytePipe, incoming: BytePipe): ByteStream {
  return {
    write: (pieces, signal) => out.write(pieces, signal),
    read: () => incoming.read(),
    async close() {
      out.close()
      incoming.close()
    },
  }
}

/** Gives `channel` to the other side. @throws {TRANSPORT_FAILED} when it takes none */
export function handOver(serve: Serve, channel: Channel): void {
  try {
    serve(channel)
  } catch (error) {
    throw new SecondsiteError('TRANSPORT_FAILED', { message: 'the other side took no channel', cause: error })
  }
}
