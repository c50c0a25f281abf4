/**
 * The ends of a failover: cancelled, everything as before; or committed, the images brought to what the layers show.
 *
 * A commit cannot be taken back. It is recorded first, with what the former primary will miss; a death afterwards goes on
 * with it when the replica is opened the next time. Nothing it does grows with the size of the disks.
 */

import { rmSync } from 'node:fs'
import { native } from '../native/index.js'
import { toPairs } from '../ranges.js'
import type { ReplicationState } from '../states.js'
import { growImage, shrinkImage } from '../store/image-file.js'
import type { Identity } from '../store/replica-schema.js'
import { historyFolder, undoFolder } from '../store/undo-folder.js'
import { identityOf, readPoints, type RecoveryContext } from './context.js'
import type { RecoveryDevice } from './device.js'
import { diffPoints } from './diff.js'
import { type Failover, folderOf, move } from './failover.js'
import { inUse, locked as lockedError } from './locks.js'
import { withWork } from './native-work.js'

/** Throws the layers away, which nobody can open meanwhile; the primary is taken from again. @throws {INVALID_STATE} */
export async function cancelFailover(context: RecoveryContext): Promise<void> {
  const { machine, state } = await identityOf(context)
  const before = (await context.recovery.failover())?.stateBefore
  const to = context.next(state, 'cancelFailover', machine, before)
  await context.step('cancel.before-moving')
  await move(context, 'cancelFailover', state, to, async (transaction) => {
    await transaction.deleteFrom('failover').execute()
  })
  await context.step('cancel.before-files')
  rmSync(folderOf(context), { recursive: true, force: true })
}

/** What a commit begins with. */
interface CommitStart {
  readonly identity: Identity
  readonly to: ReplicationState
  readonly pointNumber: number
}

/** Whether a commit can begin, and where it leads. @throws {INVALID_STATE, POINT_LOCKED, POINT_IN_USE} */
export async function requireCommit(
  context: RecoveryContext,
  { dropLocked, isOpen }: { readonly dropLocked: boolean; readonly isOpen: boolean },
): Promise<CommitStart> {
  const identity = await identityOf(context)
  const to = context.next(identity.state, 'commitFailover', identity.machine)
  if (!dropLocked) await refuseLocked(context)
  const { pointNumber = 0 } = (await context.recovery.failover()) ?? {}
  await refuseRead(context, isOpen ? pointNumber : undefined)
  return { identity, to, pointNumber }
}

/**
 * Records the commit: the fencing number rises, so that the former primary is refused for good.
 * @param options.isOpen - whether the caller has the failover open, which reads its point itself
 * @throws {INVALID_STATE, POINT_LOCKED, POINT_IN_USE}; nothing has changed
 */
export async function recordCommit(
  context: RecoveryContext,
  { dropLocked, isOpen }: { readonly dropLocked: boolean; readonly isOpen: boolean },
): Promise<void> {
  const { identity, to, pointNumber } = await requireCommit(context, { dropLocked, isOpen })
  const { state, fencingNumber } = identity
  const undone = await diffPoints(context, pointNumber, undefined)
  const undoneJson = JSON.stringify(Object.fromEntries(undone.map((one) => [one.disk, toPairs(one.ranges)])))
  await move(context, 'commitFailover', state, to, async (transaction) => {
    const committedMs = context.clock.nowMs()
    await transaction.updateTable('failover').set({ committedMs, undoneJson }).execute()
    await transaction
      .updateTable('identity')
      .set({ fencingNumber: fencingNumber + 1 })
      .execute()
  })
}

async function refuseLocked(context: RecoveryContext): Promise<void> {
  const nowMs = context.clock.nowMs()
  const locked = (await context.recovery.points()).filter(({ lockedUntilMs }) => (lockedUntilMs ?? 0) > nowMs)
  if (locked.length === 0) return
  const untilMs = Math.max(...locked.map(({ lockedUntilMs }) => lockedUntilMs ?? 0))
  throw lockedError(
    context.directory,
    locked.map((point) => point.pointNumber),
    untilMs,
  )
}

