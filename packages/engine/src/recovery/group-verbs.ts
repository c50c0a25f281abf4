/**
 * Verbs on the failover of a whole consistency group: another common cut, cancel, commit, and a test of all members at one cut.
 *
 * What refuses is asked of every member before anything changes, and the refusal names the member. After that little can
 * fail; where something does, the error says who was done before, and the same call goes on: a member that is where the verb
 * leads stays as it is.
 */

import { asSecondsiteError, isSecondsiteError, SecondsiteError, throwIfAborted } from '../errors.js'
import { identityOf, type RecoveryTrigger, settleImages } from './context.js'
import type { Failover } from './failover.js'
import {
  chooseGroupPoint,
  type GroupFailover,
  type GroupPoint,
  type GroupPointChoice,
  memberRefusal,
} from './group-failover.js'
import type { Replica } from './replica.js'
import type { TestFailover } from './test-failover.js'

/** Options of {@link changeGroupPoint}. */
export interface ChangeGroupPointOptions {
  /** Default `LatestMultiVmProcessed`. */
  readonly point?: GroupPointChoice
  readonly signal?: AbortSignal
}

/** Options of {@link commitGroupFailover}. */
export interface CommitGroupOptions {
  /** Also gives up recovery points that are locked. Default false. */
  readonly dropLocked?: boolean
  readonly signal?: AbortSignal
}

/** Options of {@link startGroupTestFailover}. */
export interface GroupTestOptions {
  /** Default `LatestMultiVmProcessed`. */
  readonly point?: GroupPointChoice
  /** Milliseconds after which the copies end by themselves; default never. */
  readonly lifetimeMs?: number
  readonly signal?: AbortSignal
}

/** A test of a whole group. */
export interface GroupTestFailover {
  /** By this its copies are found again, after whatever end of the process that made them. */
  readonly groupTestId: string
  readonly point: GroupPoint
  /** In the order of the replicas. */
  readonly members: readonly { readonly machine: string; readonly test: TestFailover }[]
}

/**
 * Begins the failover of all members anew at another cut that they share; what was written since is thrown away. One that
 * stands at that cut already stays as it is.
 * @throws {GROUP_POINT_NOT_FOUND} when there is none; nothing has changed
 * @throws {GROUP_MEMBER_REFUSES} naming who refuses and why
 */
export async function changeGroupPoint(
  replicas: readonly Replica[],
  { point: choice = 'LatestMultiVmProcessed', signal }: ChangeGroupPointOptions = {},
): Promise<GroupFailover> {
  const verb = 'changeRecoveryPoint'
  // One that has died in the middle of a change wants its layers first.
  for (const replica of replicas) await asked(replica, verb, () => takeUp(replica))
  for (const replica of replicas) await asked(replica, verb, () => requireVerb(replica, verb))
  const point = await chooseGroupPoint(replicas, choice)
  // Opened before anything is thrown away: who cannot show it refuses for all.
  for (const replica of replicas) await asked(replica, verb, () => requireShown(replica, point))
  const members = await carriedOut(replicas, verb, signal, (replica) => changed(replica, point))
  return { point, members: members.map(({ machine, result: failover }) => ({ machine, failover })) }
}

async function takeUp(replica: Replica): Promise<void> {
  if ((await replica.failoverInfo())?.state === 'RecoveryInProgress') await replica.failover()
}

async function requireShown(replica: Replica, point: GroupPoint): Promise<void> {
  if (await isAt(replica, point)) return
  const view = await replica.openView({ point: await numberOf(replica, point) })
  await view.close()
}

async function changed(replica: Replica, point: GroupPoint): Promise<Failover> {
  const number = await numberOf(replica, point)
  const failover = (await isAt(replica, point)) ? await replica.failover() : undefined
  return failover ?? replica.changeRecoveryPoint({ point: number })
}

async function numberOf(replica: Replica, { numbers }: GroupPoint): Promise<number> {
  return numbers[await replica.machine()] ?? -1
}

async function isAt(replica: Replica, point: GroupPoint): Promise<boolean> {
  const row = await replica.context.recovery.failover()
  return row?.untilNs === null && row.pointNumber === (await numberOf(replica, point))
}

/**
 * Ends the failover of all members as if it had never been. Who is not failed over stays as it is, if another member is.
 * @throws {GROUP_MEMBER_REFUSES} naming who refuses and why: one that is committed, or the first where nobody is failed over
 */
export async function cancelGroupFailover(replicas: readonly Replica[]): Promise<void> {
  const verb = 'cancelFailover'
  const isBegun = await Promise.all(replicas.map(hasBegun))
  const begun = replicas.filter((_replica, index) => isBegun[index])
  for (const replica of begun.length > 0 ? begun : replicas)
    await asked(replica, verb, () => requireVerb(replica, verb))
  await carriedOut(begun, verb, undefined, (replica) => replica.cancelFailover())
}

async function hasBegun(replica: Replica): Promise<boolean> {
  return (await replica.failoverInfo()) !== undefined || (await replica.state()) === 'FailbackInProgress'
}

/**
 * Makes the failover of all members final; calling it again finishes what was begun, and does no harm afterwards.
 * @throws {GROUP_MEMBER_REFUSES} naming who refuses and why: locked points, points that are being read, one that is not failed
 *   over, or stands at another cut than the others
 */
