/**
 * Images of the replica that somebody has deleted or cut short: made anew because somebody says so, never by themselves.
 *
 * The disks owe a whole resynchronization, durably, before the replica is told; so whatever dies in between, what it has made
 * anew is never taken for a copy.
 */

import { isSecondsiteError } from '../errors.js'
import type { MachineContext } from './machine-context.js'
import { withReplica } from './replica-link.js'

/** @throws what keeps the replica from being reached */
export async function recreateLostImages(context: MachineContext): Promise<void> {
  const lost = await lostImages(context)
  if (lost.length === 0) return
  const disks = context.disks.filter(({ diskId }) => lost.includes(diskId))
  await context.work.step('image.before-owing')
  for (const disk of disks) await disk.requireResync('REPLICA_CHANGED', true)
  // What a pass that was interrupted has found equal is gone.
  await context.resyncs.forgetOpen(context.machineId)
  await context.work.step('image.before-telling')
  try {
    for (const { diskId } of disks) context.recreating.add(diskId)
    await withReplica(context, undefined, async () => {})
  } finally {
    context.recreating.clear()
  }
  await context.events.raise(context, 'imagesRecreated', { disks: disks.map(({ name }) => name) })
}

async function lostImages(context: MachineContext): Promise<readonly string[]> {
  try {
    await withReplica(context, undefined, async () => {})
    return []
  } catch (error) {
    if (!isSecondsiteError(error, 'REPLICA_IMAGE_LOST')) throw error
    return error.details['diskIds'] as readonly string[]
  }
}
