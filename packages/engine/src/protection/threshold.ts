/**
 * The threshold: logs that the replica has not acknowledged may grow to a share of their disk, 50 % by default.
 *
 * Beyond it they are coalesced; if that is not enough, the ranges of all of them go to the changed map, the logs are
 * deleted, and a resynchronization is owed. Tracking never stops. The share holds per disk and for all disks together.
 */

import type { MachineContext } from './machine-context.js'
import { dropQueuedLogs, requeue, untouchedCycles } from './shipping.js'

/** Whether unreleased logs are over the threshold, per disk or together. */
export function isOverThreshold(context: MachineContext): boolean {
  const { resyncThresholdPercent } = context.policy
  const sizes = context.disks.map((disk) => ({
    logBytes: disk.status().unreleasedLogBytes,
    sizeBytes: disk.sizeBytes,
  }))
  const together = {
    logBytes: sizes.reduce((total, disk) => total + disk.logBytes, 0),
    sizeBytes: sizes.reduce((total, disk) => total + disk.sizeBytes, 0),
  }
  return [...sizes, together].some(
    ({ logBytes, sizeBytes }) => logBytes * 100 > sizeBytes * resyncThresholdPercent,
  )
}

/**
 * Keeps the logs under the threshold.
 * @returns true when logs had to be coalesced and that was enough; a resynchronization that is owed shows in the status
 */
export async function enforceThreshold(context: MachineContext): Promise<boolean> {
  if (!isOverThreshold(context)) return false
  if (context.policy.thresholdAction === 'coalesce' && (await coalesceAll(context))) return true
  await foldAll(context)
  return false
}

/**
 * Gives up the logs of all disks for their changed maps; what is queued of them goes. Batches of a first copy stay, since
 * nothing else knows what they bring.
 */
export async function foldAll(context: MachineContext): Promise<void> {
  await context.work.step('threshold.before-fold')
  for (const disk of context.disks) await disk.foldLogs('LOG_THRESHOLD')
  await context.work.step('threshold.before-dropping')
  await dropQueuedLogs(context)
}

/** Makes one log of the logs of each disk whose sending has not begun. @returns whether that was enough */
async function coalesceAll(context: MachineContext): Promise<boolean> {
  const cycles = await untouchedCycles(context)
  const numbers = cycles.map((cycle) => cycle.cycleNumber)
  const queued = (await context.store.queuedLogs(context.machineId)).filter((log) =>
    numbers.includes(log.cycleNumber),
  )
  for (const disk of context.disks) {
    const ids = queued.filter((log) => log.diskId === disk.diskId).map((log) => log.logId)
    if (ids.length > 1) await disk.coalesceLogs(ids)
  }
  await context.work.step('threshold.before-requeueing')
  if (cycles.length > 0) await requeue(context, cycles)
  return !isOverThreshold(context)
}