export async function commitGroupFailover(
  replicas: readonly Replica[],
  { dropLocked = false, signal }: CommitGroupOptions = {},
): Promise<void> {
  const verb = 'commitFailover'
  for (const replica of replicas) await asked(replica, verb, () => replica.requireCommit({ dropLocked }))
  await requireOneCut(replicas)
  const options = { dropLocked, ...(signal ? { signal } : {}) }
  await carriedOut(replicas, verb, signal, (replica) => replica.commitFailover(options))
}

/** A change of the point that has died in the middle must not become final. Members at states of their own are nobody's cut. */
async function requireOneCut(replicas: readonly Replica[]): Promise<void> {
  let first: { machine: string; groupPointId: string } | undefined
  for (const replica of replicas) {
    const [machine, groupPointId] = [await replica.machine(), await cutOf(replica)]
    if (groupPointId === null) continue
    first ??= { machine, groupPointId }
    if (groupPointId === first.groupPointId) continue
    const error = new SecondsiteError('INVALID_STATE', {
      message: `it stands at another cut of the group than ${first.machine}: change the point of all of them`,
      details: { machine, state: await replica.state(), trigger: 'commitFailover' },
    })
    throw memberRefusal(machine, 'commitFailover', error)
  }
}

/** The cut of the group that its failover began with; null for none, and once it is committed. */
async function cutOf(replica: Replica): Promise<string | null> {
  const row = await replica.context.recovery.failover()
  if (row === undefined || row.untilNs !== null || row.committedMs !== null) return null
  return (await replica.points()).find(({ number }) => number === row.pointNumber)?.groupPointId ?? null
}

/**
 * Starts a test copy of every member over one cut that they share, beside replication. All of them, or none.
 * @throws {GROUP_POINT_NOT_FOUND} when there is none
 * @throws {GROUP_MEMBER_REFUSES} naming who refuses and why; no copy is left
 */
export async function startGroupTestFailover(
  replicas: readonly Replica[],
  { point: choice = 'LatestMultiVmProcessed', lifetimeMs, signal }: GroupTestOptions = {},
): Promise<GroupTestFailover> {
  const verb = 'startTestFailover'
  for (const replica of replicas) await asked(replica, verb, () => requireVerb(replica, verb))
  for (const replica of replicas) await settleImages(replica.context, signal)
  const point = await chooseGroupPoint(replicas, choice)
  const [first] = replicas
  const groupTestId = first?.context.random.uuid() ?? ''
  const lifetime = lifetimeMs === undefined ? {} : { lifetimeMs }
  const start = async (replica: Replica): Promise<TestFailover> =>
    replica.startTestFailover({ point: { point: await numberOf(replica, point) }, groupTestId, ...lifetime })
  const members = await carriedOut(replicas, verb, signal, start, ended)
  return { groupTestId, point, members: members.map(({ machine, result: test }) => ({ machine, test })) }
}

function ended(test: TestFailover): Promise<void> {
  return test.stop()
}

/** A test copy that has ended. */
export interface StoppedTest {
  readonly machine: string
  readonly id: string
}

/**
 * Ends the copies that a test of a group has at these members, whoever holds them; calling it again does no harm.
 * @param groupTestId - default those of every test of a group
 * @throws {GROUP_MEMBER_REFUSES} naming whose copy does not end; those of the others have
 */
export async function stopGroupTestFailover(
  replicas: readonly Replica[],
  groupTestId?: string,
): Promise<StoppedTest[]> {
  const stopped: StoppedTest[] = []
  let refusal: { readonly machine: string; readonly error: unknown } | undefined
  for (const replica of replicas) {
    const machine = await replica.machine()
    for (const { id, endedMs, groupTestId: own } of await replica.testFailovers()) {
      if (endedMs !== null || own === null || (groupTestId ?? own) !== own) continue
      try {
        await replica.stopTestFailover(id)
        stopped.push({ machine, id })
      } catch (error) {
        refusal ??= { machine, error }
      }
    }
  }
  if (refusal === undefined) return stopped
  const done = [...new Set(stopped.map(({ machine }) => machine))]
  throw memberRefusal(refusal.machine, 'stopTestFailover', refusal.error, done)
}

async function requireVerb({ context }: Replica, verb: RecoveryTrigger): Promise<void> {
  const { machine, state } = await identityOf(context)
  context.next(state, verb, machine, (await context.recovery.failover())?.stateBefore)
}

/** What a member is asked before anything changes. */
async function asked(replica: Replica, verb: RecoveryTrigger, question: () => Promise<void>): Promise<void> {
  try {
    await question()
  } catch (error) {
    throw memberRefusal(await replica.machine(), verb, error)
  }
}

/**
 * Carries a verb out at one member after the other.
 * @param undo - takes back what was done before, where one fails; without it the same call goes on with the others
 */
async function carriedOut<Result>(
  replicas: readonly Replica[],
  verb: RecoveryTrigger,
  signal: AbortSignal | undefined,
  action: (replica: Replica) => Promise<Result>,
  undo?: (result: Result) => Promise<void>,
): Promise<{ readonly machine: string; readonly result: Result }[]> {
  const done: { readonly machine: string; readonly result: Result }[] = []
  for (const replica of replicas) {
    const machine = await replica.machine()
    try {
      throwIfAborted(signal)
      done.push({ machine, result: await action(replica) })
    } catch (error) {
      // One that cannot be taken back keeps none of the others.
      if (undo) for (const { result } of done.toReversed()) await undo(result).catch(() => {})
      if (isSecondsiteError(error, 'ABORTED')) throw asSecondsiteError(error)
      throw memberRefusal(machine, verb, error, undo ? [] : done.map((one) => one.machine))
    }
  }
  return done
}
