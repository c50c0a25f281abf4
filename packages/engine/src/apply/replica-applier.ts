/**
 * Brings received shipments into the images, in the order of their numbers.
 *
 * All shipments up to the newest delta (or batch of initial replication) are one step: marked as applying, what they
 * overwrite saved for the newest recovery point, written to every disk, synced, marked as applied, and only then removed
 * from the spool. Logs are idempotent, so a step that was cut short is done again from its start. A disk that shrinks with
 * it keeps its size until its logs are in the image.
 */

import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { parseShrinks } from '../disk-shrink.js'
import { isSecondsiteError, toPlainError } from '../errors.js'
import { InsightStore } from '../store/insight-store.js'
import type { Receipt, ReplicaDisk, SpooledLog } from '../store/replica-schema.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { ChurnMeter } from './churn-meter.js'
import { type DueShrink, PointKeeper } from './point-keeper.js'
import type { ReplicaWork } from './replica-work.js'
import { Spool } from './spool.js'

export class ReplicaApplier {
  readonly #store: ReplicaStore
  readonly #work: ReplicaWork
  readonly #keeper: PointKeeper
  readonly #clock: Clock
  readonly #meter: ChurnMeter
  readonly insight: InsightStore
  readonly spool: Spool

  constructor(store: ReplicaStore, work: ReplicaWork, clock: Clock) {
    this.#store = store
    this.#work = work
    this.#clock = clock
    this.#keeper = new PointKeeper(store, work, clock)
    this.#meter = new ChurnMeter(store, work, clock)
    this.insight = new InsightStore(store, clock)
    this.spool = new Spool(join(store.directory, 'spool'))
  }

