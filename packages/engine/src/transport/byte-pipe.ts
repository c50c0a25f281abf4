/**
 * One direction of a connection inside a process: a bounded queue of pieces of bytes, first in, first out.
 */

import { abortedError, throwIfAborted } from '../errors.js'
import { lostError } from './byte-channel.js'
import { CHANNEL_QUEUE_BYTES_MAX } from './channel.js'

interface WaitingWrite {
  readonly pieces: readonly Uint8Array[]
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

/** A queue of bytes with one reader; writes wait while it is full. */
export class BytePipe {
  readonly #queue: Uint8Array[] = []
  #queuedBytes = 0
  #waiting: WaitingWrite[] = []
  #end: 'open' | 'closed' | 'broken' = 'open'
  #wake: (() => void) | undefined

  /** Bytes that wait for the reader. */
  get queuedBytes(): number {
    return this.#queuedBytes
  }

  /** Whether writes are still taken. */
  get isOpen(): boolean {
    return this.#end === 'open'
  }

  /** Adds `pieces` with nothing between them; the pipe owns them from then on. Waits while the queue is full. */
  async write(pieces: readonly Uint8Array[], signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    if (this.#end !== 'open') throw lostError('the channel is closed')
    if (this.#queuedBytes < CHANNEL_QUEUE_BYTES_MAX && this.#waiting.length === 0) return this.#add(pieces)
    await this.#waitForSpace(pieces, signal)
  }

  /** Ends the stream behind what is queued; writes that still wait fail. */
  close(): void {
    if (this.#end === 'open') this.#finish('closed')
  }

  /** Breaks the connection: what is queued is lost. */
  break(): void {
    if (this.#end === 'broken') return
    this.#queue.length = 0
    this.#queuedBytes = 0
    this.#finish('broken')
  }

  /** The pieces, until the stream ends. @throws {TRANSPORT_LOST} when it breaks */
  async *read(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const bytes = this.#take()
      if (bytes !== undefined) yield bytes
      else if (this.#end === 'closed') return
      else if (this.#end === 'broken') throw lostError('the connection broke')
      else await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  #waitForSpace(pieces: readonly Uint8Array[], signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting = this.#waiting.filter((other) => other !== write)
        reject(abortedError(signal?.reason))
      }
      const done = (): void => signal?.removeEventListener('abort', onAbort)
      const write: WaitingWrite = {
        pieces,
        resolve: () => (done(), resolve()),
        reject: (error) => (done(), reject(error)),
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#waiting.push(write)
    })
  }

  #add(pieces: readonly Uint8Array[]): void {
    for (const piece of pieces) {
      this.#queue.push(piece)
      this.#queuedBytes += piece.length
    }
    this.#notify()
  }

  #take(): Uint8Array | undefined {
    const bytes = this.#queue.shift()
    if (bytes === undefined) return undefined
    this.#queuedBytes -= bytes.length
    while (this.#queuedBytes < CHANNEL_QUEUE_BYTES_MAX && this.#waiting.length > 0) {
      const write = this.#waiting.shift()
      if (write === undefined) break
      this.#add(write.pieces)
      write.resolve()
    }
    return bytes
  }

  #finish(end: 'closed' | 'broken'): void {
    this.#end = end
    for (const write of this.#waiting.splice(0)) write.reject(lostError('the channel is closed'))
    this.#notify()
  }

  #notify(): void {
    this.#wake?.()
    this.#wake = undefined
  }
}
