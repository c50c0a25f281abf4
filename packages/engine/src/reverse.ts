/**
 * Reverse replication: the failed-over replica becomes the primary, and the disks of the former primary its replica.
 *
 * Only what may differ is compared: what the chosen point took back, what the new primary wrote since, and what the former
 * primary wrote and never sent. With nothing of the three, replication goes on at once and no byte moves.
 *
 * What one side alone has is given up by name only, and kept as logs. The plan is recorded in the replica's store before
 * anything changes, with every id that it will use, so whatever dies in the middle, calling it again carries it through.
 */

import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { keepPrimary } from './keep-primary.js'
import { native } from './native/index.js'
import { identityOf, type RecoveryContext } from './recovery/context.js'
import { folderOf, move } from './recovery/failover.js'
import type { Replica } from './recovery/replica.js'
import { stopLeftRun } from './recovery/runner.js'
import { FAILOVER_RUN } from './recovery/runner-record.js'
import { explainReverse, formerOf, refuseSplit } from './reverse-outlook.js'
import {
  bytesOf,
  candidatesOf,
  endExports,
  moveGroup,
  recordedPlan,
  requirePlaces,
  retireFormer,
  type ReversePlan,
  type ReverseReport,
  type ReverseRequest,
  trackDisks,
} from './reverse-plan.js'
import { keepWrites } from './side-writes.js'
import { ReplicaStore } from './store/replica-store.js'

/**
 * @throws {INVALID_STATE} unless the replica has been failed over
 * @throws {SPLIT_BRAIN} when the former primary holds writes that were never sent, and no side is named as the loser; what each
 *   side has stands in the details, nothing has changed
 * @throws {MACHINE_RUNNING} when a client has a disk of the former primary open
 * @throws {STORE_FOREIGN} when the folder holds another replica; {MACHINE_EXISTS} when the engine protects a machine of that name
 */
export async function reverseReplication(replica: Replica, request: ReverseRequest): Promise<ReverseReport> {
  const context = replica.context
  const { machine, state } = await identityOf(context)
  context.next(state, 'reverseReplication', machine)
  const recorded = await recordedPlan(context)
  if (recorded === undefined) refuseSplit(await explainReverse(replica, request), request)
  if ((recorded?.loser ?? request.loser) === 'replica') return keepPrimary(replica, request, recorded)
  if (recorded === undefined) {
    await requirePlaces(context, request, machine)
    await endExports(formerOf(request.former, machine))
  }
  await replica.commitFailover({ dropLocked: request.dropLocked ?? false })
  const plan = recorded ?? (await makePlan(replica, request))
  await context.step('reverse.before-recording')
  await context.recovery.setFailover({ reverseJson: JSON.stringify(plan) })
  await replica.closeFailover()
  // A machine that a process which died has left would wait for disks that go home.
  await stopLeftRun(context.directory, FAILOVER_RUN, context.clock, { asks: false })
  await retireFormer(context, request.former, plan)
  await context.step('reverse.before-adopting')
  const isProtected = request.engine.machines.some(({ id }) => id === plan.adoption.machineId)
  if (!isProtected) {
    await adoptDisks(context, plan)
    await trackDisks(context, plan)
  }
  await context.step('reverse.before-protecting')
  const reversed = await request.engine.adopt(plan.adoption)
  await moveGroup(request.engine, reversed, request.former, plan.groupName)
  await context.step('reverse.before-ending')
  await endReplica(context)
  if (reversed.state === 'WaitingForStartResynchronize') await reversed.resume()
  return { machine: reversed, candidateBytes: bytesOf(plan), lostLogs: plan.lostLogs }
}

async function makePlan(replica: Replica, request: ReverseRequest): Promise<ReversePlan> {
  const { context } = replica
  const identity = await identityOf(context)
  // Clients may have written since: from here on they cannot, and a guest waits for its new export.
  await (await replica.failover())?.endExports()
  const outlook = await explainReverse(replica, request)
  const former = formerOf(request.former, identity.machine)
  const images = await context.store.disks()
  const trackingDirectory = join(context.directory, 'tracking')
  const disks = images.map(({ name, imagePath, sizeBytes }) => {
    return { diskId: context.random.uuid(), name, path: imagePath, trackingDirectory, sizeBytes }
  })
  const adoption = {
    machineId: context.random.uuid(),
    relationshipId: context.random.uuid(),
    name: identity.machine,
    policy: request.policy ?? former?.policy ?? {},
    fencingNumber: identity.fencingNumber + 1,
    directory: resolve(request.directory),
    disks,
    isResyncOwed: outlook.disks.some(({ bytes }) => bytes > 0),
  }
  const lost = join(adoption.directory, 'lost')
  const lostLogs = former ? await keepWrites(former, lost, context.pool) : []
  const formerPaths = Object.fromEntries(outlook.disks.map(({ disk, path }) => [disk, path]))
  const candidates = candidatesOf(outlook.disks)
  const { name: formerName = null, groupName = null } = former ?? {}
  return { adoption, formerPaths, formerName, groupName, candidates, lostLogs }
}

/** The former primary's disks become the images of a store of their own. */
async function adoptDisks({ clock }: RecoveryContext, { adoption, formerPaths }: ReversePlan): Promise<void> {
  const disks = adoption.disks.map(({ diskId, name, sizeBytes }) => {
    const imagePath = resolve(formerPaths[name] ?? join(adoption.directory, name))
    if (!existsSync(imagePath)) makeImage(imagePath, sizeBytes)
    return { diskId, name, imagePath, sizeBytes, receivedLogId: null, appliedLogId: null }
  })
  mkdirSync(adoption.directory, { recursive: true })
  await using store = ReplicaStore.open(adoption.directory, clock)
  const { relationshipId, name: machine, fencingNumber } = adoption
  await store.adopt({ relationshipId, machine, fencingNumber, recoveryJson: null, disks })
}

function makeImage(path: string, sizeBytes: number): void {
  mkdirSync(dirname(path), { recursive: true })
  native.createImage(path, sizeBytes)
}

/** This side is a primary from now on: as a replica it has ended. */
async function endReplica(context: RecoveryContext): Promise<void> {
  const { machine, state } = await identityOf(context)
  const to = context.next(state, 'reverseReplication', machine)
  await move(context, 'reverseReplication', state, to, async (transaction) => {
    await transaction.deleteFrom('failover').execute()
  })
  rmSync(folderOf(context), { recursive: true, force: true })
}
