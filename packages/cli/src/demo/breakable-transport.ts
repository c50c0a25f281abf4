/**
 * A link that the demo cuts in the middle of a cycle, and that counts what travels over it.
 */

import { SecondsiteError } from '@secondsite/engine'
import type { AnyMessage, Channel, Message, Transport } from '@secondsite/engine/testing'

export class BreakableTransport implements Transport {
  readonly #inner: Transport
  #messagesLeft = Number.POSITIVE_INFINITY
  /** Bytes of frames that went to the replica. */
  sentBytes = 0
  /** Bytes that the replica was asked to compare. */
  comparedBytes = 0

  constructor(inner: Transport) {
    this.#inner = inner
  }

  /** Breaks the connection after `messageCount` more messages. */
  breakAfter(messageCount: number): void {
    this.#messagesLeft = messageCount
  }

  async connect(signal?: AbortSignal): Promise<Channel> {
    const channel = await this.#inner.connect(signal)
    return {
      send: async (message, sendSignal) => {
        await this.#pass(channel)
        await channel.send(message, sendSignal)
        this.#count(message)
      },
      receive: () => channel.receive(),
      close: () => channel.close(),
    }
  }

  #count(sent: Message): void {
    const message = sent as AnyMessage
    if (message.type === 'frame') this.sentBytes += message.body?.length ?? 0
    if (message.type !== 'digest-request') return
    for (const range of message.header.ranges) this.comparedBytes += range.lengthBytes
  }

  async #pass(channel: Channel): Promise<void> {
    this.#messagesLeft -= 1
    if (this.#messagesLeft >= 0) return
    this.#messagesLeft = Number.POSITIVE_INFINITY
    await channel.close()
    throw new SecondsiteError('TRANSPORT_LOST', { message: 'the link was cut' })
  }
}
