/**
 * Initial replication: every disk is copied in batches while the guest writes, then the log of everything written since
 * tracking began is applied on top. The result is exact at that cut, whatever was read when.
 *
 * Logs that pass the threshold meanwhile go to the changed map, as ever; the resynchronization that is then owed
 * follows the copy. A batch and how far it brings its disk are recorded together, so nothing is copied twice after a pause or a crash.
 *
 * A disk that joins a machine later is copied by the same batches, between the cycles. These bring the logs of all disks from
 * the start, so the first cut behind its last batch holds for it as well.
 */

import { join } from 'node:path'
import { throwIfAborted } from '../errors.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { buildWithinRoom } from './batches.js'
import type { MachineContext } from './machine-context.js'
import type { ProgressMeter } from './progress.js'
import type { Conversation } from './replica-link.js'
import { queueCut, queueShipment, shipQueue } from './shipping.js'
import { enforceThreshold } from './threshold.js'

/**
 * Copies what is not copied yet, disk after disk, and closes with a cut.
 * @throws {ABORTED} when `signal` is aborted; the next call goes on there
 */
export async function runInitialReplication(
  context: MachineContext,
  conversation: Conversation,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<void> {
  for (const { diskId, initialNextOffset } of await context.members.uncopied(context.machineId)) {
    const disk = context.disks.find((one) => one.diskId === diskId)
    if (disk && initialNextOffset === 0) await beginLogging(disk)
  }
  // The queue is empty after each batch, so nothing but logs of the guest's writes can be given up.
  const afterBatch = async (): Promise<boolean> => {
    await enforceThreshold(context)
    return true
  }
  await copyDisks(context, conversation, meter, { afterBatch, ...(signal ? { signal } : {}) })
  await queueCut(context, { isRebase: true })
  await shipQueue(context, conversation, meter, signal)
}

/** Of a disk of which nothing is copied nothing can be owed: a log from here on is all that its copy needs. */
async function beginLogging(disk: TrackedDisk): Promise<void> {
  const { mode, resyncReason } = disk.status()
  if (mode === 'logging' && resyncReason === null) return
  await disk.beginResync()
  await disk.finishResync()
}

/** Options of {@link copyDisks}. */
export interface CopyOptions {
  readonly signal?: AbortSignal
  /** Called when a batch is applied. @returns whether to go on with the next */
  readonly afterBatch: () => Promise<boolean>
}

/** Copies what is not copied yet, disk after disk, batch after batch. */
export async function copyDisks(
  context: MachineContext,
  conversation: Conversation,
  meter: ProgressMeter,
  { signal, afterBatch }: CopyOptions,
): Promise<void> {
  await shipQueue(context, conversation, meter, signal)
  const begun = new Set<string>()
  for (let next = await nextPlace(context); next !== undefined; next = await nextPlace(context)) {
    throwIfAborted(signal)
    const { disk, offset } = next
    if (!begun.has(disk.diskId)) meter.resumed(offset)
    begun.add(disk.diskId)
    const nextOffset = await queueBatch(context, disk, offset)
    await shipQueue(context, conversation, meter, signal)
    meter.done(nextOffset - offset, disk.name)
    if (!(await afterBatch())) return
  }
}

/** Where copying goes on; a disk that grows meanwhile is copied to its new end. */
async function nextPlace(
  context: MachineContext,
): Promise<{ readonly disk: TrackedDisk; readonly offset: number } | undefined> {
  for (const { diskId, initialNextOffset: offset } of await context.members.uncopied(context.machineId)) {
    const disk = context.disks.find((one) => one.diskId === diskId)
    if (disk && offset < disk.sizeBytes) return { disk, offset }
  }
  return undefined
}

/** Builds and records the next batch of a disk. @returns where the one after it begins */
async function queueBatch(context: MachineContext, disk: TrackedDisk, offset: number): Promise<number> {
  const { store, work } = context
  const { nextCycleNumber } = await store.machine(context.machineId)
  const path = join(disk.trackingDirectory, `${disk.name}.initial-${nextCycleNumber}.hrl`)
  const ranges = [{ offset, lengthBytes: disk.sizeBytes - offset }]
  await work.step('initial.before-batch')
  const request = { disk, ranges, path, dataBytesMax: context.batchBytes }
  const { log, nextOffset } = await buildWithinRoom(context, request)
  await work.step('initial.before-queueing')
  await queueShipment(context, 'initial', [{ diskId: disk.diskId, log }], {
    also: async (transaction) => {
      const query = transaction.updateTable('disks').set({ initialNextOffset: nextOffset })
      await query.where('diskId', '=', disk.diskId).execute()
    },
  })
  return nextOffset
}
