/**
 * A disk whose every write is tracked: the handle of a live disk in the core, with the words of the engine.
 *
 * Reads and writes run in threads of the core's own and never wait on JavaScript. What takes long besides (a cut, a
 * release, a fold) runs in a worker of the pool; what only asks for counters is answered at once.
 */

import { basename, dirname, resolve } from 'node:path'
import { SecondsiteError } from '../errors.js'
import {
  native,
  type NativeResyncReason,
  type NativeSealedLog,
  type NativeTrackedStatus,
} from '../native/index.js'
import type { WorkerPool } from '../pool/pool.js'
import { NbdExport, type NbdOptions } from './nbd-export.js'
import { type ByteRange, fromPairs, toPairs } from '../ranges.js'
import { checkSectorOffset, GIB } from '../units.js'

/** Asked for at once: the core holds writes for a time that grows with it. */
const DIRTY_WINDOW_BYTES = 4 * GIB

/** What a FLUSH of a guest makes durable. */
export type FlushMode = 'disk' | 'log'

export interface TrackedDiskOptions {
  /** A raw image file or a block device. */
  readonly path: string
  /** What the disk is called; default the name of its file. */
  readonly name?: string
  /** UUID of the disk; refused when the disk's tracking file says another. */
  readonly diskId: string
  /** Where logs and tracking file go; default the folder of the disk. */
  readonly trackingDirectory?: string
  readonly flushMode: FlushMode
  /** Whether it was tracked before: a tracking file that is gone then owes a resynchronization; default false. */
  readonly isExpected?: boolean
  /** Size at which it is opened although it was tracked with a larger one; all of it is compared then. Default: refused. */
  readonly acceptedShrinkBytes?: number
  /** Whether a disk that has grown is tracked up to its old end; default false: up to the new one. */
  readonly isGrowthDeferred?: boolean
}

/** What opening found. */
export interface DiskRecovery {
  /** How the disk was left: never tracked, closed, or by the death of a process or of the machine. */
  readonly kind: 'created' | 'clean' | 'process-death' | 'power-loss'
  /** Bytes that were redone from the log. */
  readonly redoneBytes: number
}

export class TrackedDisk {
  readonly diskId: string
  readonly name: string
  readonly path: string
  readonly trackingDirectory: string
  readonly sectorSizeBytes: number
  readonly recovery: DiskRecovery
  readonly #handle: number
  readonly #pool: WorkerPool
  readonly #exports = new Set<NbdExport>()
  #sizeBytes: number

  private constructor(options: TrackedDiskOptions, opened: OpenedDisk, pool: WorkerPool) {
    this.diskId = options.diskId
    this.path = resolve(options.path)
    this.name = options.name ?? basename(this.path)
    this.trackingDirectory = options.trackingDirectory ?? dirname(this.path)
    this.#sizeBytes = opened.sizeBytes
    this.sectorSizeBytes = opened.sectorSizeBytes
    this.recovery = { kind: opened.recovery as DiskRecovery['kind'], redoneBytes: opened.redoneBytes }
    this.#handle = opened.handle
    this.#pool = pool
  }

  /**
   * Opens a disk, recovering what a crash left.
   *
   * @throws {DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED, DISK_IN_USE, ACCESS_DENIED}
   * @throws {DISK_SIZE_DIFFERS} when it was tracked with a larger size
   */
  static async open(options: TrackedDiskOptions, pool: WorkerPool): Promise<TrackedDisk> {
    const path = resolve(options.path)
    const trackingDirectory = options.trackingDirectory ?? dirname(path)
    const { diskId, flushMode, isExpected = false, isGrowthDeferred = false, acceptedShrinkBytes } = options
    const size = acceptedShrinkBytes === undefined ? {} : { acceptedShrinkBytes }
    const args = [{ path, trackingDirectory, diskId, flushMode, isExpected, isGrowthDeferred, ...size }]
    const opened = (await pool.run('native', { call: 'openTracked', args })) as OpenedDisk
    return new TrackedDisk(options, opened, pool)
  }

  /**
   * Tracks a layer of a recovery point, as a disk of its own from its first write on.
   * @throws {DISK_IN_USE, DISK_SIZE_DIFFERS}
   */
  static async openOver(
    layer: { readonly handle: number; readonly name: string; readonly diskId: string },
    trackingDirectory: string,
    pool: WorkerPool,
  ): Promise<TrackedDisk> {
    const { diskId, name, handle } = layer
    const options = {
      path: resolve(trackingDirectory, name),
      trackingDirectory,
      diskId,
      flushMode: 'disk' as const,
    }
    const args = [handle, options]
    const opened = (await pool.run('native', { call: 'openTrackedOverlay', args })) as OpenedDisk
    return new TrackedDisk(options, opened, pool)
  }

