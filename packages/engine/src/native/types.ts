/**
 * What crosses the native border, as TypeScript sees it.
 *
 * The addon's generated types say the same with less: here stand units, meanings and the unions that N-API cannot
 * express. `Native*` marks a shape that came from the addon as it is.
 */

/** Algorithms of a chunk digest; both give 16 bytes a chunk. */
export type DigestAlgorithm = 'xxh3-128' | 'blake3'

/** A disk as found at a path. */
export interface NativeDiskInfo {
  readonly sizeBytes: number
  readonly sectorSizeBytes: number
  readonly isBlockDevice: boolean
  /** Bytes that are not holes; the size where holes cannot be told. */
  readonly allocatedBytes: number
}

/** A sealed log: two files, `path` and its index beside it. */
export interface NativeSealedLog {
  readonly path: string
  readonly indexPath: string
  /** UniqueId as GUID text. */
  readonly id: string
  /** PreviousUniqueId as GUID text; all zeros for the first. */
  readonly previousId: string
  /** Sequence number of the first entry; decimal text, as it may pass 2^53 only in theory but must never be rounded. */
  readonly firstSequence: number
  /** One past the sequence number of the last entry. */
  readonly nextSequence: number
  readonly entryCount: number
  readonly dataBytes: number
  readonly logSizeBytes: number
  readonly indexSizeBytes: number
  /** Unix milliseconds of the cut that ended the log. */
  readonly cutTimeMs: number
}

/** Why a tracked disk cannot vouch for what changed. */
export type NativeResyncReason =
  | 'DISK_MODIFIED_OFFLINE'
  | 'LOG_WRITE_FAILED'
  | 'LOG_DISK_FULL'
  | 'LOG_THRESHOLD'
  | 'LOG_DAMAGED'
  | 'POWER_LOSS'
  | 'DISK_WRITE_FAILED'
  | 'CHAIN_BROKEN'
  | 'REPLICA_CHANGED'
  | 'ASKED_FOR'
  | 'REPLICATION_REVERSED'

/** Counters of a tracked disk, one snapshot. */
export interface NativeTrackedStatus {
  /** `logging`: every write is in a log. `map`: the changed map takes the place of the log. */
  readonly mode: 'logging' | 'map'
  /** Set while a resynchronization is owed. */
  readonly resyncReason: NativeResyncReason | null
  /** True when nothing is known about what changed: the whole disk is a candidate. */
  readonly isWholeDiskUnknown: boolean
  readonly sizeBytes: number
  readonly writeCount: number
  readonly writtenBytes: number
  /** Bytes of all logs not yet released, the open one included. */
  readonly unreleasedLogBytes: number
  readonly unreleasedLogCount: number
  readonly changedBytes: number
  readonly activeRegionCount: number
  /** Nanoseconds the last cut held writes. */
  readonly lastHoldNs: number
  readonly maxHoldNs: number
}

/** What opening a tracked disk found. */
export interface NativeOpenedDisk {
  readonly handle: number
  /** UUID text. */
  readonly diskId: string
  readonly sizeBytes: number
  readonly recovery: 'created' | 'clean' | 'process-death' | 'power-loss'
  /** Bytes redone from the log onto the disk. */
  readonly redoneBytes: number
}

/** Result of a pass over a range of two disks. */
export interface NativeSyncReport {
  readonly comparedBytes: number
  readonly equalBytes: number
  readonly differentBytes: number
  readonly writtenBytes: number
  readonly punchedBytes: number
  /** Offset of the first differing chunk; -1 when there is none. */
  readonly firstDifference: number
}

/** Result of applying logs to an image. */
export interface NativeApplyReport {
  readonly entryCount: number
  readonly writtenBytes: number
  readonly discardedBytes: number
}

/** What a log file is, entry by entry summed up, with every damage found. */
export interface NativeLogReport {
  readonly path: string
  readonly header: {
    readonly version: string
    readonly creator: string
    readonly id: string
    readonly previousId: string
    readonly diskId: string
    readonly createdMs: number
    readonly modifiedMs: number
    readonly eolLocation: number
    readonly metadataSizeBytes: number
    readonly totalEntries: number
    readonly currentSizeBytes: number
  } | null
  readonly isSealed: boolean
  readonly hasIndex: boolean
  readonly entryCount: number
  readonly writeCount: number
  readonly writeBytes: number
  readonly zeroBytes: number
  readonly discardBytes: number
  readonly firstTimeMs: number
  readonly lastTimeMs: number
  readonly damage: readonly NativeLogDamage[]
}

