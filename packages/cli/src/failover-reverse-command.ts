/**
 * `failover start --planned --reverse`: the failover, and replication turned round in the same breath. Nothing is served: the
 * machine is protected from then on, so `protect` serves its disks.
 */

import {
  Engine,
  explainPlannedFailover,
  type FailoverOutlook,
  type FormerPrimary,
  formatBytes,
  formatDuration,
  openReplica,
  plannedFailover,
  type PlannedFailoverOutlook,
  type RecoveryPointChoice,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { list } from './output.js'
import { timeText } from './recovery-command.js'
import { protectLine, requireFormer, reverseText, tellReversed } from './reverse-command.js'
import { unconfirmed } from './unconfirmed.js'
import { wrongUse } from './wrong-use.js'

/** What `failover start` is given where it reverses as well; the names are those of `reverse`. */
export interface PlannedGiven {
  readonly point: RecoveryPointChoice
  readonly reverse?: boolean
  readonly planned?: boolean
  readonly state?: string
  readonly home?: string
  readonly formerState?: string
  readonly formerDisk?: Record<string, string>
  readonly dropLocked?: boolean
  readonly nbd?: string
  readonly run?: boolean
  readonly yes?: boolean
}

/** `failover start REPLICA --planned --reverse --state DIR --home DIR --former-state DIR`; again, it goes on where it stopped. */
export async function failoverReverse(
  invocation: Invocation,
  replicaDirectory: string,
  given: PlannedGiven,
): Promise<ExitCode> {
  const { state, home: directory } = requireOptions(given)
  await using replica = await openReplica({ directory: replicaDirectory })
  await using home = given.formerState ? await Engine.open({ stateDirectory: given.formerState }) : undefined
  const former: FormerPrimary = home ? { engine: home } : { disks: given.formerDisk ?? {} }
  explain(invocation, await explainPlannedFailover(replica, { former, directory }))
  if (!given.yes)
    return unconfirmed(invocation, 'nothing was changed: --yes fails over and reverses replication')
  await using engine = await Engine.open({ stateDirectory: state })
  const { signal } = invocation
  const { dropLocked = false } = given
  const report = await plannedFailover(replica, { engine, former, directory, dropLocked, signal })
  tellReversed(invocation, report)
  if (!invocation.isJson)
    invocation.output.say(`its disks are served by: ${protectLine(report.machine, state)}`)
  return EXIT.ok
}

/** @throws {OPTION_OUT_OF_RANGE} */
function requireOptions(given: PlannedGiven): { readonly state: string; readonly home: string } {
  const { state, home, planned, point, nbd, run } = given
  requireFormer(given)
  const isFit = planned && nbd === undefined && !run && (point === 'Latest' || point === 'LatestProcessed')
  if (isFit && state !== undefined && home !== undefined) return { state, home }
  const range = '--planned, --state and --home; no other point than the newest, no --nbd and no --run'
  throw wrongUse('--reverse needs', 'reverse', range)
}

function explain({ output, isJson }: Invocation, outlook: PlannedFailoverOutlook): void {
  if (isJson) return output.json({ outlook })
  const { next, failover, reverse } = outlook
  if (next === null) output.say('failed over and reversed already')
  if (next === 'reverse') output.say('failed over already; what is left is the reversal')
  if (failover) output.say(failoverText(failover))
  if (reverse) output.say(`then replication is reversed:\n${reverseText(reverse)}`)
}

/** What a failover would do, for people. */
export function failoverText(outlook: FailoverOutlook): string {
  const { state, point, pointTimeMs, lossMs, receivedBytes, undoneBytes } = outlook
  const without = point.withoutDisks.map((disk): [string, string] => ['disk that is not there then', disk])
  return list([
    ['state of the replica', state],
    ['disks would begin with', timeText(pointTimeMs)],
    ['lost of the past', formatDuration(lossMs)],
    ['received, not applied yet', formatBytes(receivedBytes)],
    ['taken back of the newest state', formatBytes(undoneBytes)],
    ...without,
  ])
}
