/**
 * What a transport is to the engine: a way to get channels, and channels that carry messages in both directions.
 *
 * The network transport, the one in memory and the one that fails on command implement these interfaces, and one suite
 * (test/conformance) holds for all of them. A channel delivers messages whole, in the order they were sent, at most
 * once; it delivers none after one that was lost. It promises nothing more: what must arrive is acknowledged by a
 * message of its own, and after a broken channel the next one starts from what `welcome` says.
 */

import type { Message } from './messages.js'

/** Bytes that may wait in one direction of a channel before `send` waits: four frames of 4 MiB. */
export const CHANNEL_QUEUE_BYTES_MAX = 16 * 1024 * 1024

/** An open connection to the other side. */
export interface Channel {
  /**
   * Sends a message, whose body belongs to the channel from then on; resolves when the channel has taken it, which says
   * nothing about its arrival.
   *
   * Waits while {@link CHANNEL_QUEUE_BYTES_MAX} bytes or more are queued: that wait is the back-pressure. Messages of
   * several callers leave in the order of the calls.
   * @throws {TRANSPORT_LOST} when either side has closed the channel or the connection broke
   * @throws {ABORTED} when `signal` is aborted before the message was taken; it then was not sent at all
   * @throws TypeError when header or body are not what the message's type demands
   */
  send(message: Message, signal?: AbortSignal): Promise<void>
  /**
   * The messages of the other side, in order; to be iterated once. Ends when either side has closed the channel.
   *
   * @throws {TRANSPORT_LOST} when the connection broke; messages that had not been taken are lost
   * @throws {PROTOCOL_ERROR} when the bytes are not the protocol; the channel is closed
   * @throws {FRAME_CORRUPT} when a checksum fails; the channel is closed
   */
  receive(): AsyncIterable<Message>
  /** Ends both directions. What was sent before still reaches the other side. Calling it again does nothing. */
  close(): Promise<void>
}

/** Opens channels to one replica. */
export interface Transport {
  /**
   * Opens a channel.
   * @throws {TRANSPORT_FAILED} when the other side cannot be reached
   * @throws {ABORTED} when `signal` is aborted first
   */
  connect(signal?: AbortSignal): Promise<Channel>
}

/** Takes over a channel that the other side has opened. It closes the channel when it is done. */
export type Serve = (channel: Channel) => void
