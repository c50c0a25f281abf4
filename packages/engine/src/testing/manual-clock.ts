/**
 * A clock that stands still until it is told to move, and then fires what has become due, in order.
 */

import { type CancelTimer, type Clock, sleepWith } from '../clock.js'

interface Timer {
  readonly dueMs: number
  readonly callback: () => void
}

/** A {@link Clock} moved by hand. */
export class ManualClock implements Clock {
  #nowMs: number
  /** Insertion order is the order among timers due at the same instant. */
  readonly #timers = new Set<Timer>()

  /** @param startMs - Unix milliseconds at the start; default 2026-01-01T00:00:00Z */
  constructor(startMs = Date.UTC(2026, 0, 1)) {
    this.#nowMs = startMs
  }

  nowMs(): number {
    return this.#nowMs
  }

  nowNs(): bigint {
    return BigInt(this.#nowMs) * 1_000_000n
  }

  sleep(durationMs: number, signal?: AbortSignal): Promise<void> {
    return sleepWith((ms, callback) => this.setTimer(ms, callback), durationMs, signal)
  }

  setTimer(durationMs: number, callback: () => void): CancelTimer {
    const timer = { dueMs: this.#nowMs + Math.max(durationMs, 0), callback }
    this.#timers.add(timer)
    return () => void this.#timers.delete(timer)
  }

  /** Timers and sleeps that have not fired. */
  get pendingCount(): number {
    return this.#timers.size
  }

  /** When the next timer is due, in Unix milliseconds. */
  get nextDueMs(): number | undefined {
    return this.#next()?.dueMs
  }

  /**
   * Moves time on by `durationMs` and fires every timer due until then, earliest first, each at its own instant.
   *
   * After each one the event loop turns once, so that what it woke can set the next timer inside the same advance.
   */
  async advance(durationMs: number): Promise<void> {
    const endMs = this.#nowMs + durationMs
    await turn()
    for (let timer = this.#next(); timer !== undefined && timer.dueMs <= endMs; timer = this.#next()) {
      this.#timers.delete(timer)
      this.#nowMs = Math.max(this.#nowMs, timer.dueMs)
      timer.callback()
      await turn()
    }
    this.#nowMs = endMs
  }

  #next(): Timer | undefined {
    let earliest: Timer | undefined
    for (const timer of this.#timers) {
      if (earliest === undefined || timer.dueMs < earliest.dueMs) earliest = timer
    }
    return earliest
  }
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
