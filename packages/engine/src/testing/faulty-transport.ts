/**
 * A transport in memory that fails on command: cuts, damage, duplicates and delays, all of them replayed by one seed.
 *
 * Faults act on messages as bytes on their way, so everything a reader of a damaged stream can meet comes up. The
 * transport itself keeps no promise then; the conformance suite runs on it without faults, the rest needs them.
 */

import type { Clock } from '../clock.js'
import { systemClock } from '../clock.js'
import { abortedError, SecondsiteError, throwIfAborted } from '../errors.js'
import type { Random } from '../random.js'
import { ByteChannel, type ByteStream, lostError } from '../transport/byte-channel.js'
import { BytePipe } from '../transport/byte-pipe.js'
import type { Channel, Serve, Transport } from '../transport/channel.js'
import { handOver, streamOver } from '../transport/memory.js'
import { joined } from '../transport/wire.js'

/** What goes wrong; nothing of it by default. Chances are 0 to 1, drawn for each message. */
export interface TransportFaults {
  /** Connections refused before one is made. */
  readonly refusedConnects?: number
  /** Messages of both directions together that pass before each connection is cut. */
  readonly cutAfterMessages?: number
  /** Bytes of both directions together that pass before each connection is cut, in the middle of a message too. */
  readonly cutAfterBytes?: number
  /** Chance that the connection is cut in the middle of this message. */
  readonly cutChance?: number
  /** Chance that one bit of this message is flipped. */
  readonly corruptChance?: number
  /** Chance that this message arrives twice. */
  readonly duplicateChance?: number
  /** Wait of a message, at most; drawn for each. */
  readonly delayMsMax?: number
}

/** What a {@link FaultyTransport} is made of. */
export interface FaultyTransportOptions {
  readonly serve: Serve
  readonly random: Random
  readonly clock?: Clock
  readonly faults?: TransportFaults
}

/** A {@link Transport} in memory with faults; `faults` may be changed at any time. */
export class FaultyTransport implements Transport {
  /** What goes wrong from now on. */
  faults: TransportFaults
  /** What went wrong so far. */
  readonly counts = { connects: 0, refused: 0, cuts: 0, corrupted: 0, duplicated: 0 }
  readonly #serve: Serve
  readonly #random: Random
  readonly #clock: Clock
  readonly #open = new Set<FaultyLine>()

  constructor(options: FaultyTransportOptions) {
    this.faults = options.faults ?? {}
    this.#serve = options.serve
    this.#random = options.random
    this.#clock = options.clock ?? systemClock
  }

  async connect(signal?: AbortSignal): Promise<Channel> {
    throwIfAborted(signal)
    if (this.counts.refused < (this.faults.refusedConnects ?? 0)) {
      this.counts.refused += 1
      throw new SecondsiteError('TRANSPORT_FAILED', { message: 'connection refused by a fault' })
    }
    this.counts.connects += 1
    const line = new FaultyLine(this, this.#random, this.#clock)
    this.#open.add(line)
    handOver(this.#serve, new ByteChannel(line.far))
    return new ByteChannel(line.near)
  }

  /** Cuts every open connection now. */
  cutAll(): void {
    for (const line of this.#open) line.cut()
    this.#open.clear()
  }
}

/** One connection: two pipes, and the faults in front of them. */
class FaultyLine {
  readonly near: ByteStream
  readonly far: ByteStream
  readonly #transport: FaultyTransport
  readonly #random: Random
  readonly #clock: Clock
  readonly #there = new BytePipe()
  readonly #back = new BytePipe()
  #messageCount = 0
  #byteCount = 0

  constructor(transport: FaultyTransport, random: Random, clock: Clock) {
    this.#transport = transport
    this.#random = random
    this.#clock = clock
    this.near = this.#end(this.#there, this.#back)
    this.far = this.#end(this.#back, this.#there)
  }

  cut(): void {
    this.#transport.counts.cuts += 1
    this.#there.break()
    this.#back.break()
  }

  #end(out: BytePipe, incoming: BytePipe): ByteStream {
    // Delays must not reorder: each write waits for the one before it.
    let last: Promise<void> = Promise.resolve()
    const write = (pieces: readonly Uint8Array[], signal?: AbortSignal): Promise<void> => {
      const bytes = joined(pieces)
      let isBegun = false
      const mine = last.then(() => {
        isBegun = true
        return this.#pass(out, bytes, signal)
      })
      last = mine.catch(() => undefined)
      return signal === undefined ? mine : unlessAborted(mine, signal, () => isBegun)
    }
    return { ...streamOver(out, incoming), write }
  }

  async #pass(out: BytePipe, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    const { delayMsMax = 0, corruptChance = 0, duplicateChance = 0 } = this.#transport.faults
    throwIfAborted(signal)
    if (delayMsMax > 0) await this.#clock.sleep(this.#random.below(delayMsMax + 1), signal)
    const cutAt = this.#cutAt(bytes.length)
    if (cutAt !== undefined) return this.#cutInside(out, bytes, cutAt, signal)
    if (this.#isDrawn(corruptChance)) this.#corrupt(bytes)
    const isTwice = this.#isDrawn(duplicateChance)
    const again = isTwice ? bytes.slice() : undefined
    await out.write([bytes], signal)
    if (again !== undefined) {
      this.#transport.counts.duplicated += 1
      await out.write([again])
    }
    this.#messageCount += 1
    this.#byteCount += bytes.length
  }

  /** Where in a message of this length the connection is cut; undefined when it passes. */
  #cutAt(lengthBytes: number): number | undefined {
    const { cutAfterMessages, cutAfterBytes, cutChance = 0 } = this.#transport.faults
    if (cutAfterMessages !== undefined && this.#messageCount >= cutAfterMessages) return 0
    const leftBytes = (cutAfterBytes ?? Number.POSITIVE_INFINITY) - this.#byteCount
    if (leftBytes < lengthBytes) return Math.max(0, leftBytes)
    return this.#isDrawn(cutChance) ? this.#random.below(lengthBytes) : undefined
  }

  /** Delivers the first bytes, lets the reader take them, then breaks both directions. */
  async #cutInside(out: BytePipe, bytes: Uint8Array, cutAt: number, signal?: AbortSignal): Promise<void> {
    if (cutAt > 0) await out.write([bytes.slice(0, cutAt)], signal)
    await new Promise<void>((resolve) => void setImmediate(resolve))
    this.cut()
    throw lostError('the connection was cut by a fault')
  }

  #corrupt(bytes: Uint8Array): void {
    const at = this.#random.below(bytes.length)
    bytes[at] = (bytes[at] ?? 0) ^ (1 << this.#random.below(8))
    this.#transport.counts.corrupted += 1
  }

  #isDrawn(chance: number): boolean {
    return chance > 0 && this.#random.unit() < chance
  }
}

/** `write`, or ABORTED as soon as `signal` stops it before its turn; it then finds the signal aborted and sends nothing. */
function unlessAborted(write: Promise<void>, signal: AbortSignal, isBegun: () => boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      if (!isBegun()) reject(abortedError(signal.reason))
    }
    signal.addEventListener('abort', onAbort, { once: true })
    write.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