  /**
   * Applies everything received that may be applied.
   * @returns the newest applied shipment of this call; undefined when there was nothing to do
   */
  async applyReceived(): Promise<Receipt | undefined> {
    const cycles = await this.#applicable()
    const last = cycles.at(-1)
    if (last === undefined) return undefined
    const logs = await this.#logsOf(cycles)
    const disks = await this.#store.disks()
    const shrinks = dueShrinks(cycles, disks)
    await this.#work.step('apply.before-marking')
    await this.#applyAll(disks, logs, async () => {
      // What a crash has cut off: logs from before the shrink reach to the old end.
      for (const { disk } of shrinks) await this.#work.growImage(disk.imagePath, disk.sizeBytes)
      await this.#begin(cycles, disks, logs, shrinks)
    })
    await this.#shrink(shrinks)
    await this.#work.step('apply.before-watermark')
    await this.#store.markApplied(cycles.map((cycle) => cycle.cycleNumber))
    await this.#work.step('apply.before-cleaning')
    await this.#clean(logs)
    return last
  }

  /** A measurement that fails leaves its cuts without one: whatever hinders it hinders applying more, and is met there. */
  async #begin(
    cycles: readonly Receipt[],
    disks: readonly ReplicaDisk[],
    logs: readonly SpooledLog[],
    shrinks: readonly DueShrink[],
  ): Promise<void> {
    await this.#keeper.begin(cycles, disks, logs, shrinks)
    await this.#meter.measure(cycles, disks, logs).catch(() => {})
  }

  /** Throws held and unfinished shipments away, with their files; what is applied stays. */
  async discardOpen(): Promise<void> {
    await this.#discard(await this.#store.openCycles())
  }

  /** Throws away what arrived of shipments that the primary no longer sends: others than `cycleNumber`. */
  async discardUnfinished(cycleNumber: number): Promise<void> {
    const open = await this.#store.openCycles()
    await this.#discard(
      open.filter((cycle) => cycle.state === 'receiving' && cycle.cycleNumber !== cycleNumber),
    )
  }

  async #discard(cycles: readonly Receipt[]): Promise<void> {
    const logs = await this.#logsOf(cycles)
    await this.#store.dropCycles(cycles.map((cycle) => cycle.cycleNumber))
    for (const log of logs) this.spool.remove({ log: log.path, index: log.indexPath })
  }

  /** Removes files that a crash left behind after their shipment was applied. */
  async cleanApplied(): Promise<void> {
    await this.#clean(await this.#store.appliedLogs())
  }

  /** The received shipments up to the newest that is not held. */
  async #applicable(): Promise<Receipt[]> {
    const open = await this.#store.openCycles()
    const firstGap = open.findIndex((cycle) => cycle.state === 'receiving')
    const received = firstGap === -1 ? open : open.slice(0, firstGap)
    const last = received.findLastIndex((cycle) => cycle.kind !== 'resync')
    return received.slice(0, last + 1)
  }

  async #logsOf(cycles: readonly Receipt[]): Promise<SpooledLog[]> {
    const lists = await Promise.all(cycles.map((cycle) => this.#store.logsOfCycle(cycle.cycleNumber)))
    return lists.flat()
  }

  /** A log that was damaged here can never be applied: what is open goes, so that a resynchronization can begin. */
  async #applyAll(
    disks: readonly ReplicaDisk[],
    logs: readonly SpooledLog[],
    begin: () => Promise<void>,
  ): Promise<void> {
    try {
      await begin()
      await this.#work.step('apply.before-writing')
      const applied = await Promise.allSettled(disks.map((disk) => this.#applyTo(disk, logs)))
      const failure = applied.find((one) => one.status === 'rejected')
      if (failure) throw failure.reason
    } catch (error) {
      if (isDamage(error)) await this.discardOpen()
      throw error
    }
  }

  /** Everything from before is in the images, and what points need of the end is saved. */
  async #shrink(shrinks: readonly DueShrink[]): Promise<void> {
    for (const { disk, toBytes } of shrinks) {
      await this.#work.step('apply.before-noting-size')
      await this.#store.markImage(disk.diskId, toBytes)
      await this.#work.step('apply.before-shrinking')
      await this.#work.shrinkImage(disk.imagePath, toBytes)
    }
  }

  async #applyTo(disk: ReplicaDisk, logs: readonly SpooledLog[]): Promise<void> {
    const paths = logs.filter((log) => log.diskId === disk.diskId).map((log) => log.path)
    if (paths.length > 0) await this.#work.applyLogs(disk.imagePath, paths)
  }

  /**
   * Lets go of recovery points that no rule keeps, and of test failovers that nobody holds any more. Nothing depends on it at
   * once: a failure costs room, not data, is told to the primary, and the next call tries again.
   */
  async expire(): Promise<void> {
    try {
      await this.#work.endExpiredTests(this.#store, this.#clock)
      await this.#keeper.expire()
      const oldest = (await this.#keeper.points()).at(0)?.cutTimeMs ?? Number.MAX_SAFE_INTEGER
      await this.insight.pruneChurn(oldest)
    } catch (error) {
      const { code, message, details } = toPlainError(error)
      // A store that takes no row takes no shipment either, which is told as an error.
      await this.insight.addNotice('EXPIRY_FAILED', { code, message, ...details }).catch(() => {})
    }
  }

  async #clean(logs: readonly SpooledLog[]): Promise<void> {
    for (const log of await this.#keeper.keepLogs(logs))
      this.spool.remove({ log: log.path, index: log.indexPath })
    await this.#store.forgetLogs(logs.map((log) => log.logId))
  }
}

/** The shrinks that shipments bring and that were not carried out. */
function dueShrinks(cycles: readonly Receipt[], disks: readonly ReplicaDisk[]): DueShrink[] {
  const all = cycles.flatMap(({ shrinksJson }) => parseShrinks(shrinksJson))
  return disks.flatMap((disk) => {
    const due = all.filter(({ diskId, shrinkId, toBytes }) => {
      return diskId === disk.diskId && shrinkId !== disk.lastShrinkId && toBytes < disk.sizeBytes
    })
    const last = due.at(-1)
    return last ? [{ disk, toBytes: last.toBytes }] : []
  })
}

/** Reading a log can fail by its medium and work later; every other trouble with it stays. */
function isDamage(error: unknown): boolean {
  return isSecondsiteError(error) && error.code.startsWith('LOG_') && error.retryable === 'non-recoverable'
}
