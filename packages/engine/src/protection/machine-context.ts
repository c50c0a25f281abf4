/**
 * What the runners of one machine share: its disks, its rows, the way to its replica, and everything that is not
 * deterministic, as parameters.
 */

import type { Clock } from '../clock.js'
import type { DigestAlgorithm, NativeSealedLog } from '../native/types.js'
import type { QuiesceSettings } from '../quiesce/settings.js'
import type { WhileFrozen } from '../quiesce/while-frozen.js'
import type { Random } from '../random.js'
import type { ByteRange } from '../ranges.js'
import type { EncodeFrame } from '../ship/shipper.js'
import type { DiskStore } from '../store/disk-store.js'
import type { ResyncStore } from '../store/resync-store.js'
import type { StateStore } from '../store/state-store.js'
import type { NbdExport, NbdOptions } from '../track/nbd-export.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import type { Transport } from '../transport/channel.js'
import type { EventLog } from './events.js'
import type { Policy } from './policy.js'

/** A batch built from ranges of a live disk. */
export interface Batch {
  readonly log: NativeSealedLog
  /** Where the next batch goes on; the end of the last range when all of them are in. */
  readonly nextOffset: number
}

export interface BatchRequest {
  readonly disk: TrackedDisk
  readonly ranges: readonly ByteRange[]
  /** Path of the log to be written. */
  readonly path: string
  /** Bytes of data after which the batch ends. */
  readonly dataBytesMax: number
}

export interface SourceDigestRequest {
  readonly disk: TrackedDisk
  readonly ranges: readonly ByteRange[]
  readonly chunkBytes: number
  readonly algorithm: DigestAlgorithm
  /** 16 hex digits. */
  readonly seed: string
}

/** What the primary side has done by workers and the core. */
export interface PrimaryWork {
  readonly encode: EncodeFrame
  /** Rotates the logs of all disks as one cut; resolves when they are sealed and durable. */
  cut(disks: readonly TrackedDisk[]): Promise<void>
  /** Carries `action` out while the applications are at rest; once, also where they cannot be brought to it. */
  whileFrozen<Result>(
    settings: QuiesceSettings,
    action: () => Promise<Result>,
    signal?: AbortSignal,
  ): Promise<WhileFrozen<Result>>
  exportNbd(disks: readonly TrackedDisk[], options: NbdOptions): Promise<NbdExport>
  buildBatch(request: BatchRequest): Promise<Batch>
  /** Bytes that may still be written to the file system of a folder. */
  roomBytes(directory: string): Promise<number>
  /** 16 bytes a chunk. */
  digests(request: SourceDigestRequest): Promise<Uint8Array>
  /** Called with the name of a step just before it; a test kills the process there. */
  step(name: string): Promise<void> | void
}

/** The consistency group of a machine, as its scheduler knows it. */
export interface GroupMembership {
  readonly name: string
  /** A cycle of the member is due: one of the group is run, in the member's job. */
  dueCycle(machineId: string, signal: AbortSignal): Promise<unknown>
}

/** What a disk is opened by. */
export interface OpenableDisk {
  readonly diskId: string
  readonly name: string
  readonly path: string
  readonly trackingDirectory: string
  readonly isExpected: boolean
  /** A shrink that was accepted, `DiskShrink`; null for none. */
  readonly shrinkJson: string | null
}

/** How far the first copy of a disk is: it is under way, or a cut behind it is still to be applied. */
export type CopyState = 'copying' | 'closing'

export interface MachineContext {
  readonly machineId: string
  readonly name: string
  diskPaths: readonly string[]
  /** Empty while they cannot be opened. */
  disks: readonly TrackedDisk[]
  /** Opens all of them, or none. */
  openDisks(): Promise<readonly TrackedDisk[]>
  /** Opens a disk that was not among them. */
  openDisk(disk: OpenableDisk): Promise<TrackedDisk>
  /** Disks whose first copy is not behind them, by their ids; no cut holds for them yet. */
  readonly copies: Map<string, CopyState>
  /** Sizes that replicas still have of disks that have shrunk, by the ids of the disks. */
  readonly shrinking: Map<string, number>
  /** Disks whose lost images may be made anew in the present conversation, by their ids. */
  readonly recreating: Set<string>
  policy: Policy
  /** When the replica's last test failover began, as it said last; null before the first, undefined where it has not said. */
  lastTestFailoverMs?: number | null | undefined
  /** Null for a machine by itself. */
  group: GroupMembership | null
  readonly store: StateStore
  readonly members: DiskStore
  readonly resyncs: ResyncStore
  readonly events: EventLog
  readonly transport: Transport
  readonly work: PrimaryWork
  readonly clock: Clock
  readonly random: Random
  /** Bytes of a frame before encoding. */
  readonly frameBytes: number
  /** Bytes of data of one batch. */
  readonly batchBytes: number
  /** Bytes of a disk that one step of a resynchronization walks. */
  readonly windowBytes: number
}

/** The disk with this id. @throws TypeError when the machine has none: the store checks that it has */
export function diskOf(context: MachineContext, diskId: string): TrackedDisk {
  const disk = context.disks.find((one) => one.diskId === diskId)
  if (disk === undefined) throw new TypeError(`machine ${context.name} has no disk ${diskId}`)
  return disk
}
