/**
 * One job at a time, in the order asked for, each with a signal that ends it softly.
 */

import { abortedError, SecondsiteError, throwIfAborted } from '../errors.js'

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
    try {
      return await job(
        signal === undefined ? controller.signal : AbortSignal.any([controller.signal, signal]),
      )
    } finally {
      this.#running = undefined
    }
  }
}
