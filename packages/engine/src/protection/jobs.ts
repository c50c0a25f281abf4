/**
 * One job at a time, in the order asked for, each with a signal that ends it softly.
 */

import { setMaxListeners } from 'node:events'
import { abortedError, SecondsiteError, throwIfAborted } from '../errors.js'

/** Whoever may listen for the end of one job at once; far more is a leak. */
const LISTENERS_MAX = 64

export class Jobs {
  #turn: Promise<unknown> = Promise.resolve()
  #running: AbortController | undefined
  #isClosed = false

  /** Whether a job is at work. */
  get isBusy(): boolean {
    return this.#running !== undefined
  }

  /** Runs `job` when those before it are done. @throws {ABORTED} when `signal`, {@link stop} or {@link close} ended it */
  run<Result>(
    signal: AbortSignal | undefined,
    job: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    const result = this.#turn.then(() => this.#start(signal, job))
    this.#turn = result.catch(() => {})
    return result
  }

  /** Ends the job at work and waits until it has ended; those that wait for their turn stay. */
  async stop(): Promise<void> {
    const running = this.#running
    if (running === undefined) return
    const ended = this.#turn
    running.abort(new SecondsiteError('ABORTED', { message: 'another verb stopped this job' }))
    await ended
  }

  /** Ends the job at work and refuses all that come. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#running?.abort(new SecondsiteError('ABORTED', { message: 'the machine is being closed' }))
    await this.#turn
  }

  async #start<Result>(
    signal: AbortSignal | undefined,
    job: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    throwIfAborted(signal)
    if (this.#isClosed)
      throw abortedError(new SecondsiteError('ABORTED', { message: 'the machine is closed' }))
    const controller = new AbortController()
    this.#running = controller
    const { signal: own } = controller
    const both = signal === undefined ? own : AbortSignal.any([own, signal])
    // Frames ahead, answers awaited and tasks of the pool listen at once: more than Node takes for a leak.
    setMaxListeners(LISTENERS_MAX, both)
    try {
      return await job(both)
    } finally {
      this.#running = undefined
    }
  }
}
