/**
 * What the keeper tells the engine, one line of JSON each.
 */

import type { PlainError } from '../errors.js'

/** Why the keeper thawed: told to, its limit had passed, the freeze had failed, or the engine was gone. */
export type ThawReason = 'asked' | 'limit' | 'failed' | 'alone'

/** A line of the keeper's output. */
export type KeeperMessage =
  | { readonly event: 'ready' }
  /** A command runs in this process group; who finds the keeper dead ends it before thawing. */
  | { readonly event: 'group'; readonly processGroup: number }
  | { readonly event: 'frozen' }
  | { readonly event: 'failed'; readonly error: PlainError }
  | ThawedMessage

/** The keeper's last word. */
export interface ThawedMessage {
  readonly event: 'thawed'
  readonly reason: ThawReason
  /** Whether everything had been at rest until then. */
  readonly wasFrozen: boolean
  /** Milliseconds from the begin of the freeze. */
  readonly frozenMs: number
  /** Why it could not be thawed; null when it could. */
  readonly error: PlainError | null
}
