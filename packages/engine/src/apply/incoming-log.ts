/**
 * A log on its way into the spool: what comes next, and how much of it is durable.
 */

import { SecondsiteError } from '../errors.js'
import type { SpooledLog } from '../store/replica-schema.js'
import type { SpoolProgress } from '../store/replica-store.js'
import type { HeaderOf } from '../transport/messages.js'
import type { FrameTarget } from './replica-work.js'
import type { SpoolPaths } from './spool.js'

/** Bytes between two syncs of a log: what a broken link may cost to send again. */
export const CHECKPOINT_BYTES = 64 * 1024 * 1024

export class IncomingLog {
  readonly logId: string
  readonly diskId: string
  readonly paths: SpoolPaths
  readonly #logSizeBytes: number
  readonly #totalBytes: number
  #arrivedBytes: number
  durableBytes: number

  constructor(row: SpooledLog) {
    this.logId = row.logId
    this.diskId = row.diskId
    this.paths = { log: row.path, index: row.indexPath }
    this.#logSizeBytes = row.logSizeBytes
    this.#totalBytes = row.logSizeBytes + row.indexSizeBytes
    this.durableBytes = row.logDurableBytes + row.indexDurableBytes
    this.#arrivedBytes = this.durableBytes
  }

  /** Whether all bytes have arrived. */
  get isComplete(): boolean {
    return this.#arrivedBytes === this.#totalBytes
  }

  /** Whether bytes have arrived that are not durable yet. */
  get hasNews(): boolean {
    return this.#arrivedBytes > this.durableBytes
  }

  get isCheckpointDue(): boolean {
    return this.#arrivedBytes - this.durableBytes >= CHECKPOINT_BYTES || (this.isComplete && this.hasNews)
  }

  /**
   * Accepts the next frame and says where its bytes go.
   * @throws {PROTOCOL_ERROR} when it is not the next one or reaches past the end of its file
   */
  take(frame: HeaderOf<'frame'>): FrameTarget {
    const isLog = frame.part === 'log'
    const start = isLog ? 0 : this.#logSizeBytes
    const end = isLog ? this.#logSizeBytes : this.#totalBytes
    const at = start + frame.offset
    if (at !== this.#arrivedBytes || frame.rawBytes === 0 || at + frame.rawBytes > end) {
      const message = `frame at ${frame.part} offset ${frame.offset} of log ${this.logId} is not the next one`
      const details = {
        logId: this.logId,
        part: frame.part,
        offset: frame.offset,
        expected: this.#arrivedBytes,
      }
      throw new SecondsiteError('PROTOCOL_ERROR', { message, details })
    }
    this.#arrivedBytes += frame.rawBytes
    return { path: isLog ? this.paths.log : this.paths.index, offset: frame.offset, rawBytes: frame.rawBytes }
  }

  /** The progress to remember after a sync. */
  progress(): SpoolProgress {
    const logDurableBytes = Math.min(this.#arrivedBytes, this.#logSizeBytes)
    return { logDurableBytes, indexDurableBytes: this.#arrivedBytes - logDurableBytes }
  }

  /** What has arrived is durable now. */
  settled(): void {
    this.durableBytes = this.#arrivedBytes
  }
}
