/**
 * The other end of a split brain: what was written since the failover is given up, and the former primary goes on as if it
 * had never stopped being the primary.
 *
 * A failover that is not committed is cancelled: the images never changed, so nothing differs. After a commit the images hold
 * what is given up, and a relationship of its own begins: the former primary's disks are tracked anew, with everything that
 * may differ as candidates, and the replica's images become their replica. It is held until the store is theirs; the plan,
 * recorded before, goes with the last step, so whatever dies in the middle, calling it again carries it through.
 */

import { rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { SecondsiteError, optionOutOfRange } from './errors.js'
import type { ProtectedMachine } from './protection/protected-machine.js'
import type { RecoveryContext } from './recovery/context.js'
import { identityOf } from './recovery/context.js'
import { folderOf } from './recovery/failover.js'
import type { Replica } from './recovery/replica.js'
import { explainReverse, formerOf } from './reverse-outlook.js'
import {
  bytesOf,
  candidatesOf,
  endExports,
  moveGroup,
  retireFormer,
  type ReversePlan,
  type ReverseReport,
  type ReverseRequest,
  trackDisks,
} from './reverse-plan.js'
import { keepWrites } from './side-writes.js'
import { ReplicaStore } from './store/replica-store.js'

/** @throws {OPTION_OUT_OF_RANGE} where the former primary is not known to an engine: it has nothing to go on with */
export async function keepPrimary(
  replica: Replica,
  request: ReverseRequest,
  recorded: ReversePlan | undefined,
): Promise<ReverseReport> {
  const { context } = replica
  const { former } = request
  if (!('engine' in former)) throw noPrimary()
  if ((await replica.state()) !== 'FailedOver') return cancelled(replica, request)
  const plan = recorded ?? (await makePlan(replica, request))
  await context.step('keep-primary.before-recording')
  await context.recovery.setFailover({ reverseJson: JSON.stringify(plan) })
  await replica.closeFailover()
  await retireFormer(context, former, plan)
  await context.step('keep-primary.before-tracking')
  const isProtected = former.engine.machines.some(({ id }) => id === plan.adoption.machineId)
  if (!isProtected) await trackDisks(context, plan)
  const machine = await former.engine.adopt(plan.adoption)
  await moveGroup(former.engine, machine, former, plan.groupName)
  await context.step('keep-primary.before-adopting')
  await adoptImages(context, plan)
  rmSync(folderOf(context), { recursive: true, force: true })
  await context.step('keep-primary.before-resuming')
  await machine.resume()
  return { machine, candidateBytes: bytesOf(plan), lostLogs: plan.lostLogs }
}

async function cancelled(replica: Replica, request: ReverseRequest): Promise<ReverseReport> {
  const { context } = replica
  const lostLogs = await keepFailover(replica, request)
  await context.step('keep-primary.before-cancelling')
  await replica.cancelFailover()
  const machine = primaryOf(request, (await identityOf(context)).machine)
  if (machine.state === 'Error' || machine.state === 'Suspended') await machine.resume()
  return { machine, candidateBytes: 0, lostLogs }
}

function primaryOf({ former }: ReverseRequest, name: string): ProtectedMachine {
  const machine = formerOf(former, name)
  if (machine) return machine
  throw noPrimary()
}

async function keepFailover(replica: Replica, { directory }: ReverseRequest): Promise<string[]> {
  const failover = await replica.failover()
  await failover?.endExports()
  return failover ? keepWrites(failover, join(resolve(directory), 'lost'), replica.context.pool) : []
}

async function makePlan(replica: Replica, request: ReverseRequest): Promise<ReversePlan> {
  const { context } = replica
  const identity = await identityOf(context)
  const former = primaryOf(request, identity.machine)
  await endExports(former)
  const lostLogs = await keepFailover(replica, request)
  const outlook = await explainReverse(replica, request)
  const disks = former.disks.map(({ name, path, trackingDirectory, sizeBytes }) => {
    return { diskId: context.random.uuid(), name, path, trackingDirectory, sizeBytes }
  })
  const adoption = {
    machineId: context.random.uuid(),
    relationshipId: context.random.uuid(),
    name: identity.machine,
    policy: request.policy ?? former.policy,
    fencingNumber: identity.fencingNumber + 1,
    directory: resolve(context.directory),
    disks,
    isResyncOwed: true,
    isHeld: true,
  }
  const formerPaths = Object.fromEntries(disks.map(({ name, path }) => [name, path]))
  const candidates = candidatesOf(outlook.disks)
  const { name: formerName, groupName } = former
  return { loser: 'replica', adoption, formerPaths, formerName, groupName, candidates, lostLogs }
}

/** The replica's images, which hold what is given up, become the replica of the disks that go on. */
async function adoptImages(context: RecoveryContext, { adoption }: ReversePlan): Promise<void> {
  const images = await context.store.disks()
  const disks = adoption.disks.flatMap(({ diskId, name, sizeBytes }) => {
    const image = images.find((one) => one.name === name)
    return image === undefined
      ? []
      : [{ ...image, diskId, sizeBytes, receivedLogId: null, appliedLogId: null }]
  })
  const { relationshipId, name: machine, fencingNumber } = adoption
  await using store = ReplicaStore.open(adoption.directory, context.clock)
  const before = (await store.identity())?.relationshipId
  await store.adopt({ relationshipId, machine, fencingNumber, recoveryJson: null, disks }, before)
}

function noPrimary(): SecondsiteError {
  const range = 'the engine of the former primary'
  const message = `the former primary goes on, so ${range} is needed`
  return optionOutOfRange({ path: 'former', value: null, range }, message)
}
