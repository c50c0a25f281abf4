/**
 * Time as a parameter: whatever waits or stamps takes a {@link Clock}, so a test moves time by hand.
 */

import { abortedError, throwIfAborted } from './errors.js'

/** Stops a timer; calling it again, or after the timer has fired, does nothing. */
export type CancelTimer = () => void

/** The source of time. */
export interface Clock {
  /** Unix time in milliseconds. */
  nowMs(): number
  /** Unix time in nanoseconds. */
  nowNs(): bigint
  /**
   * Resolves after `durationMs`.
   * @throws {ABORTED} as soon as `signal` is aborted
   */
  sleep(durationMs: number, signal?: AbortSignal): Promise<void>
  /** Calls `callback` once after `durationMs`; a pending timer does not keep the process alive. */
  setTimer(durationMs: number, callback: () => void): CancelTimer
}

/** `setTimeout` turns anything longer into 1 ms, so long waits are cut into pieces of this. */
const TIMEOUT_MS_MAX = 2 ** 31 - 1

function systemTimer(durationMs: number, callback: () => void, holdsProcess: boolean): CancelTimer {
  let timer: NodeJS.Timeout | undefined
  const arm = (leftMs: number): void => {
    const stepMs = Math.min(Math.max(leftMs, 0), TIMEOUT_MS_MAX)
    timer = setTimeout(() => (leftMs > stepMs ? arm(leftMs - stepMs) : callback()), stepMs)
    if (!holdsProcess) timer.unref()
  }
  arm(durationMs)
  return () => clearTimeout(timer)
}

/** A sleep over any kind of timer; shared by all clocks so that they abort alike. */
export function sleepWith(
  setTimer: (durationMs: number, callback: () => void) => CancelTimer,
  durationMs: number,
  signal?: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    throwIfAborted(signal)
    const onAbort = (): void => {
      cancel()
      reject(abortedError(signal?.reason))
    }
    const cancel = setTimer(durationMs, () => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    })
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** The clock of this computer. */
export const systemClock: Clock = {
  nowMs: () => Date.now(),
  // Millisecond steps: a finer clock beside Date would drift away from it when the system's time is corrected.
  nowNs: () => BigInt(Date.now()) * 1_000_000n,
  sleep: (durationMs, signal) =>
    sleepWith((ms, callback) => systemTimer(ms, callback, true), durationMs, signal),
  setTimer: (durationMs, callback) => systemTimer(durationMs, callback, false),
}
