/**
 * Reverse replication: the failed-over replica becomes the primary, and the disks of the former primary its replica.
 *
 * Only what may differ is compared: what the chosen point took back, what the new primary wrote since, and what the former
 * primary wrote and never sent. With nothing of the three, replication goes on at once and no byte moves.
 *
 * The plan is recorded in the replica's store before anything changes, with every id that it will use, so whatever dies in
 * the middle, calling it again carries it through. The former primary's own writes are the only thing that is given up, so
 * they must be given up by name, and its logs are kept.
 */

import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { Adoption, Engine } from './engine.js'
import { SecondsiteError } from './errors.js'
import { native } from './native/index.js'
import type { PolicyInput } from './protection/policy.js'
import type { ProtectedMachine } from './protection/protected-machine.js'
import { type ByteRange, fromPairs, mergeRanges, toPairs, totalBytes } from './ranges.js'
import type { RecoveryContext } from './recovery/context.js'
import { identityOf } from './recovery/context.js'
import { folderOf, move } from './recovery/failover.js'
import type { Replica } from './recovery/replica.js'
import { ReplicaStore } from './store/replica-store.js'
import { TrackedDisk } from './track/tracked-disk.js'

/** Where the former primary is: still known to its engine, or nothing but places for the disks. */
export type FormerPrimary =
  | { readonly engine: Engine }
  /** By the names of the disks: files of theirs or of old copies, or paths at which new ones are made. */
  | { readonly disks: Readonly<Record<string, string>> }

export interface ReverseRequest {
  /** Engine of the side that is active now; it protects the machine from now on. */
  readonly engine: Engine
  readonly former: FormerPrimary
  /** Folder for the store of the way home: points, spool. The disks stay where they are. */
  readonly directory: string
  /** Gives up what the former primary wrote and never sent; its logs are kept in `lost` in the directory. */
  readonly discardFormer?: boolean
  /** Where the failover is not committed yet: also gives up recovery points that are locked. */
  readonly dropLocked?: boolean
  /** Settings of the reversed relationship; default those it had. */
  readonly policy?: PolicyInput
}

export interface ReverseReport {
  readonly machine: ProtectedMachine
  /** Bytes that may differ and are compared now; 0 when nothing is. */
  readonly candidateBytes: number
  /** Logs of the former primary that were kept because what they hold was given up. */
  readonly lostLogs: readonly string[]
}

/** What is carried out, recorded before it begins. */
interface Plan {
  readonly adoption: Adoption
  /** Paths of the former primary's disks, by name. */
  readonly formerPaths: Readonly<Record<string, string>>
  readonly formerName: string | null
  /** Ranges by name of the disk, flat; null for the whole disk. */
  readonly candidates: Readonly<Record<string, readonly number[] | null>>
  readonly lostLogs: readonly string[]
}

/**
 * @throws {INVALID_STATE} unless the replica has been failed over
 * @throws {SPLIT_BRAIN} when the former primary holds writes that were never sent and are not given up
 */
export async function reverseReplication(replica: Replica, request: ReverseRequest): Promise<ReverseReport> {
  const context = replica.context
  const { machine, state } = await identityOf(context)
  context.next(state, 'reverseReplication', machine)
  await replica.commitFailover({ dropLocked: request.dropLocked ?? false })
  const row = await context.recovery.failover()
  const plan = row?.reverseJson ? (JSON.parse(row.reverseJson) as Plan) : await makePlan(replica, request)
  await context.step('reverse.before-recording')
  await context.recovery.setFailover({ reverseJson: JSON.stringify(plan) })
  await replica.closeFailover()
  await retireFormer(context, request, plan)
  await context.step('reverse.before-adopting')
  const isProtected = request.engine.machines.some(({ id }) => id === plan.adoption.machineId)
  if (!isProtected) {
    await adoptDisks(context, request, plan)
    await trackImages(context, plan)
  }
  await context.step('reverse.before-protecting')
  const reversed = await request.engine.adopt(plan.adoption)
  await context.step('reverse.before-ending')
  await endReplica(context)
  if (reversed.state === 'WaitingForStartResynchronize') await reversed.resume()
  return { machine: reversed, candidateBytes: bytesOf(plan), lostLogs: plan.lostLogs }
}

function bytesOf({ adoption, candidates }: Plan): number {
  return adoption.disks.reduce((total, { name, sizeBytes }) => {
    const pairs = candidates[name]
    return total + (pairs ? totalBytes(fromPairs([...pairs])) : sizeBytes)
  }, 0)
}

async function makePlan(replica: Replica, request: ReverseRequest): Promise<Plan> {
  const { context } = replica
  const identity = await identityOf(context)
  const failover = await replica.failover()
  const row = await context.recovery.failover()
  const undone = JSON.parse(row?.undoneJson ?? '{}') as Record<string, number[]>
  const former = formerOf(request, identity.machine)
  const written = new Map(failover?.disks.map((disk) => [disk.name, disk.dirty()]))
  const unsent = await unsentOf(former)
  refuseSplit(identity.machine, request, written, unsent)
  const images = await context.store.disks()
  const candidates = images.map(({ name }) => {
    const theirs = unsent?.get(name)
    if (unsent === undefined || theirs === undefined) return [name, null] as const
    const ranges = [...fromPairs(undone[name] ?? []), ...(written.get(name) ?? []), ...theirs]
    const sorted = ranges.toSorted((left, right) => left.offset - right.offset)
    return [name, toPairs(mergeRanges(sorted))] as const
  })
  const isEqual = candidates.every(([, pairs]) => pairs?.length === 0)
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
    isResyncOwed: !isEqual,
  }
  const lostLogs = former ? await keepLost(former, adoption.directory) : []
  const formerPaths = former
    ? Object.fromEntries(former.disks.map(({ name, path }) => [name, path]))
    : (request.former as { disks: Record<string, string> }).disks
  const plan = { adoption, formerPaths, formerName: former?.name ?? null, lostLogs }
  return { ...plan, candidates: Object.fromEntries(candidates) }
}

