/**
 * What holds the applications of a machine still while its disks are cut: a pair of actions, freeze and thaw.
 *
 * A hook is data (`settings.ts`), so that another process can carry it out: the keeper (`keeper.ts`) is started before the
 * freeze and thaws when we end, by whatever that is. The ways to freeze are `command-quiesce.ts`, `fsfreeze.ts` and
 * `guest-agent-quiesce.ts`; each is small, and knows nothing of limits but the signal it is given.
 */

import type { SecondsiteError } from '../errors.js'

/** Freezes and thaws. */
export interface Quiesce {
  /**
   * Brings the applications to rest; when it resolves, they write nothing until {@link thaw}.
   *
   * It ends, by whatever error, soon after `signal` is aborted. What it has frozen then stays frozen until `thaw`.
   */
  freeze(signal: AbortSignal): Promise<void>
  /**
   * Lets the applications go on. Safe to call at any time, any number of times, also where nothing is frozen.
   * @returns whether they had been at rest until now; false says that somebody else thawed them before
   */
  thaw(): Promise<boolean>
}

/** What came of a freeze. */
export interface QuiesceReport {
  /** Whether the applications were at rest during the whole of the cut. */
  readonly isConsistent: boolean
  /** Milliseconds from the begin of the freeze to the end of the thaw, so at least as long as they were frozen. */
  readonly frozenMs: number
  /** Whether nothing is frozen any more, as far as can be told. */
  readonly isThawed: boolean
  /** Why the cut is not application-consistent, or was not thawed; null when all went well. */
  readonly error: SecondsiteError | null
}
