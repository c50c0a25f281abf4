/**
 * Counters of a machine over monitoring intervals, and what its health makes of them.
 *
 * They are in the state database after each change, so they survive the process. An interval ends by the policy: its
 * counters become event 29174 and begin at zero. Health that gets worse is event 32315.
 */

import { MINUTE_MS, DAY_MS } from '../units.js'
import type { ReplicationHealth } from '../states.js'
import type { Statistics } from '../store/state-schema.js'
import { type HealthDetail, worstHealth } from './health.js'
import { type Histogram, merge, percentile, record } from './histogram.js'
import type { MachineContext } from './machine-context.js'
import type { Policy } from './policy.js'
import { type Counted, type Counters, count, ZERO_COUNTERS } from './statistics.js'
import { wallMinutes, minutesOf } from './window.js'

/** Intervals that ended longer ago are forgotten. */
const KEPT_DAYS = 31

/** How the loss in time was spread over the month: what a failover just before each cycle arrived would have lost. */
export interface RpoSpread {
  readonly sampleCount: number
  /** Milliseconds, at most 10 % too high; null without samples. */
  readonly p50Ms: number | null
  readonly p99Ms: number | null
}

export class Monitor {
  readonly #context: MachineContext
  #startMs: number
  #counters: Counters
  #rpo: Histogram
  #pastRpo: Histogram
  #health: ReplicationHealth = 'Normal'
  /** When somebody was reminded of a test failover last; undefined until that was looked up. */
  #remindedMs: number | undefined

  private constructor(context: MachineContext, row: Statistics, past: readonly Statistics[]) {
    this.#context = context
    this.#startMs = row.startMs
    this.#counters = { ...ZERO_COUNTERS, ...(JSON.parse(row.countersJson) as Partial<Counters>) }
    this.#rpo = JSON.parse(row.rpoJson) as Histogram
    this.#pastRpo = merge(past.map((one) => JSON.parse(one.rpoJson) as Histogram))
  }

  /** Takes up the counters where the last process left them. */
  static async open(context: MachineContext): Promise<Monitor> {
    const { machineId, store, clock } = context
    const rows = await store.statistics(machineId)
    const open = rows.find((row) => row.endMs === null)
    const fresh = { machineId, startMs: clock.nowMs(), endMs: null, countersJson: '{}', rpoJson: '{}' }
    return new Monitor(
      context,
      open ?? fresh,
      rows.filter((row) => row !== open),
    )
  }

  get counters(): Counters {
    return this.#counters
  }

  /** Unix milliseconds at which counting began. */
  get startMs(): number {
    return this.#startMs
  }

  get rpo(): RpoSpread {
    const all = merge([this.#pastRpo, this.#rpo])
    const sampleCount = Object.values(all).reduce((sum, samples) => sum + samples, 0)
    return { sampleCount, p50Ms: percentile(all, 50), p99Ms: percentile(all, 99) }
  }

  async count(...events: readonly Counted[]): Promise<void> {
    await this.endInterval()
    this.#counters = events.reduce(count, this.#counters)
    await this.#save()
  }

  /** A cut arrived; `lossMs` is what a failover just before would have lost. */
  async arrived(lossMs: number, ...events: readonly Counted[]): Promise<void> {
    this.#rpo = record(this.#rpo, lossMs)
    await this.count(...events)
  }

  /** Begins a new interval at once. */
  async reset(): Promise<void> {
    this.#counters = ZERO_COUNTERS
    await this.#save()
  }

  /** Ends the interval when its time has come. */
  async endInterval(): Promise<void> {
    const { machineId, store, clock, policy, events } = this.#context
    const endMs = intervalEndMs(policy, this.#startMs)
    const nowMs = clock.nowMs()
    if (nowMs < endMs) return
    await store.endStatistics(machineId, this.#startMs, endMs, nowMs - KEPT_DAYS * DAY_MS)
    await events.raise(this.#context, 'statisticsInterval', {
      ...this.#counters,
      startStatisticTimeMs: this.#startMs,
      endStatisticTimeMs: endMs,
    })
    this.#pastRpo = merge([this.#pastRpo, this.#rpo])
    this.#startMs = nowMs
    this.#counters = ZERO_COUNTERS
    this.#rpo = {}
    await this.#save()
  }

  /** Tells when health gets worse. */
  async noteHealth(health: ReplicationHealth, codes: readonly string[]): Promise<void> {
    const before = this.#health
    this.#health = health
    if (health === before || worstHealth([health, before]) === before) return
    await this.#context.events.raise(this.#context, 'healthWarning', { health, codes })
  }

  /** Tells that a test failover is due, once in so many days as it may be late; also across processes. */
  async remindOfTest(finding: HealthDetail | undefined): Promise<void> {
    if (finding === undefined) return
    const { events, clock, policy } = this.#context
    const sinceMs = clock.nowMs() - policy.testFailoverReminderDays * DAY_MS
    this.#remindedMs ??= (await events.newest(this.#context, 'testFailoverDue'))?.timeMs ?? -Infinity
    if (this.#remindedMs > sinceMs) return
    this.#remindedMs = clock.nowMs()
    await events.raise(this.#context, 'testFailoverDue', finding.params)
  }

  async #save(): Promise<void> {
    const { machineId, store } = this.#context
    await store.saveStatistics({
      machineId,
      startMs: this.#startMs,
      endMs: null,
      countersJson: JSON.stringify(this.#counters),
      rpoJson: JSON.stringify(this.#rpo),
    })
  }
}

/** When the interval in which `atMs` lies ends: intervals follow each other from the start time of a day on. */
export function intervalEndMs(policy: Policy, atMs: number): number {
  const intervalMs = policy.monitoringIntervalSeconds * 1000
  const sinceStartMinutes =
    (wallMinutes(policy.autoResynchronize, atMs) - minutesOf(policy.monitoringStart) + 24 * 60) % (24 * 60)
  const dayStartMs = Math.floor(atMs / MINUTE_MS) * MINUTE_MS - sinceStartMinutes * MINUTE_MS
  return dayStartMs + (Math.floor((atMs - dayStartMs) / intervalMs) + 1) * intervalMs
}