function formerOf({ former }: ReverseRequest, machine: string): ProtectedMachine | undefined {
  return 'engine' in former ? former.engine.machine(machine) : undefined
}

/** What the former primary wrote and the replica never had; undefined when nothing is known. */
async function unsentOf(former: ProtectedMachine | undefined): Promise<Map<string, ByteRange[]> | undefined> {
  if (former === undefined) return undefined
  return new Map(former.disks.map((disk) => [disk.name, disk.dirty()]))
}

function refuseSplit(
  machine: string,
  { discardFormer = false }: ReverseRequest,
  written: ReadonlyMap<string, readonly ByteRange[]>,
  unsent: ReadonlyMap<string, readonly ByteRange[]> | undefined,
): void {
  const formerBytes = sumOf(unsent)
  if (formerBytes === 0 || discardFormer) return
  const activeBytes = sumOf(written)
  throw new SecondsiteError('SPLIT_BRAIN', {
    message: `the former primary of ${machine} holds up to ${formerBytes} bytes that were never sent; the active side has written ${activeBytes}`,
    details: { machine, formerBytes, activeBytes, former: plain(unsent), active: plain(written) },
  })
}

function sumOf(ranges: ReadonlyMap<string, readonly ByteRange[]> | undefined): number {
  return [...(ranges?.values() ?? [])].reduce((total, list) => total + totalBytes(list), 0)
}

/** Ranges that an error shows of each disk, at most. */
const SHOWN_RANGES_MAX = 64

function plain(ranges: ReadonlyMap<string, readonly ByteRange[]> | undefined) {
  const entries = [...(ranges ?? [])].map(([name, list]) => [
    name,
    list.slice(0, SHOWN_RANGES_MAX).map(({ offset, lengthBytes }) => ({ offset, lengthBytes })),
  ])
  return Object.fromEntries(entries) as Record<string, { offset: number; lengthBytes: number }[]>
}

/** Copies the logs that were never sent, so that what is given up can be looked at and exported. */
async function keepLost(former: ProtectedMachine, directory: string): Promise<string[]> {
  if (former.disks.every((disk) => disk.dirty().length === 0)) return []
  await former.sealLogs()
  const folder = join(directory, 'lost')
  mkdirSync(folder, { recursive: true })
  return former.disks.flatMap((disk) =>
    disk.unreleasedLogs().map(({ path, indexPath }) => {
      // Copied: the file of a released log is written over.
      copyFileSync(indexPath, join(folder, basename(indexPath)))
      copyFileSync(path, join(folder, basename(path)))
      return join(folder, basename(path))
    }),
  )
}

async function retireFormer(context: RecoveryContext, { former }: ReverseRequest, plan: Plan): Promise<void> {
  if (!('engine' in former) || plan.formerName === null) return
  const known = former.engine.machines.find(({ name }) => name === plan.formerName)
  if (known === undefined || known.id === plan.adoption.machineId) return
  await context.step('reverse.before-retiring')
  await former.engine.retire(known)
}

/** The former primary's disks become the images of a store of their own. */
async function adoptDisks(context: RecoveryContext, request: ReverseRequest, plan: Plan): Promise<void> {
  const { adoption, formerPaths } = plan
  const disks = adoption.disks.map(({ diskId, name, sizeBytes }) => {
    const imagePath = resolve(formerPaths[name] ?? join(adoption.directory, name))
    if (!existsSync(imagePath)) makeImage(imagePath, sizeBytes)
    return { diskId, name, imagePath, sizeBytes, receivedLogId: null, appliedLogId: null }
  })
  mkdirSync(request.directory, { recursive: true })
  await using store = ReplicaStore.open(adoption.directory, context.clock)
  const { relationshipId, name: machine, fencingNumber } = adoption
  await store.adopt({ relationshipId, machine, fencingNumber, recoveryJson: null, disks })
}

function makeImage(path: string, sizeBytes: number): void {
  mkdirSync(dirname(path), { recursive: true })
  native.createImage(path, sizeBytes)
}

/** The images are tracked as disks of their own, which know what may differ before anybody writes to them. */
async function trackImages(context: RecoveryContext, { adoption, candidates }: Plan): Promise<void> {
  for (const { diskId, name, path, trackingDirectory } of adoption.disks) {
    mkdirSync(trackingDirectory, { recursive: true })
    const options = { path, name, diskId, trackingDirectory, flushMode: 'disk' as const }
    const disk = await TrackedDisk.open(options, context.pool)
    const pairs = candidates[name]
    if (pairs === null || pairs === undefined) await disk.requireResync('REPLICATION_REVERSED', true)
    else if (pairs.length > 0) await disk.requireRanges('REPLICATION_REVERSED', fromPairs([...pairs]))
    await disk.close()
  }
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
