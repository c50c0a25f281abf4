/** Options of the tools that compare and copy disks, checked once. */

import { SecondsiteError } from '../errors.js'
import { MIB } from '../units.js'

const BATCH_BYTES = 64 * MIB
const CHUNK_BYTES_MIN = 4096
const CHUNK_BYTES_MAX = 4 * MIB
const THREAD_COUNT_MAX = 64

/** One step of progress. */
export interface SyncProgress {
  /** `sync` copies, `verify` compares. */
  readonly phase: 'sync' | 'verify'
  readonly doneBytes: number
  readonly totalBytes: number
  readonly differentBytes: number
  readonly bytesPerSecond: number
}

/** Options of {@link syncDisks}. */
export interface SyncOptions {
  /** A power of two, 4096 to 4 194 304, default 65 536. */
  readonly chunkBytes?: number
  /** 1 to 64. Default 2; 1 for a replica that is created, as writers wait for each other at the file they write. */
  readonly threads?: number
  /** Compares only. */
  readonly dryRun?: boolean
  /** Forgets what an earlier run has done. */
  readonly restart?: boolean
  /** Bytes between two chances to stop: a multiple of `chunkBytes`, default 64 MiB. */
  readonly batchBytes?: number
  readonly onProgress?: (progress: SyncProgress) => void
  readonly signal?: AbortSignal
}

/** Options with their defaults. */
export interface SyncSettings extends SyncOptions {
  readonly chunkBytes: number
  readonly threads: number
  readonly dryRun: boolean
  readonly batchBytes: number
}

/** @throws {OPTION_OUT_OF_RANGE} naming the option, its value and its range */
export function settingsOf(options: SyncOptions, threadsDefault = 2): SyncSettings {
  const { chunkBytes = 64 * 1024, threads = threadsDefault, dryRun = false } = options
  const isPower = Number.isSafeInteger(chunkBytes) && Number.isInteger(Math.log2(chunkBytes))
  const isChunk = isPower && chunkBytes >= CHUNK_BYTES_MIN && chunkBytes <= CHUNK_BYTES_MAX
  check(isChunk, 'chunkBytes', chunkBytes, 'a power of two, 4096 to 4194304')
  const isCount = Number.isInteger(threads) && threads >= 1 && threads <= THREAD_COUNT_MAX
  check(isCount, 'threads', threads, '1 to 64')
  const batchBytes = options.batchBytes ?? BATCH_BYTES
  const isBatch = Number.isSafeInteger(batchBytes) && batchBytes > 0 && batchBytes % chunkBytes === 0
  check(isBatch, 'batchBytes', batchBytes, 'a multiple of chunkBytes')
  return { ...options, chunkBytes, threads, dryRun, batchBytes }
}

function check(isGood: boolean, option: string, value: number, range: string): void {
  if (isGood) return
  const message = `${option} must be ${range}, not ${value}`
  throw new SecondsiteError('OPTION_OUT_OF_RANGE', { message, details: { option, value, range } })
}
