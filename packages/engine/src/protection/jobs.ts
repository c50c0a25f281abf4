/**
 * One job at a time, in the order asked for, each with a signal that ends it softly.
 *
 * Who stops the jobs does not wait for those that have not begun: they end at once, with what had been asked for undone.
 */

import { setMaxListeners } from 'node:events'
import { abortedError, SecondsiteError, throwIfAborted } from '../errors.js'

/** Whoever may listen for the end of one job at once; far more is a leak. */
const LISTENERS_MAX = 64

export class Jobs {
  #turn: Promise<unknown> = Promise.resolve()
  #running: AbortController | undefined
  #isClosed = false
  /** Those that wait for their turn: aborted when they are not to begin. */
  readonly #waiting = new Set<AbortController>()

  /** Whether a job is at work. */
  get isBusy(): boolean {
    return this.#running !== undefined
  }

  /** Whether a job waits for its turn. */
  get hasWaiting(): boolean {
    return this.#waiting.size > 0
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  /** Runs `job` when those before it are done. @throws {ABORTED} when `signal`, {@link stop} or {@link close} ended it */
  run<Result>(
    signal: AbortSignal | undefined,
    job: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    const controller = new AbortController()
    this.#waiting.add(controller)
    const result = this.#turn.then(() => this.#start(controller, signal, job))
    this.#turn = result.catch(() => {})
    return result
  }

  /** Ends the job at work and those that wait for their turn, and waits until they have ended. */
  async stop(): Promise<void> {
    await this.#end('another verb stopped this job')
  }

  /** As {@link stop}, and refuses all that come. */
  async close(): Promise<void> {
    this.#isClosed = true
    await this.#end('the machine is being closed')
  }

  async #end(message: string): Promise<void> {
    const ended = this.#turn
    const reason = new SecondsiteError('ABORTED', { message })
    for (const job of this.#waiting) job.abort(reason)
    this.#running?.abort(reason)
    await ended
  }

  async #start<Result>(
    controller: AbortController,
    signal: AbortSignal | undefined,
    job: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    this.#waiting.delete(controller)
    throwIfAborted(signal)
    throwIfAborted(controller.signal)
    if (this.#isClosed)
      throw abortedError(new SecondsiteError('ABORTED', { message: 'the machine is closed' }))
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
