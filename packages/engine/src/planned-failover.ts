/**
 * A planned failover that reverses replication at once: from a primary that was prepared to one at the second site that
 * replicates home, with no data owed.
 *
 * Two steps that stand apart as well, `startFailover` and `reverseReplication`. What the second would refuse is asked before
 * the first, so that a machine does not stop between them for a folder that is taken or a write that nobody expected. Which
 * step is next is asked of the replica: whatever dies in the middle, the same call goes on.
 */

import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { SecondsiteError } from './errors.js'
import type { FailoverInfo } from './recovery/failover.js'
import type { FailoverOutlook, Replica } from './recovery/replica.js'
import { reverseReplication } from './reverse.js'
import {
  explainReverseAhead,
  refuseSplit,
  type ReverseOutlook,
  reverseOutlook,
  type ReversePlace,
} from './reverse-outlook.js'
import { recordedPlan, requirePlaces, type ReverseReport, type ReverseRequest } from './reverse-plan.js'
import { ReplicaStore } from './store/replica-store.js'

/** What a planned failover with its reversal needs; nothing is given up in it, so no side is named as the loser. */
export interface PlannedFailoverRequest extends Omit<ReverseRequest, 'loser'> {
  readonly signal?: AbortSignal
}

/** What is left to be done of a planned failover with its reversal. */
export interface PlannedFailoverOutlook {
  /** The next of its two steps; null when nothing is left. */
  readonly next: 'failover' | 'reverse' | null
  /** What the failover would do; null once it has begun. */
  readonly failover: FailoverOutlook | null
  /** What the reversal would do; null once that has begun. */
  readonly reverse: ReverseOutlook | null
}

/**
 * Says what {@link plannedFailover} would do, without doing it.
 * @throws {NOT_PREPARED, SPLIT_BRAIN, STORE_FOREIGN} and the like: what it would be refused with, as far as can be told
 */
export async function explainPlannedFailover(
  replica: Replica,
  place: ReversePlace,
): Promise<PlannedFailoverOutlook> {
  const next = await nextStep(replica, place.directory)
  if (next === null) return { next, failover: null, reverse: null }
  if (next === 'failover') {
    const failover = await replica.explainFailover('LatestProcessed')
    return { next, failover, reverse: await requireLossless(replica, place) }
  }
  if ((await recordedPlan(replica.context)) !== undefined) return { next, failover: null, reverse: null }
  // Its layers are not there yet, and show the newest state.
  const isBegun = (await replica.state()) === 'RecoveryInProgress'
  const reverse = await (isBegun ? explainReverseAhead : reverseOutlook)(replica, place)
  return { next, failover: null, reverse }
}

/**
 * Fails over as planned and reverses replication: the new primary is Replicating, and owes nothing. Calling it again goes on
 * where it stopped, and does no harm when all is done.
 *
 * @example
 * await primary.prepareFailover() // the machine is shut down
 * const { machine } = await plannedFailover(replica, { engine: away, former: { engine: home }, directory: './home-store' })
 * await machine.exportNbd({ listen: 'unix:/run/web01.sock' })
 * @throws {NOT_PREPARED} unless the newest state is the last cut of a primary that was prepared
 * @throws {SPLIT_BRAIN} when the former primary was written to after it; nothing has changed
 * @throws {STORE_FOREIGN, MACHINE_EXISTS} when a place of the new relationship is taken; nothing has changed
 * @throws {INVALID_STATE} when the replica was failed over as unplanned: that is for `reverseReplication`
 * @throws {MACHINE_RUNNING} when a client has a disk of the former primary open
 */
export async function plannedFailover(
  replica: Replica,
  request: PlannedFailoverRequest,
): Promise<ReverseReport> {
  const { context } = replica
  const next = await nextStep(replica, request.directory)
  if (next === null) return protectedAlready(replica, request)
  if (next === 'failover') {
    await requireLossless(replica, request)
    await requirePlaces(context, request, await replica.machine())
    await replica.startFailover({ kind: 'Planned', ...(request.signal ? { signal: request.signal } : {}) })
  }
  // The layers of one that a death has cut off.
  else if ((await replica.state()) === 'RecoveryInProgress') await replica.failover()
  await context.step('planned-failover.before-reversing')
  // One that ended a failback wants its commit by itself.
  if ((await replica.state()) === 'FailbackComplete')
    await replica.commitFailover({ dropLocked: request.dropLocked ?? false })
  return reverseReplication(replica, request)
}

/** Asked of the replica. */
async function nextStep(replica: Replica, directory: string): Promise<'failover' | 'reverse' | null> {
  const info = await replica.failoverInfo()
  if (info === undefined) return (await isReversed(replica, directory)) ? null : 'failover'
  requirePlannedKind(info, await replica.machine())
  return 'reverse'
}

/** Whether replication was reversed behind a failover: the replica has ended, and its way home is there. */
export async function isReversed(replica: Replica, directory: string): Promise<boolean> {
  return (await replica.state()) === 'Disabled' && existsSync(ReplicaStore.fileOf(resolve(directory)))
}

/** What an unplanned failover has left behind is nothing to go on with unseen. @throws {INVALID_STATE} */
export function requirePlannedKind({ kind, state }: FailoverInfo, machine: string): void {
  if (kind === 'Planned') return
  throw new SecondsiteError('INVALID_STATE', {
    message: `${machine} was failed over as ${kind}: what its primary never sent has to be looked at by a reversal of its own`,
    details: { machine, state, trigger: 'startFailover' },
  })
}

/** Nothing would be lost, and the other side could follow. @throws {INVALID_STATE, NOT_PREPARED, SPLIT_BRAIN, STORE_FOREIGN} */
async function requireLossless(replica: Replica, place: ReversePlace): Promise<ReverseOutlook> {
  await replica.requireFailover(true)
  await replica.requirePrepared()
  const outlook = await explainReverseAhead(replica, place)
  refuseSplit(outlook, {})
  await ReplicaStore.requireFree(resolve(place.directory), outlook.machine, replica.context.clock)
  return outlook
}

/** @throws {MACHINE_NOT_FOUND} when another engine than this one protects it */
async function protectedAlready(
  replica: Replica,
  { engine, directory }: PlannedFailoverRequest,
): Promise<ReverseReport> {
  const machine = engine.machine(await replica.machine())
  if (machine.replicaDirectory !== resolve(directory))
    throw new SecondsiteError('INVALID_STATE', {
      message: `${machine.name} replicates to ${machine.replicaDirectory}, not to ${resolve(directory)}`,
      details: { machine: machine.name, state: machine.state, trigger: 'startFailover' },
    })
  // A death may have come before what is owed was asked for.
  if (machine.state === 'WaitingForStartResynchronize') await machine.resume()
  return { machine, candidateBytes: 0, lostLogs: [] }
}
