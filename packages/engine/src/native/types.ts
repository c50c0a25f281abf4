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
