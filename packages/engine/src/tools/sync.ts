/**
 * One-shot synchronization of two images or block devices.
 *
 * The source must not be written to meanwhile: a disk in use is replicated by the engine, not by this. A file that is
 * written to all the same is noticed at the end.
 */

import { existsSync, realpathSync } from 'node:fs'
import { SecondsiteError, throwIfAborted } from '../errors.js'
import { type DigestAlgorithm, native } from '../native/index.js'
import { WorkerPool } from '../pool/pool.js'
import type { StartedOverReason } from './resume-file.js'
import { settingsOf, type SyncOptions, type SyncSettings } from './sync-options.js'
import { type DiskPair, type RunResult, SyncRun } from './sync-run.js'

/** What a synchronization found and did. */
export interface SyncResult {
  readonly sizeBytes: number
  /** Bytes looked at by this run. */
  readonly comparedBytes: number
  /** Bytes of differing chunks, those of the run that this one continues included. */
  readonly differentBytes: number
  /** As `differentBytes`, what was written to the replica. */
  readonly writtenBytes: number
  /** Offset of the first differing chunk that this run found; -1 without one. */
  readonly firstDifference: number
  /** Where this run went on from; 0 for one from the start. */
  readonly resumedFromOffset: number
  /** Why this run did not go on from where an interrupted one stopped; null when it did, or when there was none. */
  readonly startedOver: StartedOverReason | null
  /** True when the replica did not exist. */
  readonly isReplicaNew: boolean
}

/**
 * Makes `replica` equal to `source`; a replica that does not exist is created sparse.
 *
 * Durable when it returns. Stopped or killed, it goes on at the next call with the same options, unless source or replica
 * were changed since, or one of them is a block device, which does not tell: then it begins at the start.
 * @throws {DISK_NOT_FOUND} and the other DISK codes for a path that is no disk
 * @throws {DISK_SAME} when both paths name one disk
 * @throws {DISK_SIZE_DIFFERS} when the replica has another size; it is not touched
 * @throws {DISK_CHANGED_WHILE_READ} when a source that is a file was written to meanwhile; the replica is durable, and
 * may hold neither its old nor its new content
 * @throws {OPTION_OUT_OF_RANGE}
 * @throws {ABORTED} when `signal` stopped it
 */
export async function syncDisks(
  source: string,
  replica: string,
  options: SyncOptions = {},
): Promise<SyncResult> {
  const isReplicaNew = !existsSync(replica)
  const settings = settingsOf(options, isReplicaNew ? 1 : 2)
  throwIfAborted(options.signal)
  const { sizeBytes, allocatedBytes } = native.probeDisk(source)
  if (isReplicaNew && settings.dryRun) return unborn(sizeBytes, allocatedBytes)
  if (isReplicaNew) native.createImage(replica, sizeBytes)
  const { digests: _, ...result } = await walkPair(pairOf(source, replica), settings)
  return { ...result, isReplicaNew }
}

/** Walks over a pair once, with a worker of its own. */
export async function walkPair(
  pair: DiskPair,
  settings: SyncSettings,
  digest?: DigestAlgorithm,
): Promise<RunResult> {
  const pool = new WorkerPool({ threadCountMax: 1 })
  try {
    return await new SyncRun(pair, settings, pool, digest).finish()
  } finally {
    await pool.close()
  }
}

/** The pair of two disks that exist. @throws {DISK_SAME, DISK_SIZE_DIFFERS} and the codes of a path that is no disk */
export function pairOf(source: string, replica: string): DiskPair {
  const { sizeBytes } = native.probeDisk(source)
  const found = native.probeDisk(replica).sizeBytes
  if (native.isSameDisk(source, replica)) {
    const message = `${source} and ${replica} are the same disk`
    throw new SecondsiteError('DISK_SAME', { message, details: { source, replica } })
  }
  if (found !== sizeBytes) {
    const message = `${replica} has ${found} bytes, ${source} has ${sizeBytes}`
    const details = { source, replica, sourceSizeBytes: sizeBytes, replicaSizeBytes: found }
    throw new SecondsiteError('DISK_SIZE_DIFFERS', { message, details })
  }
  return { source: realpathSync(source), replica: realpathSync(replica), sizeBytes }
}

function unborn(sizeBytes: number, allocatedBytes: number): SyncResult {
  const nothing = { comparedBytes: 0, writtenBytes: 0, resumedFromOffset: 0, startedOver: null }
  const firstDifference = allocatedBytes > 0 ? 0 : -1
  return { sizeBytes, differentBytes: allocatedBytes, firstDifference, isReplicaNew: true, ...nothing }
}
