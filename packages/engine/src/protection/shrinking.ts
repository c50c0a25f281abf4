/**
 * Disks that have become smaller, and may be.
 *
 * A smaller disk may be the wrong one, so nothing shrinks before somebody has named the very size it has now.
 *
 * | step | what a crash behind it leaves |
 * |---|---|
 * | the row of the disk says: accepted, from this size to that | the disk is opened at its new size, and compared as a whole |
 * | tracking ends with the disk; nothing is written behind it any more | logs still reach to the old end |
 * | a cut: its shipment carries the shrink | the queue has it |
 * | the replica has applied everything up to that cut, has saved for its points what it cuts off, and cuts it off | it has done that once, and knows it by the id of the shrink |
 * | the row forgets it | |
 *
 * Until the last step the replica counts with the size that it had, and a disk that grows meanwhile is not looked at.
 */

import type { DiskShrink } from '../disk-shrink.js'
import { SecondsiteError, optionOutOfRange } from '../errors.js'
import type { Disk } from '../store/state-schema.js'
import { diskSizeBytes } from '../track/disk-input.js'
import type { MachineContext } from './machine-context.js'

/** A shrink that was accepted; null of a disk without one. */
export function pendingShrink({ shrinkJson }: Pick<Disk, 'shrinkJson'>): DiskShrink | null {
  return shrinkJson === null ? null : (JSON.parse(shrinkJson) as DiskShrink)
}

/** Shrinks of a machine that its replica has not carried out. */
export async function pendingShrinks(context: MachineContext): Promise<DiskShrink[]> {
  const rows = await context.store.disks(context.machineId)
  return rows.map(pendingShrink).filter((shrink) => shrink !== null)
}

/** Those of them that a cut which is made now carries: nothing reaches behind the end of the disk any more. */
export async function carriedShrinks(context: MachineContext): Promise<DiskShrink[]> {
  const isTracked = ({ diskId, toBytes }: DiskShrink): boolean =>
    context.disks.some((disk) => disk.diskId === diskId && disk.sizeBytes === toBytes)
  return (await pendingShrinks(context)).filter(isTracked)
}

/**
 * Accepts that disks have shrunk.
 * @param sizes - bytes that a disk has now, by its name
 * @returns what was accepted; a disk that has not shrunk has nothing to accept
 * @throws {OPTION_OUT_OF_RANGE, DISK_SIZE_DIFFERS}: nothing has changed
 * @throws {LOG_WRITE_FAILED, DISK_SYNC_FAILED}: the disk keeps its old size here; accept it again
 */
export async function acceptShrinks(
  context: MachineContext,
  sizes: Readonly<Record<string, number>>,
): Promise<DiskShrink[]> {
  const rows = await context.store.disks(context.machineId)
  const accepted = Object.entries(sizes).flatMap(([name, sizeBytes]) => {
    const row = rows.find((one) => one.name === name)
    if (row === undefined)
      throw optionOutOfRange({
        path: 'disk',
        value: name,
        range: `one of ${rows.map((one) => one.name).join(', ')}`,
      })
    const shrink = checkShrink(context, row, sizeBytes)
    return shrink ? [shrink] : []
  })
  await context.work.step('shrink.before-recording')
  await record(context, accepted)
  for (const { diskId, toBytes } of accepted) {
    await context.work.step('shrink.before-tracking')
    await context.disks.find((disk) => disk.diskId === diskId)?.shrink(toBytes)
    await context.work.step('shrink.before-noting')
  }
  await noteShrinks(context)
  return accepted
}

/** @returns undefined when the disk is no smaller than it was */
function checkShrink(context: MachineContext, row: Disk, wantedBytes: number): DiskShrink | undefined {
  const { diskId, name, path } = row
  const foundBytes = diskSizeBytes(path)
  const trackedBytes = context.disks.find((disk) => disk.diskId === diskId)?.latestSizeBytes()
  const pending = pendingShrink(row)
  const isAccepted = pending?.toBytes === foundBytes
  if (trackedBytes === undefined ? foundBytes >= row.sizeBytes && !isAccepted : foundBytes >= trackedBytes)
    return undefined
  if (foundBytes !== wantedBytes) {
    throw new SecondsiteError('DISK_SIZE_DIFFERS', {
      message: `${path} has ${foundBytes} bytes, not the ${wantedBytes} that were accepted`,
      details: { path, disk: name, foundBytes, acceptedBytes: wantedBytes, trackedBytes: row.sizeBytes },
    })
  }
  if (pending && isAccepted) return pending
  // The replica may have carried out the one before by now, or not: it takes the larger size for what it had.
  const fromBytes = Math.max(row.sizeBytes, trackedBytes ?? 0, pending?.fromBytes ?? 0)
  return { diskId, shrinkId: context.random.uuid(), fromBytes, toBytes: wantedBytes }
}

async function record(context: MachineContext, accepted: readonly DiskShrink[]): Promise<void> {
  await context.store.atomically(async (transaction) => {
    for (const shrink of accepted) {
      const values = { shrinkJson: JSON.stringify(shrink), sizeBytes: shrink.toBytes }
      const own = transaction.updateTable('disks').where('diskId', '=', shrink.diskId)
      await own.set(values).execute()
    }
  })
}

/**
 * Learns which shrinks are pending, and brings their rows together with the disks: one that has its old size again has not
 * shrunk; one whose tracking was lost is tracked, and compared as a whole, at the size it has.
 */
export async function noteShrinks(context: MachineContext): Promise<void> {
  for (const shrink of await pendingShrinks(context)) {
    const sizeBytes = context.disks.find(({ diskId }) => diskId === shrink.diskId)?.sizeBytes
    if (sizeBytes === undefined || sizeBytes === shrink.toBytes) continue
    if (sizeBytes < shrink.fromBytes) await record(context, [{ ...shrink, toBytes: sizeBytes }])
    else await forget(context, shrink, { sizeBytes })
  }
  context.shrinking.clear()
  for (const { diskId, fromBytes } of await pendingShrinks(context)) context.shrinking.set(diskId, fromBytes)
}

/** The replica has carried out what a shipment brought. */
export async function settleShrinks(context: MachineContext, shrinks: readonly DiskShrink[]): Promise<void> {
  for (const shrink of shrinks) await forget(context, shrink, {})
  if (shrinks.length > 0) await noteShrinks(context)
}

async function forget(
  context: MachineContext,
  { diskId, shrinkId }: DiskShrink,
  values: { readonly sizeBytes?: number },
): Promise<void> {
  const row = (await context.store.disks(context.machineId)).find((disk) => disk.diskId === diskId)
  if (row === undefined || pendingShrink(row)?.shrinkId !== shrinkId) return
  const query = context.store.db.updateTable('disks').set({ shrinkJson: null, ...values })
  await query.where('diskId', '=', diskId).execute()
}
