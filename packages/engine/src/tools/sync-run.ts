/**
 * One walk over a pair of disks, in batches: each is one call of the core in a worker, which reads both sides, compares
 * their bytes and copies the blocks that differ.
 *
 * Between batches the caller may stop it. Once a second the replica is made durable and the place is noted, so that a
 * killed run goes on from there.
 */

import { createHash, type Hash } from 'node:crypto'
import { abortedError, SecondsiteError } from '../errors.js'
import { type DigestAlgorithm, type NativeSyncReport } from '../native/index.js'
import type { WorkerPool } from '../pool/pool.js'
import { formatBytes } from '../units.js'
import { checkUnchanged, type DiskStamp, stampOf } from './disk-stamp.js'
import { DIGEST_SEED } from './digest.js'
import {
  readResumption,
  removeResumePoint,
  type ResumeKey,
  resumeKeyOf,
  type ResumePoint,
  saveResumePoint,
  type StartedOverReason,
} from './resume-file.js'
import type { SyncSettings } from './sync-options.js'

const SAVE_INTERVAL_MS = 1000

/** The two disks, by paths without links, of one size. */
export interface DiskPair {
  readonly source: string
  readonly replica: string
  readonly sizeBytes: number
}

/** What a walk found and did. */
export interface RunResult {
  readonly sizeBytes: number
  readonly comparedBytes: number
  readonly differentBytes: number
  readonly writtenBytes: number
  readonly firstDifference: number
  readonly resumedFromOffset: number
  readonly startedOver: StartedOverReason | null
  readonly digests: { readonly source: string; readonly replica: string } | null
}

interface Comparison {
  readonly report: NativeSyncReport
  readonly sourceDigests: Uint8Array
  readonly replicaDigests: Uint8Array
}

/** One run: where it stands, and what it counts. */
export class SyncRun {
  readonly #pair: DiskPair
  readonly #settings: SyncSettings
  readonly #pool: WorkerPool
  readonly #digest: DigestAlgorithm | undefined
  readonly #hashes: readonly [Hash, Hash] = [createHash('sha256'), createHash('sha256')]
  readonly #key: ResumeKey | undefined
  readonly #stamps: readonly (readonly [string, DiskStamp | undefined])[]
  readonly #resumedFromOffset: number
  readonly #startedOver: StartedOverReason | null
  readonly #startedMs = performance.now()
  #point: ResumePoint
  #firstDifference = -1
  #savedMs = performance.now()
  #longestMs = SAVE_INTERVAL_MS

  /** @param digest - digests both sides on the way; a run with `dryRun` alone can */
  constructor(pair: DiskPair, settings: SyncSettings, pool: WorkerPool, digest?: DigestAlgorithm) {
    this.#pair = pair
    this.#settings = settings
    this.#pool = pool
    this.#digest = digest
    // A run that writes to the replica moves its times itself.
    const watched = settings.dryRun ? [pair.source, pair.replica] : [pair.source]
    this.#stamps = watched.map((path) => [path, stampOf(path)] as const)
    this.#key = settings.dryRun ? undefined : resumeKeyOf(pair.source, pair.replica, settings.chunkBytes)
    const isResumed = this.#key !== undefined && settings.restart !== true
    const { point, startedOver } =
      isResumed && this.#key ? readResumption(pair.replica, this.#key) : { point: undefined }
    this.#point = point ?? { nextOffset: 0, differentBytes: 0, writtenBytes: 0 }
    this.#startedOver = startedOver ?? null
    this.#resumedFromOffset = this.#point.nextOffset
  }

