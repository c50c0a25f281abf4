/** Comparison of two disks, and repair of what differs. */

import { native } from '../native/index.js'
import { syncDisks, type SyncOptions, type SyncResult } from './sync.js'

/** Options of {@link verifyDisks}: those of a synchronization, and whether it may write. */
export interface VerifyDisksOptions extends Omit<SyncOptions, 'dryRun' | 'restart'> {
  /** Copies what differs from source to replica. Default false: nothing is written. */
  readonly repair?: boolean
}

/**
 * Compares two disks from end to end; what an earlier run found is never taken for granted.
 *
 * @throws as {@link syncDisks}, and {DISK_NOT_FOUND} when the replica does not exist, repair or not
 */
export async function verifyDisks(
  source: string,
  replica: string,
  options: VerifyDisksOptions = {},
): Promise<SyncResult> {
  const { repair = false, ...rest } = options
  native.probeDisk(source)
  native.probeDisk(replica)
  return syncDisks(source, replica, { ...rest, dryRun: !repair, restart: true })
}
