/**
 * The replica's end: takes shipments in, answers questions about its images, and applies what has arrived whole.
 *
 * A shipment passes through four steps, each durable before the next: *announced* (rows in the store), *spooled* (frames
 * at their offsets, synced), *received* (every log verified against its index), *applied* (images hold it, watermark
 * moved, spool emptied). A crash between two of them continues at the later one: what is received is applied again, which
 * changes nothing that is applied already. Batches of a resynchronization stay at *received* until the delta that closes
 * it; then all of them are applied in their order as one step.
 *
 * One channel at a time: a newer one waits until what the older one has begun is settled.
 */

import type { Clock } from '../clock.js'
import type { Channel } from '../transport/channel.js'
import { errorMessage } from '../transport/messages.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { ImageKeeper } from './image-keeper.js'
import { ReplicaApplier } from './replica-applier.js'
import { ReplicaSession } from './replica-session.js'
import type { ReplicaWork } from './replica-work.js'

export class ReplicaService {
  readonly store: ReplicaStore
  readonly #work: ReplicaWork
  readonly #applier: ReplicaApplier
  readonly #images: ImageKeeper
  #turn: Promise<void> = Promise.resolve()

  constructor(store: ReplicaStore, work: ReplicaWork, clock: Clock) {
    this.store = store
    this.#work = work
    this.#applier = new ReplicaApplier(store, work, clock)
    this.#images = new ImageKeeper(store, work, clock)
  }

  /** Applies what an earlier process had received and not applied. Call it once before {@link serve}. */
  async recover(): Promise<void> {
    await this.#applier.applyReceived()
  }

  /** Serves one channel to its end; every failure is told to the primary, none is thrown. */
  serve(channel: Channel): Promise<void> {
    const served = this.#turn.then(() => this.#serve(channel))
    this.#turn = served
    return served
  }

  /** Resolves when no channel is being served. */
  async settled(): Promise<void> {
    await this.#turn
  }

  async #serve(channel: Channel): Promise<void> {
    const parts = { work: this.#work, applier: this.#applier, images: this.#images }
    const session = new ReplicaSession(channel, this.store, parts)
    try {
      await session.run()
    } catch (error) {
      await channel.send(errorMessage(error)).catch(() => {})
    } finally {
      await session.settle()
      await channel.close().catch(() => {})
    }
  }
}
