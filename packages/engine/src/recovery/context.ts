/**
 * What the verbs of recovery share: the replica's store, its rows, workers, and everything that is not deterministic.
 */

import type { Clock } from '../clock.js'
import { SecondsiteError, throwIfAborted } from '../errors.js'
import type { WorkerPool } from '../pool/pool.js'
import type { Random } from '../random.js'
import type { ReplicationState } from '../states.js'
import type { RecoveryStore } from '../store/recovery-store.js'
import type { Identity, Receipt } from '../store/replica-schema.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { undoFolder } from '../store/undo-folder.js'
import { MINUTE_MS, SECOND_MS } from '../units.js'

/** Verbs and events of the replica side that recovery has. */
export type RecoveryTrigger =
  | 'startFailover'
  | 'startTestFailover'
  | 'failoverStarted'
  | 'changeRecoveryPoint'
  | 'cancelFailover'
  | 'commitFailover'
  | 'reverseReplication'
  | 'failback'
  | 'finalizeFailback'

export interface RecoveryContext {
  readonly directory: string
  readonly store: ReplicaStore
  readonly recovery: RecoveryStore
  readonly pool: WorkerPool
  readonly clock: Clock
  readonly random: Random
  /** Where a trigger leads by the state table. @throws {INVALID_STATE} with the verbs that the state takes */
  next(
    state: ReplicationState,
    trigger: RecoveryTrigger,
    machine: string,
    stateBefore?: ReplicationState,
  ): ReplicationState
  /**
   * Applies what was received, as the only one who does, unless another process has the store.
   * @returns false when another process has it, and applies by itself
   */
  applyReceived(): Promise<boolean>
  /** Removes what no rule wants any more, unless another process has the store, which does so after its next cycle. */
  letGo(): Promise<void>
  /** Whether another process has the store, which replicates into it then. */
  isReplicatedInto(): Promise<boolean>
  /** Called with the name of a step just before it; a test kills the process there. */
  step(name: string): Promise<void> | void
}

/** How long the process that has the store may take to apply what was received. */
const APPLY_WAIT_MAX_MS = 10 * MINUTE_MS
/** Between two looks at it. */
const APPLY_LOOK_MS = 100
/** A held point stays that long without a pin: opening a view takes far less. */
export const HOLD_MS = 5 * MINUTE_MS

/** Whose replica it is. @throws {POINT_NOT_FOUND} when nobody has replicated into the store */
export async function identityOf(context: RecoveryContext): Promise<Identity> {
  const identity = await context.store.identity()
  if (identity) return identity
  throw new SecondsiteError('POINT_NOT_FOUND', {
    message: `nothing was ever replicated into ${context.directory}`,
    details: { path: context.directory, reason: 'no machine' },
  })
}

/** The points of each disk that somebody reads, one more often for each who does. */
export async function readPoints({
  store,
  pool,
  directory,
}: RecoveryContext): Promise<{ disk: string; points: number[] }[]> {
  const disks = await store.disks()
  return Promise.all(
    disks.map(async (disk) => {
      const call = { call: 'pinnedPoints' as const, args: [undoFolder(directory, disk)] }
      return { disk: disk.name, points: (await pool.run('native', call)) as number[] }
    }),
  )
}

/**
 * Everything that was received is in the images afterwards, unless it waits for more.
 * @throws {STORE_BUSY} when the process that has the store does not come to an end
 */
export async function settleImages(context: RecoveryContext, signal?: AbortSignal): Promise<void> {
  // What is held for the closing cut of a resynchronization waits for the primary.
  await waitFor(context, ({ state, kind }) => state === 'receiving' || kind === 'resync', signal)
}

/** Nobody writes to the images afterwards. @throws {STORE_BUSY} */
export async function awaitQuiet(context: RecoveryContext, signal?: AbortSignal): Promise<void> {
  await waitFor(context, ({ state }) => state !== 'applying', signal)
}

async function waitFor(
  context: RecoveryContext,
  isSettled: (cycle: Receipt) => boolean,
  signal?: AbortSignal,
): Promise<void> {
  const endMs = context.clock.nowMs() + APPLY_WAIT_MAX_MS
  while (!(await context.applyReceived())) {
    if ((await context.store.openCycles()).every(isSettled)) return
    throwIfAborted(signal)
    if (context.clock.nowMs() > endMs) throw busy(context)
    await context.clock.sleep(APPLY_LOOK_MS, signal)
  }
}

function busy({ directory }: RecoveryContext): SecondsiteError {
  return new SecondsiteError('STORE_BUSY', {
    message: `another process has been applying to ${directory} for ${APPLY_WAIT_MAX_MS / SECOND_MS} s`,
    details: { path: directory, reason: 'shipments are being applied' },
  })
}
