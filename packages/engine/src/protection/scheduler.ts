/**
 * What a machine does by itself: cycles by the policy's interval, retries by the model's table, and a resynchronization
 * that is owed in its window or at its start time. It decides when; the machine does.
 */

import { asSecondsiteError, type SecondsiteError } from '../errors.js'
import type { CancelTimer } from '../clock.js'
import type { ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import { SECOND_MS } from '../units.js'
import type { Jobs } from './jobs.js'
import type { MachineContext } from './machine-context.js'
import { afterFailure } from './retry.js'
import { nextWindowOpenMs } from './window.js'

/** What the scheduler may ask of its machine. */
export interface Scheduled {
  state(): ReplicationState
  row(): Machine
  /** @returns how long it took, in milliseconds */
  cycle(signal: AbortSignal): Promise<number>
  initial(signal: AbortSignal): Promise<void>
  resync(signal: AbortSignal): Promise<unknown>
  /** Whether unreleased logs are over the threshold; asked often, so it must be cheap. */
  isOverThreshold(): boolean
  /** Brings the logs below the threshold; its failures are remembered by the machine, not thrown. */
  relieve(): Promise<void>
}

/** How often the logs are looked at between two cycles, whatever keeps these from running. */
const WATCH_MS = 5 * SECOND_MS

/** States in which logs grow and no job looks at them. */
const WATCHED: readonly ReplicationState[] = ['Replicating', 'Suspended', 'Error']

export class Scheduler {
  readonly #context: MachineContext
  readonly #jobs: Jobs
  readonly #machine: Scheduled
  #cancel: CancelTimer | undefined
  #cancelWatch: CancelTimer | undefined
  #isArmed = false
  #failureCount = 0

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
    if (waitMs !== undefined) this.#set(waitMs)
  }

  /** Nothing happens by itself until {@link arm}. */
  disarm(): void {
    this.#isArmed = false
    this.#cancel?.()
    this.#cancel = undefined
    this.#cancelWatch?.()
    this.#cancelWatch = undefined
  }

  /** After a recoverable failure the next attempt comes by the table of the model. */
  retry(error: SecondsiteError): void {
    const decision = afterFailure(
      { failureCount: this.#failureCount, atMs: null },
      error,
      this.#context.clock.nowMs(),
    )
    if (decision.kind === 'stop' || !this.#isArmed) return
    this.#failureCount = decision.failureCount
    this.#set(decision.atMs - this.#context.clock.nowMs())
  }

  #watchLater(): void {
    this.#cancelWatch?.()
    this.#cancelWatch = this.#context.clock.setTimer(WATCH_MS, () => void this.#watch())
  }

  /** A job that is at work looks at the threshold itself. */
  async #watch(): Promise<void> {
    const isDue =
      WATCHED.includes(this.#machine.state()) && !this.#jobs.isBusy && this.#machine.isOverThreshold()
    try {
      if (this.#isArmed && isDue) await this.#jobs.run(undefined, () => this.#machine.relieve())
    } catch (error) {
      if (asSecondsiteError(error).code !== 'ABORTED') throw error
    }
    if (this.#isArmed) this.#watchLater()
  }

  #set(waitMs: number): void {
    this.#cancel?.()
    this.#cancel = this.#context.clock.setTimer(Math.max(0, waitMs), () => void this.#due())
  }

  #waitMs(): number | undefined {
    const { replicationFrequencySeconds, autoResynchronize } = this.#context.policy
    const nowMs = this.#context.clock.nowMs()
    switch (this.#machine.state()) {
      case 'Replicating':
        return replicationFrequencySeconds * SECOND_MS
      case 'InitialReplicationInProgress':
      case 'Resynchronizing':
        return this.#jobs.isBusy ? undefined : 0
      case 'WaitingForStartResynchronize':
        return this.#resyncWaitMs(autoResynchronize, nowMs)
      default:
        return undefined
    }
  }

  #resyncWaitMs(window: MachineContext['policy']['autoResynchronize'], nowMs: number): number | undefined {
    const { resyncStartMs } = this.#machine.row()
    if (resyncStartMs !== null) return resyncStartMs - nowMs
    if (!window.enabled) return undefined
    return window.immediately ? 0 : nextWindowOpenMs(window, nowMs) - nowMs
  }

  /** Failures were remembered and counted by the machine, which also asked for the retry: nothing is lost here. */
  async #due(): Promise<void> {
    if (!this.#isArmed || this.#jobs.isBusy) return
    try {
      await this.#jobs.run(undefined, (signal) => this.#work(signal))
      this.#failureCount = 0
      if (this.#isArmed) this.arm()
    } catch (error) {
      if (asSecondsiteError(error).code === 'ABORTED' && this.#isArmed) this.arm()
    }
  }

  async #work(signal: AbortSignal): Promise<void> {
    switch (this.#machine.state()) {
      case 'Replicating':
        await this.#machine.cycle(signal)
        return
      case 'InitialReplicationInProgress':
        return this.#machine.initial(signal)
      case 'WaitingForStartResynchronize':
      case 'Resynchronizing':
        await this.#machine.resync(signal)
    }
  }
}