/** A place in a log that is not as it must be. */
export interface NativeLogDamage {
  readonly path: string
  readonly offset: number
  readonly reason: string
  /** `torn`: the normal end of a log after a crash. `corrupt`: damage in the middle. */
  readonly kind: 'torn' | 'corrupt'
}

/** An entry of a log. */
export interface NativeLogEntry {
  readonly operation: 'write' | 'write-zeroes' | 'discard'
  readonly offset: number
  readonly lengthBytes: number
  readonly sequence: number
  /** Unix nanoseconds; whole seconds where the log has no index. */
  readonly timeNs: bigint
}

/** What logs bring to an image, measured before they are applied. */
export interface NativeChurn {
  readonly writeCount: number
  readonly writeBytes: number
  /** Bytes zeroed or given back. */
  readonly zeroBytes: number
  /** What `writeBytes` would take at the entropy of their bytes. */
  readonly entropyBytes: number
  /** Bytes of `writeBytes` that no compressor shrinks. */
  readonly noiseBytes: number
  /** Bytes of them that replace data that one shrinks. */
  readonly turnedBytes: number
}

/** Where undo of a disk is saved, and for which recovery point. */
export interface NativeUndoTarget {
  /** The undo folder of the disk; made when it is not there. */
  readonly undoDirectory: string
  /** Sequence number of the point, 0 to 999 999 999 999. */
  readonly point: number
  /** GUID text of the disk. */
  readonly diskId: string
  /** Number of a work (`beginWork`), by which the call can be ended with ABORTED. */
  readonly work?: number
}

/** What a save did. */
export interface NativeSaveReport {
  /** Bytes of the disk saved now; 0 when all of it was saved before. */
  readonly savedBytes: number
  /** Bytes of them that are data; the rest is holes and zeros. */
  readonly dataBytes: number
  readonly rangeCount: number
  /** Bytes of the new files. */
  readonly writtenBytes: number
}

/** What a merge, a compaction or a drop did. */
export interface NativeMergeReport {
  /** Bytes of the new files. */
  readonly writtenBytes: number
  /** Segments deleted. */
  readonly deletedCount: number
}

/** What an undo folder holds. */
export interface NativeUndoSummary {
  /** Points with undo of their own, oldest first. A point after which nothing was written has none. */
  readonly points: readonly NativeUndoPoint[]
  readonly damage: readonly NativeUndoDamage[]
}

/** The undo of one point. */
export interface NativeUndoPoint {
  readonly point: number
  readonly segmentCount: number
  /** Bytes of the files. */
  readonly storedBytes: number
  readonly rangeCount: number
}

/** Damage of an undo folder. */
export interface NativeUndoDamage {
  /** The damaged file; the folder when a file is missing. */
  readonly path: string
  /** Byte offset in the file. */
  readonly offset: number
  readonly reason: string
  /** Points up to and with this one cannot be read whole; -1 when none can. */
  readonly throughPoint: number
}

/** Which point of which replica to view. */
export interface NativeViewOptions {
  /** Path of the image. */
  readonly image: string
  readonly undoDirectory: string
  readonly point: number
  /** Size of the disk at the point, when it has grown since; default: of the image. */
  readonly sizeBytes?: number
}

/** A view or an overlay as opened. Its handle goes to `startNbd`, `readDevice` and the like. */
export interface NativeDevice {
  readonly handle: number
  readonly sizeBytes: number
  readonly sectorSizeBytes: number
}

/** How far a work is. */
export interface NativeProgress {
  /** Bytes of the disk that are done; what had not to be copied counts. */
  readonly doneBytes: number
  readonly copiedBytes: number
}

/** Where an overlay lies, and what is below it. */
export interface NativeOverlayOptions {
  /** A folder of its own. */
  readonly directory: string
  /** Handle of the view below it; without one the image itself is, and must not be written to meanwhile. */
  readonly view?: number
  /** Path of the image, below the view or below the overlay; opened for writing only when the overlay was settling or is settled. */
  readonly image: string
}

/** `active`: the base is only read. `settling`: the image is being made equal. `settled`: the image is all there is. */
export type NativeOverlayState = 'active' | 'settling' | 'settled'

/** What an overlay holds. */
export interface NativeOverlayUsage {
  /** Bytes of blocks (4 KiB) with data of their own. */
  readonly dataBytes: number
  /** Bytes of blocks that are zeros and take no space. */
  readonly zeroBytes: number
  readonly state: NativeOverlayState
}
