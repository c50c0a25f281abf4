/**
 * The primary's end of a channel: requests that wait for their reply, and acknowledgements that only arrive.
 *
 * One reader takes every message. A reply goes to whoever waits for its key, an `ack` to the listener, an `error`
 * ends everything. When the channel ends, every waiter gets TRANSPORT_LOST; a link is never used again after that.
 */

import { type PlainError, SecondsiteError, abortedError, fromPlainError } from '../errors.js'
import type { Channel } from './channel.js'
import type { AnyMessage, HeaderOf, Message, MessageType, ReplyType } from './messages.js'

interface Waiter {
  readonly resolve: (message: Message) => void
  readonly reject: (error: Error) => void
}

/** What an acknowledgement says: bytes of a log that are durable on the replica. */
export type AckListener = (ack: HeaderOf<'ack'>) => void

export class Link {
  readonly #channel: Channel
  readonly #waiters = new Map<string, Waiter[]>()
  #onAck: AckListener = () => {}
  #ended: Error | undefined
  readonly #reading: Promise<void>

  constructor(channel: Channel) {
    this.#channel = channel
    this.#reading = this.#read()
  }

  /** Listens to acknowledgements; the last listener wins. */
  onAck(listener: AckListener): void {
    this.#onAck = listener
  }

  /** Sends a message; resolves when the channel has taken it, which is the back-pressure. */
  async send(message: Message, signal?: AbortSignal): Promise<void> {
    if (this.#ended) throw this.#ended
    await this.#channel.send(message, signal)
  }

  /**
   * Waits for the next reply of a type.
   *
   * @param key - which of several outstanding ones: the number of the request or shipment
   * @throws {TRANSPORT_LOST} when the channel ends first; what the replica answered, when it refuses
   */
  reply<Type extends ReplyType>(type: Type, key: number, signal?: AbortSignal): Promise<Message<Type>> {
    if (this.#ended) return Promise.reject(this.#ended)
    if (signal?.aborted) return Promise.reject(abortedError(signal.reason))
    return new Promise<Message<Type>>((resolve, reject) => {
      const name = keyOf(type, key)
      const onAbort = (): void => {
        this.#forget(name, waiter)
        reject(abortedError(signal?.reason))
      }
      const done = (): void => signal?.removeEventListener('abort', onAbort)
      const waiter: Waiter = {
        resolve: (received) => {
          done()
          resolve(received as Message<Type>)
        },
        reject: (error) => {
          done()
          reject(error)
        },
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#waiters.set(name, [...(this.#waiters.get(name) ?? []), waiter])
    })
  }

  /** Ends the link; whoever still waits gets TRANSPORT_LOST. */
  async close(): Promise<void> {
    await this.#channel.close()
    await this.#reading
  }

  #forget(name: string, waiter: Waiter): void {
    const others = (this.#waiters.get(name) ?? []).filter((one) => one !== waiter)
    this.#waiters.set(name, others)
  }

  async #read(): Promise<void> {
    try {
      for await (const message of this.#channel.receive()) this.#take(message as AnyMessage)
      this.#end(new SecondsiteError('TRANSPORT_LOST', { message: 'the replica closed the channel' }))
    } catch (error) {
      this.#end(error as Error)
    }
  }

  #take(message: AnyMessage): void {
    if (message.type === 'ack') return this.#onAck(message.header)
    if (message.type === 'error') return this.#end(fromPlainError(message.header.error as PlainError))
    const name = keyOf(message.type, message.header.key)
    const [first, ...rest] = this.#waiters.get(name) ?? []
    if (rest.length > 0) this.#waiters.set(name, rest)
    else this.#waiters.delete(name)
    first?.resolve(message)
  }

  #end(error: Error): void {
    this.#ended ??= error
    for (const waiter of [...this.#waiters.values()].flat()) waiter.reject(this.#ended)
    this.#waiters.clear()
  }
}

function keyOf(type: MessageType, key: number): string {
  return `${type}#${key}`
}