  /** As of the last look: see {@link grow}. */
  get sizeBytes(): number {
    return this.#sizeBytes
  }

  /** The size that the newest log may reach to; what {@link sizeBytes} says from then on. */
  latestSizeBytes(): number {
    this.#sizeBytes = this.status().sizeBytes
    return this.#sizeBytes
  }

  /**
   * Looks whether the disk has grown and makes its new range usable. The engine calls it every few seconds.
   * @returns whether it has grown
   * @throws {DISK_SIZE_DIFFERS} when it has shrunk
   */
  async grow(): Promise<boolean> {
    const before = this.#sizeBytes
    this.#sizeBytes = (await this.#run('growTracked')) as number
    return this.#sizeBytes > before
  }

  /**
   * Accepts that the disk has shrunk to this size; nothing is read or written behind its end any more. Clients that are
   * connected learn of it by errors there, those that connect later by the size.
   * @throws {DISK_SIZE_DIFFERS} when it has another size; {LOG_WRITE_FAILED, DISK_SYNC_FAILED}: it keeps its old size here
   */
  async shrink(sizeBytes: number): Promise<void> {
    await this.#run('shrinkTracked', sizeBytes)
    this.latestSizeBytes()
  }

  /** The number of the live disk in the core. */
  get handle(): number {
    return this.#handle
  }

