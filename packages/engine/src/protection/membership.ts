/**
 * Disks that join or leave a machine while it is protected, and which of its disks its cuts hold for.
 *
 * | step of joining | what a crash behind it leaves |
 * |---|---|
 * | a row | the next opening makes the tracking file |
 * | tracking file, open disk | writes are tracked, and in the cuts of the machine; nothing of the disk is promised |
 * | batches of its first copy | copying goes on behind the last one recorded |
 * | a cut behind the last batch is applied | the next cut says so |
 * | marked as copied | cuts and verify hold for it like for the others |
 *
 * A disk leaves in the opposite order: its row says so first, then it is closed, its files go, and the row last.
 */

import { basename } from 'node:path'
import { SecondsiteError, optionOutOfRange } from '../errors.js'
import { checkDisk, type CheckedDisk, type DiskInput } from '../track/disk-input.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { hasTrackingFile, removeTrackingFiles } from '../track/tracking-files.js'
import type { MachineContext } from './machine-context.js'

/** Learns which disks are not copied. */
export async function noteCopies(context: MachineContext): Promise<void> {
  const rows = await context.members.uncopied(context.machineId)
  context.copies.clear()
  for (const { diskId, initialNextOffset, sizeBytes } of rows)
    context.copies.set(diskId, initialNextOffset < sizeBytes ? 'copying' : 'closing')
}

/** Whether there is something to copy. */
export function isCopying(context: MachineContext): boolean {
  return [...context.copies.values()].includes('copying')
}

/** The disks that the cuts of the machine hold for. */
export function copiedDisks(context: MachineContext): readonly TrackedDisk[] {
  return context.disks.filter(({ diskId }) => !context.copies.has(diskId))
}

/** Everything queued is applied, a cut last: disks that were copied to their end are copied. @returns their names */
export async function closeCopies(context: MachineContext): Promise<string[]> {
  if (context.copies.size === 0) return []
  await context.work.step('copy.before-marking')
  const rows = await context.members.markCopied(context.machineId)
  await noteCopies(context)
  return rows.map(({ name }) => name)
}

/**
 * Tracks a disk from here on as part of the machine; nothing of it is copied yet.
 * @param isClosed - whether the machine has been closed meanwhile
 */
export async function addDisk(
  context: MachineContext,
  input: DiskInput,
  isClosed: () => boolean,
): Promise<TrackedDisk> {
  const checked = checkDisk(input, context.diskPaths)
  const row = { diskId: context.random.uuid(), machineId: context.machineId, ...checked }
  // A disk that is tracked by somebody else, now or before, keeps its files whatever fails here.
  const isOurs = !hasTrackingFile(row.trackingDirectory, row.name)
  await context.work.step('disk.before-recording')
  await context.members.add(row)
  try {
    await context.work.step('disk.before-opening')
    const disk = await context.openDisk({ ...row, isExpected: false, shrinkJson: null })
    if (isClosed()) await closeLate(context, disk)
    context.copies.set(row.diskId, 'copying')
    context.disks = [...context.disks, disk]
    context.diskPaths = [...context.diskPaths, row.path]
    return disk
  } catch (error) {
    if (!isClosed()) await undo(context, row, isOurs)
    throw error
  }
}

/** The machine was closed while its disk was opened: the disk is taken up with the others the next time. */
async function closeLate(context: MachineContext, disk: TrackedDisk): Promise<never> {
  await disk.close()
  throw new SecondsiteError('ABORTED', { message: `${context.name} was closed while ${disk.name} was added` })
}

async function undo(
  context: MachineContext,
  row: CheckedDisk & { readonly diskId: string },
  isOurs: boolean,
): Promise<void> {
  await context.members.forget(row.diskId)
  if (isOurs) removeTrackingFiles(row.trackingDirectory, row.name)
}

/**
 * Takes a disk out of the machine: it is not tracked any more; its replica and its part in older points stay.
 * @throws {OPTION_OUT_OF_RANGE} when the machine has no such disk, or no other
 */
export async function removeDisk(context: MachineContext, name: string): Promise<void> {
  const disk = context.disks.find((one) => one.name === name)
  const names = context.disks.map((one) => one.name)
  if (disk === undefined)
    throw optionOutOfRange({ path: 'disk', value: name, range: `one of ${names.join(', ')}` })
  if (names.length === 1)
    throw optionOutOfRange({
      path: 'disk',
      value: name,
      range: 'not the only one; disable ends the protection',
    })
  await context.work.step('disk.before-leaving')
  await context.members.leave(disk.diskId)
  context.disks = context.disks.filter((one) => one !== disk)
  context.diskPaths = context.diskPaths.filter((path) => path !== disk.path)
  context.copies.delete(disk.diskId)
  await context.work.step('disk.before-closing')
  await disk.close()
  await finishLeaving(context)
}

/** Removes what is left of disks that are leaving; after a crash, too. */
export async function finishLeaving(context: MachineContext): Promise<void> {
  for (const { diskId, trackingDirectory, path } of await context.members.leaving(context.machineId)) {
    await context.work.step('disk.before-removing-files')
    removeTrackingFiles(trackingDirectory, basename(path))
    await context.work.step('disk.before-forgetting')
    await context.members.forget(diskId)
  }
}
