/**
 * A channel over two streams of bytes: what every transport that carries bytes has in common.
 *
 * A message is encoded when it is sent, even inside one process; its body alone is handed on as it is.
 */

import { SecondsiteError, throwIfAborted } from '../errors.js'
import type { Channel } from './channel.js'
import type { Message } from './messages.js'
import { MessageDecoder, messagePieces } from './wire.js'

/** One end of a connection that carries bytes in both directions. */
export interface ByteStream {
  /**
   * Takes the pieces of one message, which it owns from then on, waiting while its queue is full.
   * @throws {TRANSPORT_LOST} when the connection is closed or broken
   * @throws {ABORTED} before anything was taken
   */
  write(pieces: readonly Uint8Array[], signal?: AbortSignal): Promise<void>
  /** Pieces of any size; ends when the other side has closed. @throws {TRANSPORT_LOST} when the connection broke */
  read(): AsyncIterable<Uint8Array>
  /** Ends both directions; what was written still reaches the other side. */
  close(): Promise<void>
}

/** A {@link Channel} over a {@link ByteStream}. */
export class ByteChannel implements Channel {
  readonly #stream: ByteStream
  #isReceiving = false

  constructor(stream: ByteStream) {
    this.#stream = stream
  }

  async send(message: Message, signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    await this.#stream.write(messagePieces(message), signal)
  }

  async *receive(): AsyncGenerator<Message> {
    if (this.#isReceiving) throw new TypeError('a channel is received from once')
    this.#isReceiving = true
    const decoder = new MessageDecoder()
    for await (const bytes of this.#stream.read()) yield* await this.#decode(decoder, bytes)
    decoder.end()
  }

  /** Bytes that are not messages end the connection: nobody can say where the next message starts. */
  async #decode(decoder: MessageDecoder, bytes: Uint8Array): Promise<Message[]> {
    try {
      return decoder.push(bytes)
    } catch (error) {
      await this.#stream.close()
      throw error
    }
  }

  close(): Promise<void> {
    return this.#stream.close()
  }
}

/** The error of a connection that is gone. */
export function lostError(message: string): SecondsiteError {
  return new SecondsiteError('TRANSPORT_LOST', { message })
}
