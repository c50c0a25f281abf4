/**
 * One-shot synchronization of two images or block devices.
 *
 * The disk is walked in batches, each one call of the core in a worker, which reads both sides, compares
 * their bytes and copies the blocks that differ. Between batches the caller may stop it, and once a second the replica is made durable and the place is noted,
 * so that a killed run goes on from there. The source must not be written to meanwhile: a disk in use is replicated by
 * the engine, not by this.
 */

import { existsSync, realpathSync } from 'node:fs'
import { SecondsiteError, throwIfAborted } from '../errors.js'
import { native, type NativeSyncReport } from '../native/index.js'
import { WorkerPool } from '../pool/pool.js'
import { MIB } from '../units.js'
import {
  readResumePoint,
  removeResumePoint,
  type ResumeKey,
  resumeKeyOf,
  type ResumePoint,
  saveResumePoint,
} from './resume-file.js'

const BATCH_BYTES = 256 * MIB
const SAVE_INTERVAL_MS = 1000
const CHUNK_BYTES_MIN = 4096
const CHUNK_BYTES_MAX = 4 * MIB
const THREAD_COUNT_MAX = 64

/** One step of progress. */
export interface SyncProgress {
  readonly doneBytes: number
  readonly totalBytes: number
  readonly differentBytes: number
  readonly bytesPerSecond: number
}

/** Options of {@link syncDisks}. */
export interface SyncOptions {
  /** A power of two, 4096 to 4 194 304, default 65 536. */
  readonly chunkBytes?: number
  /** 1 to 64, default 2: a thread a side. */
  readonly threads?: number
  /** Compares only. */
  readonly dryRun?: boolean
  /** Forgets what an earlier run has done. */
  readonly restart?: boolean
  /** Bytes between two chances to stop: a multiple of `chunkBytes`, default 256 MiB. */
  readonly batchBytes?: number
  readonly onProgress?: (progress: SyncProgress) => void
  readonly signal?: AbortSignal
}

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
  /** True when the replica did not exist. */
  readonly isReplicaNew: boolean
}

interface Settings extends SyncOptions {
  readonly chunkBytes: number
  readonly threads: number
  readonly dryRun: boolean
  readonly batchBytes: number
}

/**
 * Makes `replica` equal to `source`; a replica that does not exist is created sparse.
 *
 * Durable when it returns. Stopped or killed, it goes on at the next call with the same options.
 * @throws {DISK_NOT_FOUND} and the other DISK codes for a path that is no disk
 * @throws {DISK_SAME} when both paths name one disk
 * @throws {DISK_SIZE_DIFFERS} when the replica has another size; it is not touched
 * @throws {OPTION_OUT_OF_RANGE}
 * @throws {ABORTED} when `signal` stopped it
 */
export async function syncDisks(
  source: string,
  replica: string,
  options: SyncOptions = {},
): Promise<SyncResult> {
  const settings = settingsOf(options)
  throwIfAborted(options.signal)
  const { sizeBytes, allocatedBytes } = native.probeDisk(source)
  const isReplicaNew = !existsSync(replica)
  if (isReplicaNew && settings.dryRun) return unborn(sizeBytes, allocatedBytes)
  if (isReplicaNew) native.createImage(replica, sizeBytes)
  else checkPair(source, replica, sizeBytes)
  const pool = new WorkerPool({ threadCountMax: 1 })
  try {
    const run = new SyncRun(realpathSync(source), realpathSync(replica), sizeBytes, settings, pool)
    return { ...(await run.finish()), isReplicaNew }
  } finally {
    await pool.close()
  }
}

function unborn(sizeBytes: number, allocatedBytes: number): SyncResult {
  const nothing = { comparedBytes: 0, writtenBytes: 0, resumedFromOffset: 0 }
  const firstDifference = allocatedBytes > 0 ? 0 : -1
  return { sizeBytes, differentBytes: allocatedBytes, firstDifference, isReplicaNew: true, ...nothing }
}

function checkPair(source: string, replica: string, sizeBytes: number): void {
  const found = native.probeDisk(replica).sizeBytes
  if (native.isSameDisk(source, replica)) {
    const message = `${source} and ${replica} are the same disk`
    throw new SecondsiteError('DISK_SAME', { message, details: { source, replica } })
  }
  if (found === sizeBytes) return
  const message = `${replica} has ${found} bytes, ${source} has ${sizeBytes}`
  const details = { source, replica, sourceSizeBytes: sizeBytes, replicaSizeBytes: found }
  throw new SecondsiteError('DISK_SIZE_DIFFERS', { message, details })
}

