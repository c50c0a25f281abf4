/**
 * What a machine does by itself: cycles by the policy's interval, retries by the model's table, and a resynchronization
 * that is owed in its window or at its start time. It decides when; the machine does.
 *
 * A cycle is due one interval after the last one began; one that took longer is followed by the next at once. How far a
 * series of attempts is stands in the machine's row, so a restart goes on in it.
 */

import { asSecondsiteError, type SecondsiteError } from '../errors.js'
import type { CancelTimer } from '../clock.js'
import type { ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import { SECOND_MS } from '../units.js'
import type { Jobs } from './jobs.js'
import type { MachineContext } from './machine-context.js'
import { afterFailure, RETRY_WAIT_MS_MAX } from './retry.js'
import { nextWindowOpenMs } from './window.js'

/** What the scheduler may ask of its machine. */
export interface Scheduled {
  state(): ReplicationState
  row(): Machine
  cycle(signal: AbortSignal): Promise<unknown>
  /** Whether disks that joined the machine are to be copied, between the cycles. */
  isCopying(): boolean
  copy(signal: AbortSignal, mayGoOn: () => boolean): Promise<void>
  initial(signal: AbortSignal): Promise<void>
  resync(signal: AbortSignal): Promise<unknown>
  /** Remembers when the next attempt of a series comes. */
  setRetry(retryAttempt: number, retryAtMs: number): Promise<void>
  /** Called every few seconds; its failures are remembered by the machine, not thrown. */
  watch(): Promise<void>
}

/** How often the machine is looked at between two cycles, whatever keeps these from running. */
const WATCH_MS = 5 * SECOND_MS
/** What is due while a job of somebody else is at work is tried again after this time. */
const BUSY_WAIT_MS = SECOND_MS

export class Scheduler {
  readonly #context: MachineContext
  readonly #jobs: Jobs
  readonly #machine: Scheduled
  #cancel: CancelTimer | undefined
  #cancelWatch: CancelTimer | undefined
  #watching: Promise<void> = Promise.resolve()
  #isArmed = false
  #cycleStartedMs: number | undefined

  constructor(context: MachineContext, jobs: Jobs, machine: Scheduled) {
    this.#context = context
    this.#jobs = jobs
    this.#machine = machine
  }

  /** Sets the next due work by the present state; nothing is due in states where somebody must act. */
  arm(): void {
    this.#isArmed = true
    this.#watchLater()
    const waitMs = this.#waitMs()
    if (waitMs !== undefined) return this.#set(waitMs)
    // What was due in an earlier state must not begin a resynchronization that nobody has asked for in this one.
    if (!this.#jobs.isBusy || this.#machine.state() === 'WaitingForStartResynchronize') this.#unset()
  }

  /** A cycle has begun that was asked for by others: the next one is due an interval after it. */
  began(): void {
    this.#cycleStartedMs = this.#context.clock.nowMs()
    if (this.#isArmed) this.arm()
  }

  /** Nothing happens by itself until {@link arm}. */
  disarm(): void {
    this.#isArmed = false
    this.#unset()
    this.#cancelWatch?.()
    this.#cancelWatch = undefined
  }

  /** Resolves when nothing that was begun here goes on; after {@link disarm} and the end of the jobs. */
  async settled(): Promise<void> {
    await this.#watching
  }

  /** After a recoverable failure the next attempt comes by the table of the model. */
  async retry(error: SecondsiteError): Promise<void> {
    const nowMs = this.#context.clock.nowMs()
    const { retryAttempt: failureCount, retryAtMs: atMs } = this.#machine.row()
    const decision = afterFailure({ failureCount, atMs }, error, nowMs)
    if (decision.kind === 'stop') return
    await this.#machine.setRetry(decision.failureCount, decision.atMs)
    if (this.#isArmed) this.#set(decision.atMs - nowMs)
  }

  #watchLater(): void {
    this.#cancelWatch?.()
    this.#cancelWatch = this.#context.clock.setTimer(WATCH_MS, () => {
      this.#watching = this.#watch()
    })
  }

  async #watch(): Promise<void> {
    await this.#machine.watch()
    if (this.#isArmed) this.#watchLater()
  }

  #unset(): void {
    this.#cancel?.()
    this.#cancel = undefined
  }

  /** @param state - the only one in which it is still due then; default any */
  #set(waitMs: number, state?: ReplicationState): void {
    this.#unset()
    this.#cancel = this.#context.clock.setTimer(Math.max(0, waitMs), () => {
      if (state === undefined || state === this.#machine.state()) void this.#due()
    })
  }

  #waitMs(): number | undefined {
    const nowMs = this.#context.clock.nowMs()
    const { retryAtMs } = this.#machine.row()
    const attemptMs = retryAtMs === null ? undefined : Math.min(retryAtMs - nowMs, RETRY_WAIT_MS_MAX)
    switch (this.#machine.state()) {
      case 'Replicating':
        return attemptMs ?? (this.#machine.isCopying() ? 0 : this.#cycleWaitMs(nowMs))
      case 'InitialReplicationInProgress':
      case 'Resynchronizing':
        return this.#jobs.isBusy ? undefined : (attemptMs ?? 0)
      case 'WaitingForStartResynchronize':
        return this.#resyncWaitMs(nowMs)
      default:
        return undefined
    }
  }

  #cycleWaitMs(nowMs: number): number {
    const intervalMs = this.#context.policy.replicationFrequencySeconds * SECOND_MS
    this.#cycleStartedMs ??= nowMs
    // A clock that was set back makes no cycle wait for longer than that.
    return Math.min(this.#cycleStartedMs + intervalMs - nowMs, intervalMs)
  }

  #resyncWaitMs(nowMs: number): number | undefined {
    const window = this.#context.policy.autoResynchronize
    const { resyncStartMs } = this.#machine.row()
    if (resyncStartMs !== null) return resyncStartMs - nowMs
    if (!window.enabled) return undefined
    return window.immediately ? 0 : nextWindowOpenMs(window, nowMs) - nowMs
  }

  /** A cycle that found somebody else at work is not forgotten; in other states whoever is at work sets what is due. */
  #dueLater(): void {
    if (this.#machine.state() === 'Replicating') this.#set(BUSY_WAIT_MS, 'Replicating')
  }

  /** Failures were remembered and counted by the machine, which also asked for the retry: nothing is lost here. */
  async #due(): Promise<void> {
    if (!this.#isArmed) return
    if (this.#jobs.isBusy) return this.#dueLater()
    try {
      await this.#jobs.run(undefined, (signal) => this.#work(signal))
      if (this.#isArmed) this.arm()
    } catch (error) {
      if (asSecondsiteError(error).code === 'ABORTED' && this.#isArmed) this.arm()
    }
  }

  async #work(signal: AbortSignal): Promise<void> {
    switch (this.#machine.state()) {
      case 'Replicating':
        return this.#cycleOrCopy(signal)
      case 'InitialReplicationInProgress':
        return this.#machine.initial(signal)
      case 'WaitingForStartResynchronize':
      case 'Resynchronizing':
        await this.#machine.resync(signal)
    }
  }

  /** Copying fills the time between two cycles, and gives way to whoever waits. */
  async #cycleOrCopy(signal: AbortSignal): Promise<void> {
    const isCycleDue = (): boolean => this.#cycleWaitMs(this.#context.clock.nowMs()) <= 0
    const isRetry = this.#machine.row().retryAtMs !== null
    if (this.#machine.isCopying() && !isRetry && !isCycleDue())
      return this.#machine.copy(signal, () => !isCycleDue() && !this.#jobs.hasWaiting)
    this.#cycleStartedMs = this.#context.clock.nowMs()
    await this.#machine.cycle(signal)
  }
}