  /**
   * Reads `lengthBytes` bytes from `offset`, both multiples of 512.
   * @throws {DISK_OUT_OF_RANGE, DISK_READ_FAILED}
   */
  async read(offset: number, lengthBytes: number): Promise<Uint8Array> {
    checkSectorOffset(offset, 'offset')
    const buffer = new Uint8Array(checkSectorOffset(lengthBytes, 'lengthBytes'))
    await native.trackedRead(this.#handle, offset, buffer)
    return buffer
  }

  /**
   * Writes `data` at `offset`; offset and length are multiples of 512. The caller must not change `data` before this
   * resolves. Durable after the next {@link flush}.
   * @throws {DISK_OUT_OF_RANGE, DISK_WRITE_FAILED, DISK_FULL} of the disk itself; trouble of the log is never thrown
   */
  async write(offset: number, data: Uint8Array): Promise<void> {
    await native.trackedWrite(this.#handle, checkSectorOffset(offset, 'offset'), data)
  }

  /** Makes a range read as zeros; its space stays allocated. Errors as {@link write}. */
  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    await native.trackedWriteZeroes(this.#handle, ...checkedRange(offset, lengthBytes))
  }

  /** Gives a range back; it reads as zeros. Errors as {@link write}. */
  async discard(offset: number, lengthBytes: number): Promise<void> {
    await native.trackedDiscard(this.#handle, ...checkedRange(offset, lengthBytes))
  }

  /** Makes every completed write durable, as the flush mode says. @throws {DISK_SYNC_FAILED} */
  async flush(): Promise<void> {
    await native.trackedFlush(this.#handle)
  }

  /** Counters, one snapshot. */
  status(): NativeTrackedStatus {
    const status = native.trackedStatus(this.#handle)
    // What is none on the other side of the border arrives as no property at all.
    return { ...status, resyncReason: status.resyncReason ?? null } as NativeTrackedStatus
  }

  /** Sealed logs that were not released, in the order of their chain. */
  unreleasedLogs(): NativeSealedLog[] {
    return native.trackedLogs(this.#handle)
  }

  /** Deletes logs that the replica's image holds. */
  async releaseLogs(ids: readonly string[]): Promise<void> {
    if (ids.length > 0) await this.#run('releaseTrackedLogs', [...ids])
  }

  /** Makes one log of consecutive ones. @returns false when that saves too little to be done */
  async coalesceLogs(ids: readonly string[]): Promise<boolean> {
    return (await this.#run('coalesceTrackedLogs', [...ids])) as boolean
  }

  /** Gives up all unreleased logs: their ranges stand in the changed map from now on, and tracking goes on there. */
  async foldLogs(reason: NativeResyncReason): Promise<void> {
    await this.#run('foldTrackedLogs', reason)
  }

  /** Remembers that a resynchronization is owed. @param isWholeDisk - nothing is known about what differs */
  async requireResync(reason: NativeResyncReason, isWholeDisk: boolean): Promise<void> {
    await this.#run('requireTrackedResync', reason, isWholeDisk)
  }

  /** Remembers that ranges have to be compared, and only they unless more is owed already. */
  async requireRanges(reason: NativeResyncReason, ranges: readonly ByteRange[]): Promise<void> {
    await this.#run('requireTrackedRanges', reason, toPairs(ranges))
  }

  /** What was written since the last acknowledged cut, in chunks of 64 KiB. */
  dirty(): ByteRange[] {
    const ranges: ByteRange[] = []
    for (let offset = 0; offset < this.#sizeBytes; offset += DIRTY_WINDOW_BYTES)
      ranges.push(...fromPairs(native.trackedDirty(this.#handle, offset, DIRTY_WINDOW_BYTES)))
    return ranges
  }

  /** Begins a resynchronization at an exact cut: what is not in a log from here on is a candidate. */
  async beginResync(): Promise<void> {
    await this.#run('beginTrackedResync')
  }

  /** The candidates inside a window. */
  candidates(window: ByteRange): ByteRange[] {
    return fromPairs(native.trackedCandidates(this.#handle, window.offset, window.lengthBytes))
  }

  /** Forgets the candidates: they are equal. */
  async finishResync(): Promise<void> {
    await this.#run('finishTrackedResync')
  }

  /** What was written inside a window since the last cut. */
  writtenSinceCut(window: ByteRange): ByteRange[] {
    return fromPairs(native.trackedWritten(this.#handle, window.offset, window.lengthBytes))
  }

  /**
   * Exports the disk to NBD clients, under its name, until the export or the disk is closed.
   *
   * @example
   * await using nbd = await disk.exportNbd({ listen: 'unix:/run/web01.sock' })
   * console.log(nbd.uri(disk)) // for qemu-system-x86_64 -drive file=URI,format=raw
   * @throws {OPTION_OUT_OF_RANGE, NBD_ADDRESS_IN_USE, NBD_LISTEN_FAILED, NBD_TLS_INVALID}
   */
  exportNbd(options: NbdOptions): Promise<NbdExport> {
    return exportDisks([this], options, this.#pool)
  }

  /** An export that ends with the disk. */
  holdExport(nbd: NbdExport): void {
    this.#exports.add(nbd)
  }

  /** Ends its exports, then closes the disk in order: everything durable, clean-close stamp last. */
  async close(): Promise<void> {
    try {
      await this.#closeExports()
    } finally {
      await this.#run('closeTracked')
    }
  }

  /** Ends its exports. @throws {MACHINE_RUNNING} when a client is connected; nothing has changed */
  async endExports(): Promise<void> {
    const clientCount = [...this.#exports].reduce((count, nbd) => count + nbd.counters().connectionCount, 0)
    if (clientCount === 0) return this.#closeExports()
    throw new SecondsiteError('MACHINE_RUNNING', {
      message: `${clientCount} clients have ${this.name} open`,
      details: { path: this.path, clientCount },
    })
  }

  /** Drops the disk as the death of the process would; for tests. */
  async abandon(): Promise<void> {
    await this.#closeExports()
    native.abandonTracked(this.#handle)
  }

  async #closeExports(): Promise<void> {
    for (const nbd of this.#exports) await nbd.close()
    this.#exports.clear()
  }

  #run(call: NativeCall, ...args: unknown[]): Promise<unknown> {
    return this.#pool.run('native', { call, args: [this.#handle, ...args] })
  }
}

type NativeCall = keyof typeof native

interface OpenedDisk {
  readonly handle: number
  readonly sizeBytes: number
  readonly sectorSizeBytes: number
  readonly recovery: string
  readonly redoneBytes: number
}

function checkedRange(offset: number, lengthBytes: number): [number, number] {
  return [checkSectorOffset(offset, 'offset'), checkSectorOffset(lengthBytes, 'lengthBytes')]
}

/** Exports several disks at one address, each under its name. */
export async function exportDisks(
  disks: readonly TrackedDisk[],
  options: NbdOptions,
  pool: WorkerPool,
): Promise<NbdExport> {
  const nbd = await NbdExport.start(disks, options, pool)
  for (const disk of disks) disk.holdExport(nbd)
  return nbd
}

/**
 * Closes every disk, whether or not others can be closed: one that stayed open would be in use for ever.
 * @throws the first failure, when all have been closed
 */
export async function closeDisks(disks: readonly TrackedDisk[]): Promise<void> {
  const results = await Promise.allSettled(disks.map((disk) => disk.close()))
  const failed = results.find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined
  if (failed) throw failed.reason
}

/** Rotates the logs of several disks as one cut. */
export async function cutDisks(disks: readonly TrackedDisk[], pool: WorkerPool): Promise<void> {
  await pool.run('native', { call: 'cutTracked', args: [disks.map((disk) => disk.handle)] })
}
