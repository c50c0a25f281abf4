/**
 * Failover of the machines of a consistency group to one point that all of them share.
 *
 * Members know a common cut by its id, each in the store of its replica; nothing else of the group is needed, so it works
 * with the folders alone. All of them fail over, or none: what refuses is asked of every member first, and when one fails on
 * the way, those before it are cancelled. After a death in the middle the same call goes on: whoever has been failed over to
 * the common point already stays as it is.
 */

import { asSecondsiteError, SecondsiteError } from '../errors.js'
import type { PointKind } from '../states.js'
import { settleImages } from './context.js'
import type { Failover } from './failover.js'
import type { RecoveryPoint } from './points.js'
import type { Replica } from './replica.js'

/**
 * - `LatestMultiVmProcessed`: the newest cut that all members can show.
 * - `LatestMultiVmApplicationConsistent`: the newest of them at which the applications of all members were at rest.
 * - one cut, by its id, or the newest that is not later than a time in Unix milliseconds.
 */
export type GroupPointChoice =
  | 'LatestMultiVmProcessed'
  | 'LatestMultiVmApplicationConsistent'
  | { readonly groupPointId: string }
  | { readonly timeMs: number }

/** A cut that all members can show. */
export interface GroupPoint {
  readonly groupPointId: string
  /** Unix milliseconds. */
  readonly cutTimeMs: number
  /** What it was for every member; `crash-consistent` when the members' kinds differ. */
  readonly kind: PointKind
  /** Number of the point at each member, by the name of the machine. */
  readonly numbers: Readonly<Record<string, number>>
}

/** Options of {@link startGroupFailover}. */
export interface GroupFailoverOptions {
  /** Default `LatestMultiVmProcessed`. */
  readonly point?: GroupPointChoice
  /** Takes the replicas although their primaries still replicate into them. Default false. */
  readonly fencePrimary?: boolean
  readonly signal?: AbortSignal
}

/** A group that was failed over. */
export interface GroupFailover {
  readonly point: GroupPoint
  /** In the order of the replicas. */
  readonly members: readonly { readonly machine: string; readonly failover: Failover }[]
}

/** The cuts that all of these replicas can show, oldest first. */
export async function groupPoints(replicas: readonly Replica[]): Promise<GroupPoint[]> {
  const members = await Promise.all(replicas.map(membersPoints))
  const [first, ...others] = members
  return (first?.points ?? []).flatMap((point) => {
    const same = others.map(({ points }) => points.find((one) => one.groupPointId === point.groupPointId))
    const all = [point, ...same].filter((one) => one !== undefined)
    return all.length === members.length ? [commonPoint(all, members)] : []
  })
}

interface MemberPoints {
  readonly machine: string
  readonly points: readonly RecoveryPoint[]
}

/** Those that are cuts of a group and can be shown. */
async function membersPoints(replica: Replica): Promise<MemberPoints> {
  const [machine, points] = [await replica.machine(), await replica.points()]
  return {
    machine,
    points: points.filter(({ groupPointId, damage }) => groupPointId !== null && damage === null),
  }
}

function commonPoint(all: readonly RecoveryPoint[], members: readonly MemberPoints[]): GroupPoint {
  const kinds = new Set(all.map(({ kind }) => kind))
  const numbers = members.map(({ machine }, index) => [machine, all[index]?.number ?? 0] as const)
  return {
    groupPointId: all[0]?.groupPointId ?? '',
    cutTimeMs: Math.max(...all.map(({ cutTimeMs }) => cutTimeMs)),
    kind: kinds.size === 1 ? (all[0]?.kind ?? 'crash-consistent') : 'crash-consistent',
    numbers: Object.fromEntries(numbers),
  }
}

/**
 * Fails all members over to one common cut.
 * @throws {GROUP_POINT_NOT_FOUND} when there is none; nothing has changed
 * @throws {GROUP_MEMBER_REFUSES} naming who refuses and why; nothing is failed over but what the error says is done
 */
