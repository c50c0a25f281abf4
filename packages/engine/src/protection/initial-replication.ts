/**
 * Initial replication: every disk is copied in batches while the guest writes, then the log of everything written since
 * tracking began is applied on top. The result is exact at that cut, whatever was read when.
 *
 * Logs that pass the threshold meanwhile go to the changed map, as ever; the resynchronization that is then owed
 * follows the copy. A batch and how far it brings its disk are recorded together, so nothing is copied twice after a pause or a crash.
 */

import { join } from 'node:path'
import { throwIfAborted } from '../errors.js'
import type { Disk } from '../store/state-schema.js'
import { buildWithinRoom } from './batches.js'
import { diskOf, type MachineContext } from './machine-context.js'
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
  await shipQueue(context, conversation, meter, signal)
  for (const disk of await context.store.disks(context.machineId)) {
    meter.resumed(disk.initialNextOffset)
    await copyDisk(context, conversation, disk, meter, signal)
  }
  await queueCut(context, { isRebase: true })
  await shipQueue(context, conversation, meter, signal)
}

async function copyDisk(
  context: MachineContext,
  conversation: Conversation,
  disk: Disk,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<void> {
  let offset = disk.initialNextOffset
  while (offset < disk.sizeBytes) {
    throwIfAborted(signal)
    const nextOffset = await queueBatch(context, disk, offset)
    await shipQueue(context, conversation, meter, signal)
    // The queue is empty here, so nothing but logs of the guest's writes can be given up.
    await enforceThreshold(context)
    meter.done(nextOffset - offset, disk.name)
    offset = nextOffset
  }
}

/** Builds and records the next batch of a disk. @returns where the one after it begins */
async function queueBatch(context: MachineContext, disk: Disk, offset: number): Promise<number> {
  const { store, work } = context
  const { nextCycleNumber } = await store.machine(context.machineId)
  const path = join(disk.trackingDirectory, `${disk.name}.initial-${nextCycleNumber}.hrl`)
  const ranges = [{ offset, lengthBytes: disk.sizeBytes - offset }]
  await work.step('initial.before-batch')
  const live = diskOf(context, disk.diskId)
  const { log, nextOffset } = await buildWithinRoom(context, {
    disk: live,
    ranges,
    path,
    dataBytesMax: context.batchBytes,
  })
  await work.step('initial.before-queueing')
  await queueShipment(context, 'initial', [{ diskId: disk.diskId, log }], {
    also: async (transaction) => {
      const query = transaction.updateTable('disks').set({ initialNextOffset: nextOffset })
      await query.where('diskId', '=', disk.diskId).execute()
    },
  })
  return nextOffset
}
