/**
 * When to try again after a recoverable error: 1, 2, 4, 8 and 10 minutes, then every 30, for ever.
 *
 * The numbers are the waits between attempts. A success, a resume or changed settings start the series anew. The attempt
 * count is kept in the state database, so a restart goes on in the series instead of hammering a broken link.
 */

import { asSecondsiteError } from '../errors.js'
import type { Random } from '../random.js'
import { MINUTE_MS } from '../units.js'

/** Waits after the first failures, in minutes. */
const FIRST_WAITS_MINUTES = [1, 2, 4, 8, 10] as const
/** Every wait after those, in minutes. */
const LATER_WAIT_MINUTES = 30
/** No attempt is farther away, whatever a clock that was set back says. */
export const RETRY_WAIT_MS_MAX = LATER_WAIT_MINUTES * MINUTE_MS

/** A spread of the waits, so that a site's machines do not all return at the same second. */
export interface Jitter {
  readonly random: Random
  /** Largest share of a wait that is added, 0 to 100. */
  readonly percent: number
}

/**
 * The wait before the next attempt, in milliseconds.
 * @param failureCount - failures since the last success, 1 or more
 */
export function retryWaitMs(failureCount: number, jitter?: Jitter): number {
  const waitMs = (FIRST_WAITS_MINUTES[failureCount - 1] ?? LATER_WAIT_MINUTES) * MINUTE_MS
  if (jitter === undefined) return waitMs
  return waitMs + Math.floor(waitMs * (jitter.percent / 100) * jitter.random.unit())
}

/** What to do after a failure. */
export type RetryDecision =
  | { readonly kind: 'retry'; readonly failureCount: number; readonly atMs: number }
  | { readonly kind: 'stop' }

/** How far a series of attempts is. */
export interface RetryState {
  /** Failures since the last success. */
  readonly failureCount: number
  /** Unix milliseconds of the next attempt; null when none is due. */
  readonly atMs: number | null
}

/** No failure since the last success. */
export const NO_RETRY: RetryState = { failureCount: 0, atMs: null }

/** Decides after a failed attempt: recoverable errors are tried again, the others stop replication. */
export function afterFailure(
  state: RetryState,
  error: unknown,
  nowMs: number,
  jitter?: Jitter,
): RetryDecision {
  if (asSecondsiteError(error).retryable === 'non-recoverable') return { kind: 'stop' }
  const failureCount = state.failureCount + 1
  return { kind: 'retry', failureCount, atMs: nowMs + retryWaitMs(failureCount, jitter) }
}