export async function startGroupFailover(
  replicas: readonly Replica[],
  options: GroupFailoverOptions = {},
): Promise<GroupFailover> {
  const { point: choice = 'LatestMultiVmProcessed', fencePrimary = false, signal } = options
  for (const replica of replicas) await requireReady(replica, fencePrimary)
  // What one has received and not applied yet may be the cut that the others show.
  for (const replica of replicas) await settleImages(replica.context, signal)
  const point = await chooseGroupPoint(replicas, choice)
  for (const replica of replicas) await requirePoint(replica, point)
  const members: { readonly machine: string; readonly failover: Failover }[] = []
  const begun: Replica[] = []
  for (const replica of replicas) {
    const machine = await replica.machine()
    // From its first step on it counts, however that ends; one that was failed over before stays as it is.
    if ((await replica.failoverInfo()) === undefined) begun.push(replica)
    try {
      members.push({ machine, failover: await failOver(replica, point.numbers[machine] ?? 0) })
    } catch (error) {
      const own = isOfAnother(error) ? begun.filter((one) => one !== replica) : begun
      throw memberRefusal(machine, 'startFailover', error, await takenBack(own))
    }
  }
  return { point, members }
}

/** Somebody else has begun the failover of that member meanwhile, or is at it: that is not to be taken back here. */
function isOfAnother(error: unknown): boolean {
  return ['INVALID_STATE', 'FAILOVER_IN_USE', 'FAILOVER_NOT_FOUND'].includes(asSecondsiteError(error).code)
}

/** The newest first; one that cannot be taken back keeps none of the others. @returns those that stay failed over */
async function takenBack(begun: readonly Replica[]): Promise<string[]> {
  const left: string[] = []
  for (const replica of begun.toReversed()) {
    if ((await replica.failoverInfo()) === undefined) continue
    await replica.cancelFailover().catch(async () => left.push(await replica.machine()))
  }
  return left
}

/** Asked of every member before anything is changed. */
async function requireReady(replica: Replica, fencePrimary: boolean): Promise<void> {
  if (await replica.failoverInfo()) return
  try {
    await replica.requireFailover(fencePrimary)
  } catch (error) {
    throw refused(await replica.machine(), error)
  }
}

/** One that was failed over before must be at that point. */
async function requirePoint(replica: Replica, { numbers }: GroupPoint): Promise<void> {
  const info = await replica.failoverInfo()
  const machine = await replica.machine()
  const isBetween = (await replica.context.recovery.failover())?.untilNs !== null
  if (info === undefined || (info.pointNumber === numbers[machine] && !isBetween)) return
  const error = new SecondsiteError('INVALID_STATE', {
    message: `it is failed over to ${isBetween ? 'a time behind ' : ''}point ${info.pointNumber}, not to ${numbers[machine] ?? 'any'}`,
    details: { machine, state: info.state, trigger: 'startFailover' },
  })
  throw refused(machine, error)
}

/** One that was failed over to this point before stays as it is. */
async function failOver(replica: Replica, point: number): Promise<Failover> {
  return (await replica.failover()) ?? replica.startFailover({ point: { point }, fencePrimary: true })
}

/** @throws {GROUP_POINT_NOT_FOUND} with the common cuts that there are */
export async function chooseGroupPoint(
  replicas: readonly Replica[],
  choice: GroupPointChoice,
): Promise<GroupPoint> {
  const points = await groupPoints(replicas)
  const found = points.findLast((point) => fits(point, choice))
  if (found) return found
  const machines = await Promise.all(replicas.map((replica) => replica.machine()))
  const wanted = typeof choice === 'string' ? choice : JSON.stringify(choice)
  throw new SecondsiteError('GROUP_POINT_NOT_FOUND', {
    message: `${machines.join(', ')} share no cut that is ${wanted}; they share ${points.length}`,
    details: { machines, choice: wanted, groupPoints: points.map(({ groupPointId }) => groupPointId) },
  })
}

function fits({ kind, cutTimeMs, groupPointId }: GroupPoint, choice: GroupPointChoice): boolean {
  if (choice === 'LatestMultiVmProcessed') return true
  if (choice === 'LatestMultiVmApplicationConsistent') return kind === 'application-consistent'
  return 'timeMs' in choice ? cutTimeMs <= choice.timeMs : groupPointId === choice.groupPointId
}

/** Who refuses a verb of the group, and why. @param done - members at which it was carried out before */
export function memberRefusal(
  machine: string,
  verb: string,
  error: unknown,
  done: readonly string[] = [],
): SecondsiteError {
  const cause = asSecondsiteError(error)
  const before = done.length > 0 ? `; done before: ${done.join(', ')}, and the same call goes on` : ''
  return new SecondsiteError('GROUP_MEMBER_REFUSES', {
    message: `${verb} of the group: ${machine} refuses: ${cause.message}${before}`,
    details: { machine, trigger: verb, reason: cause.code, done: [...done] },
    cause,
  })
}

function refused(machine: string, error: unknown): SecondsiteError {
  return memberRefusal(machine, 'startFailover', error)
}