function settingsOf(options: SyncOptions): Settings {
  const { chunkBytes = 64 * 1024, threads = 2, dryRun = false } = options
  const isPower = Number.isSafeInteger(chunkBytes) && Number.isInteger(Math.log2(chunkBytes))
  check(
    isPower && chunkBytes >= CHUNK_BYTES_MIN && chunkBytes <= CHUNK_BYTES_MAX,
    'chunkBytes',
    chunkBytes,
    'a power of two, 4096 to 4194304',
  )
  check(
    Number.isInteger(threads) && threads >= 1 && threads <= THREAD_COUNT_MAX,
    'threads',
    threads,
    '1 to 64',
  )
  const batchBytes = options.batchBytes ?? BATCH_BYTES
  check(
    Number.isSafeInteger(batchBytes) && batchBytes > 0 && batchBytes % chunkBytes === 0,
    'batchBytes',
    batchBytes,
    'a multiple of chunkBytes',
  )
  return { ...options, chunkBytes, threads, dryRun, batchBytes }
}

function check(isGood: boolean, option: string, value: number | string, range: string): void {
  if (isGood) return
  const message = `${option} must be ${range}, not ${value}`
  throw new SecondsiteError('OPTION_OUT_OF_RANGE', { message, details: { option, value, range } })
}

/** One run: where it stands, and what it counts. */
class SyncRun {
  readonly #source: string
  readonly #replica: string
  readonly #sizeBytes: number
  readonly #settings: Settings
  readonly #pool: WorkerPool
  readonly #key: ResumeKey
  readonly #resumedFromOffset: number
  readonly #startedMs = performance.now()
  #point: ResumePoint
  #firstDifference = -1
  #savedMs = performance.now()

  constructor(source: string, replica: string, sizeBytes: number, settings: Settings, pool: WorkerPool) {
    this.#source = source
    this.#replica = replica
    this.#sizeBytes = sizeBytes
    this.#settings = settings
    this.#pool = pool
    this.#key = resumeKeyOf(source, replica, { sizeBytes, chunkBytes: settings.chunkBytes })
    this.#point = this.#startingPoint()
    this.#resumedFromOffset = this.#point.nextOffset
  }

  async finish(): Promise<Omit<SyncResult, 'isReplicaNew'>> {
    this.#tell()
    while (this.#point.nextOffset < this.#sizeBytes) {
      await this.#stopHere()
      await this.#batch()
      this.#tell()
    }
    if (!this.#settings.dryRun) await this.#complete()
    return {
      sizeBytes: this.#sizeBytes,
      comparedBytes: this.#sizeBytes - this.#resumedFromOffset,
      differentBytes: this.#point.differentBytes,
      writtenBytes: this.#point.writtenBytes,
      firstDifference: this.#firstDifference,
      resumedFromOffset: this.#resumedFromOffset,
    }
  }

  /** A block device does not tell when it was written to, so a run over one always begins at its start. */
  #startingPoint(): ResumePoint {
    const { dryRun, restart } = this.#settings
    const isFresh = dryRun || restart || native.probeDisk(this.#source).isBlockDevice
    const saved = isFresh ? undefined : readResumePoint(this.#replica, this.#key)
    return saved ?? { nextOffset: 0, differentBytes: 0, writtenBytes: 0 }
  }

  async #batch(): Promise<void> {
    const { chunkBytes, dryRun, threads, batchBytes } = this.#settings
    const { nextOffset } = this.#point
    const lengthBytes = Math.min(batchBytes, this.#sizeBytes - nextOffset)
    const how = { chunkBytes, dryRun, threads }
    const args = [this.#source, this.#replica, nextOffset, lengthBytes, how]
    const report = (await this.#pool.run('native', { call: 'syncRange', args })) as NativeSyncReport
    if (this.#firstDifference < 0) this.#firstDifference = report.firstDifference
    this.#point = {
      nextOffset: nextOffset + lengthBytes,
      differentBytes: this.#point.differentBytes + report.differentBytes,
      writtenBytes: this.#point.writtenBytes + report.writtenBytes,
    }
    if (performance.now() - this.#savedMs >= SAVE_INTERVAL_MS) await this.#save()
  }

  /** Throws when the caller wants to stop, with everything done so far safe. */
  async #stopHere(): Promise<void> {
    const { signal } = this.#settings
    if (!signal?.aborted) return
    await this.#save()
    throwIfAborted(signal)
  }

  /** The replica first: the file must never promise more than is durable. */
  async #save(): Promise<void> {
    if (this.#settings.dryRun) return
    await this.#pool.run('native', { call: 'flushDisk', args: [this.#replica] })
    saveResumePoint(this.#replica, this.#key, this.#point)
    this.#savedMs = performance.now()
  }

  async #complete(): Promise<void> {
    await this.#pool.run('native', { call: 'flushDisk', args: [this.#replica] })
    removeResumePoint(this.#replica)
  }

  #tell(): void {
    const { nextOffset, differentBytes } = this.#point
    const seconds = (performance.now() - this.#startedMs) / 1000
    this.#settings.onProgress?.({
      doneBytes: nextOffset,
      totalBytes: this.#sizeBytes,
      differentBytes,
      bytesPerSecond: seconds > 0 ? (nextOffset - this.#resumedFromOffset) / seconds : 0,
    })
  }
}