/** Who reads a point would read what the commit writes. @param own - read once by the caller. @throws {POINT_IN_USE} */
async function refuseRead(context: RecoveryContext, own: number | undefined): Promise<void> {
  for (const { disk, points: read } of await readPoints(context)) {
    const ownIndex = own === undefined ? -1 : read.indexOf(own)
    const points = read.filter((_, index) => index !== ownIndex)
    if (points.length > 0) throw inUse(context.directory, points, `a reader of ${disk}`)
  }
}

/** How far a commit is. */
export interface CommitProgress {
  readonly disk: string
  /** Bytes that the image shows since this call, and those that it may have to be given at most. */
  readonly doneBytes: number
  readonly totalBytes: number
}

interface SettleOptions {
  readonly onProgress?: ((progress: CommitProgress) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** Brings the images to what the layers show, then lets go of points and of what the primary had sent. */
export async function settleCommit(
  context: RecoveryContext,
  failover: Failover,
  options: SettleOptions = {},
): Promise<void> {
  const disks = await context.store.disks()
  for (const layer of failover.layers) {
    await context.step('commit.before-settling')
    const image = disks.find(({ diskId }) => diskId === layer.diskId)?.imagePath ?? ''
    // The point may be of a time when the disk was larger, or smaller, than its image is now.
    await growImage(image, layer.sizeBytes)
    await settle(context, layer, image, options)
    await context.step('commit.before-resizing')
    await context.store.setSize(layer.diskId, layer.sizeBytes)
    await shrinkImage(image, layer.sizeBytes)
  }
  await failover.leavePoint()
  await context.step('commit.before-dropping')
  await dropHistory(context)
  await context.step('commit.before-settled')
  await context.recovery.setFailover({ isSettled: 1 })
}

async function settle(
  context: RecoveryContext,
  layer: RecoveryDevice,
  image: string,
  { onProgress, signal }: SettleOptions,
): Promise<void> {
  const { dataBytes, zeroBytes } = native.overlayUsage(layer.handle)
  const totalBytes = dataBytes + zeroBytes + (await undoneBytes(context, layer.name))
  const look = (work: number): void => {
    const doneBytes = Math.min(totalBytes, native.workProgress(work).doneBytes)
    onProgress?.({ disk: layer.name, doneBytes, totalBytes })
  }
  await withWork(signal, look, (work) =>
    context.pool.run('native', { call: 'settleOverlay', args: [layer.handle, image, work] }),
  )
}

/** What the chosen point takes back of the image, as it was recorded. */
async function undoneBytes({ recovery }: RecoveryContext, disk: string): Promise<number> {
  const undone = JSON.parse((await recovery.failover())?.undoneJson ?? '{}') as Record<string, number[]>
  return (undone[disk] ?? []).reduce((total, number, index) => (index % 2 === 1 ? total + number : total), 0)
}

async function dropHistory(context: RecoveryContext): Promise<void> {
  const { recovery, store, pool, directory } = context
  await recovery.removePoints((await recovery.points()).map(({ pointNumber }) => pointNumber))
  for (const disk of await store.disks()) {
    const args = [undoFolder(directory, disk), Number.MAX_SAFE_INTEGER]
    await pool.run('native', { call: 'dropPointsBefore', args })
  }
  const kept = await recovery.keptLogs()
  await recovery.removeKeptLogs(kept.map(({ logId }) => logId))
  const open = await store.openCycles()
  const spooled = (await Promise.all(open.map(({ cycleNumber }) => store.logsOfCycle(cycleNumber)))).flat()
  await store.dropCycles(open.map(({ cycleNumber }) => cycleNumber))
  for (const { path, indexPath } of spooled)
    for (const file of [path, indexPath]) rmSync(file, { force: true })
  rmSync(historyFolder(directory), { recursive: true, force: true })
}