  /**
   * Walks to the end of the disks.
   * @throws {ABORTED} when the signal stopped it, {DISK_CHANGED_WHILE_READ} when somebody else wrote meanwhile, and the
   * DISK codes of reading and writing
   */
  async finish(): Promise<RunResult> {
    try {
      // What the last run noted when it stopped in order would take this run's writes for somebody else's.
      if (this.#resumedFromOffset > 0) await this.#save(true)
      await this.#walk()
    } catch (error) {
      await this.#saveWhatIsDone()
      throw error
    }
    if (!this.#settings.dryRun) await this.#complete()
    for (const [path, before] of this.#stamps) checkUnchanged(path, before)
    return this.#result()
  }

  #result(): RunResult {
    const { sizeBytes } = this.#pair
    const [source, replica] = this.#hashes
    return {
      sizeBytes,
      comparedBytes: sizeBytes - this.#resumedFromOffset,
      differentBytes: this.#point.differentBytes,
      writtenBytes: this.#point.writtenBytes,
      firstDifference: this.#firstDifference,
      resumedFromOffset: this.#resumedFromOffset,
      startedOver: this.#startedOver,
      digests: this.#digest ? { source: source.digest('hex'), replica: replica.digest('hex') } : null,
    }
  }

  async #walk(): Promise<void> {
    this.#tell()
    while (this.#point.nextOffset < this.#pair.sizeBytes) {
      this.#refuseStopped()
      await this.#batch()
      this.#tell()
    }
  }

  async #batch(): Promise<void> {
    const { nextOffset } = this.#point
    const lengthBytes = Math.min(this.#settings.batchBytes, this.#pair.sizeBytes - nextOffset)
    const report = await this.#compare(nextOffset, lengthBytes)
    if (this.#firstDifference < 0) this.#firstDifference = report.firstDifference
    this.#point = {
      nextOffset: nextOffset + lengthBytes,
      differentBytes: this.#point.differentBytes + report.differentBytes,
      writtenBytes: this.#point.writtenBytes + report.writtenBytes,
    }
    if (performance.now() - this.#savedMs >= SAVE_INTERVAL_MS) await this.#save(true)
  }

  async #compare(offset: number, lengthBytes: number): Promise<NativeSyncReport> {
    const { chunkBytes, dryRun, threads } = this.#settings
    const args = [this.#pair.source, this.#pair.replica, offset, lengthBytes, { chunkBytes, dryRun, threads }]
    if (this.#digest === undefined)
      return (await this.#pool.run('native', { call: 'syncRange', args })) as NativeSyncReport
    const call = { call: 'compareRange', args: [...args, this.#digest, DIGEST_SEED] } as const
    const compared = (await this.#pool.run('native', call)) as Comparison
    this.#hashes[0].update(compared.sourceDigests)
    this.#hashes[1].update(compared.replicaDigests)
    return compared.report
  }

  /** Throws when the caller wants to stop; `details.goesOn` says whether the next run goes on from here. */
  #refuseStopped(): void {
    const { signal } = this.#settings
    if (!signal?.aborted) return
    if (signal.reason instanceof SecondsiteError) throw abortedError(signal.reason)
    const { sizeBytes } = this.#pair
    const { nextOffset } = this.#point
    const message = `stopped at ${formatBytes(nextOffset)} of ${formatBytes(sizeBytes)}`
    const details = { nextOffset, sizeBytes, goesOn: this.#key !== undefined }
    throw new SecondsiteError('ABORTED', { message, details, cause: signal.reason })
  }

  /** After a stop or a failure. That failure is what the caller hears of, whatever becomes of the note. */
  async #saveWhatIsDone(): Promise<void> {
    try {
      await this.#save(false)
    } catch {
      // The note before this one still holds.
    }
  }

  /** The replica first: the file must never promise more than is durable. */
  async #save(isGoingOn: boolean): Promise<void> {
    if (this.#key === undefined) return
    await this.#pool.run('native', { call: 'flushDisk', args: [this.#pair.replica] })
    const nowMs = performance.now()
    this.#longestMs = Math.max(this.#longestMs, nowMs - this.#savedMs)
    const silenceMsMax = isGoingOn ? 2 * Math.ceil(this.#longestMs) + SAVE_INTERVAL_MS : 0
    saveResumePoint(this.#pair.replica, this.#key, this.#point, silenceMsMax)
    this.#savedMs = performance.now()
  }

  async #complete(): Promise<void> {
    await this.#pool.run('native', { call: 'flushDisk', args: [this.#pair.replica] })
    removeResumePoint(this.#pair.replica)
  }

  #tell(): void {
    const { nextOffset, differentBytes } = this.#point
    const seconds = (performance.now() - this.#startedMs) / 1000
    this.#settings.onProgress?.({
      phase: this.#settings.dryRun ? 'verify' : 'sync',
      doneBytes: nextOffset,
      totalBytes: this.#pair.sizeBytes,
      differentBytes,
      bytesPerSecond: seconds > 0 ? (nextOffset - this.#resumedFromOffset) / seconds : 0,
    })
  }
}
