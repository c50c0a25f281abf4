/**
 * Opens the replica in a folder, with what the recovery stage needs: workers, rows, the state table, and the applier.
 */

import { resolve } from 'node:path'
import { ReplicaApplier } from './apply/replica-applier.js'
import { type Clock, systemClock } from './clock.js'
import { isSecondsiteError } from './errors.js'
import { poolOf, type WorkerPool } from './pool/pool.js'
import { requireTransition } from './protection/machine.js'
import { type Random, systemRandom } from './random.js'
import type { RecoveryContext } from './recovery/context.js'
import { Replica } from './recovery/replica.js'
import { RecoveryStore } from './store/recovery-store.js'
import { ReplicaStore } from './store/replica-store.js'
import { replicaWork, type StepObserver } from './works.js'

/** Options of {@link openReplica}; all but the first are for tests and tuning. */
export interface ReplicaOptions {
  /** Folder of the replica, as it was given to `enable`. */
  readonly directory: string
  readonly clock?: Clock
  readonly random?: Random
  /** Worker threads, default the number of processors. */
  readonly threadCountMax?: number
  /** Uses the threads of that pool, which stays open longer, instead of its own. */
  readonly threadsOf?: WorkerPool
  /** Called with the name of each step just before it; a test ends the process there. */
  readonly step?: StepObserver
}

/**
 * Opens the replica of a machine by its folder alone, beside whoever replicates into it.
 *
 * @example
 * await using replica = await openReplica({ directory: './replica' })
 * for (const point of await replica.points()) console.log(point.number, new Date(point.cutTimeMs))
 * const failover = await replica.startFailover({ point: 'Latest' })
 * const nbd = await failover.exportNbd({ listen: 'unix:/run/web01.sock' })
 * @throws {REPLICA_NOT_FOUND, STORE_VERSION_NEWER, STORE_CORRUPT, STORE_BUSY, ACCESS_DENIED}
 */
export async function openReplica(options: ReplicaOptions): Promise<Replica> {
  const { clock = systemClock, random = systemRandom, step = () => {} } = options
  const directory = resolve(options.directory)
  const store = ReplicaStore.openBeside(directory, clock)
  const pool = poolOf(options)
  const context: RecoveryContext = {
    directory,
    store,
    recovery: new RecoveryStore(store, clock),
    pool,
    clock,
    random,
    step,
    next: (state, trigger, machine, stateBefore) => {
      const facts = { isInitialReplicationDone: true, ...(stateBefore ? { stateBefore } : {}) }
      return requireTransition('replica', state, trigger, facts, machine)
    },
    applyReceived: () =>
      asOwner(directory, clock, pool, step, async (applier) => {
        await applier.applyReceived()
      }),
    letGo: async () => {
      await asOwner(directory, clock, pool, step, (applier) => applier.expire())
    },
    isReplicatedInto: () => isReplicatedInto(directory, clock),
  }
  const replica = new Replica(context, async () => {
    await pool.close()
    await store.close()
  })
  try {
    await replica.endExpiredTests()
    return replica
  } catch (error) {
    await replica.close()
    throw error
  }
}

async function isReplicatedInto(directory: string, clock: Clock): Promise<boolean> {
  try {
    await ReplicaStore.open(directory, clock).close()
    return false
  } catch (error) {
    if (isSecondsiteError(error, 'STORE_IN_USE')) return true
    throw error
  }
}

/** As the owner of the store for a moment. @returns false when another process is */
async function asOwner(
  directory: string,
  clock: Clock,
  pool: WorkerPool,
  step: StepObserver,
  action: (applier: ReplicaApplier) => Promise<void>,
): Promise<boolean> {
  try {
    await using store = ReplicaStore.open(directory, clock)
    await action(new ReplicaApplier(store, replicaWork(pool, step), clock))
    return true
  } catch (error) {
    if (isSecondsiteError(error, 'STORE_IN_USE')) return false
    // What arrived last before a failover stays unapplied until that is cancelled.
    if (isSecondsiteError(error, 'REPLICA_FAILED_OVER')) return true
    throw error
  }
}
