/** Comparison of two disks with the digests of both, in one pass, and repair of what differs. */

import { throwIfAborted } from '../errors.js'
import type { DigestAlgorithm } from '../native/index.js'
import { pairOf, walkPair } from './sync.js'
import { settingsOf, type SyncOptions } from './sync-options.js'

/** Options of {@link verifyDisks}: those of a synchronization, and whether it may write. */
export interface VerifyDisksOptions extends Omit<SyncOptions, 'dryRun' | 'restart'> {
  /** Copies what differs from source to replica, then compares again. Default false: nothing is written. */
  readonly repair?: boolean
  /** Default `blake3`. */
  readonly digest?: DigestAlgorithm
}

/** What a comparison found. */
export interface VerifyDisksResult {
  /** Whether both sides are equal now, after a repair when there was one. */
  readonly equal: boolean
  readonly sizeBytes: number
  /** Bytes of differing chunks that were found. */
  readonly differentBytes: number
  /** Offset of the first of them; -1 without one. */
  readonly firstDifference: number
  /** Bytes of differing chunks that a repair has made equal. */
  readonly repairedBytes: number
  /** Digests of both sides as they are now, as `digestDisk` gives them. */
  readonly digests: { readonly algorithm: DigestAlgorithm; readonly source: string; readonly replica: string }
}

/**
 * Compares two disks from end to end, each read once; what an earlier run found is never taken for granted.
 *
 * @throws as {@link syncDisks}, {DISK_NOT_FOUND} when the replica does not exist, repair or not, and
 * {DISK_CHANGED_WHILE_READ} when either side was written to meanwhile
 */
export async function verifyDisks(
  source: string,
  replica: string,
  options: VerifyDisksOptions = {},
): Promise<VerifyDisksResult> {
  const { repair = false, digest: algorithm = 'blake3', ...rest } = options
  const settings = settingsOf({ ...rest, dryRun: true, restart: true })
  throwIfAborted(rest.signal)
  const pair = pairOf(source, replica)
  const compare = () => walkPair(pair, settings, algorithm)
  const found = await compare()
  const isRepair = repair && found.differentBytes > 0
  const repaired = isRepair ? await walkPair(pair, { ...settings, dryRun: false }) : undefined
  const now = isRepair ? await compare() : found
  const digests = now.digests ?? { source: '', replica: '' }
  return {
    equal: now.differentBytes === 0 && digests.source === digests.replica,
    sizeBytes: pair.sizeBytes,
    differentBytes: found.differentBytes,
    firstDifference: found.firstDifference,
    repairedBytes: repaired?.differentBytes ?? 0,
    digests: { algorithm, ...digests },
  }
}
