/**
 * What the replica side has done by workers and by the file system, as a parameter, so that a test can make it fail.
 */

import type { Clock } from '../clock.js'
import type { DigestAlgorithm, NativeChurn } from '../native/types.js'
import type { ByteRange } from '../ranges.js'
import type { ReplicationState } from '../states.js'
import type { ReplicaStore } from '../store/replica-store.js'
import type { SpoolPaths } from './spool.js'

/** What the replica sees of the primary's state. */
export type ReplicaEvent =
  | 'initialReplicationComplete'
  | 'resyncRequired'
  | 'resyncStarted'
  | 'resyncComplete'

/** Where a decoded frame goes. */
export interface FrameTarget {
  readonly path: string
  readonly offset: number
  readonly rawBytes: number
}

/** Digests of an image. */
export interface DigestRequest {
  readonly imagePath: string
  readonly ranges: readonly ByteRange[]
  readonly chunkBytes: number
  readonly algorithm: DigestAlgorithm
  /** 16 hex digits. */
  readonly seed: string
}

/** A point of a disk, and where what leads back to it is kept. */
export interface UndoPlace {
  readonly diskId: string
  readonly undoDirectory: string
  readonly point: number
}

export interface ReplicaWork {
  /** Creates an image of zeros that must not exist yet. */
  createImage(path: string, sizeBytes: number): Promise<void>
  /** Makes an image as large as this, durably, if it is smaller. */
  growImage(path: string, sizeBytes: number): Promise<void>
  /** Makes an image as small as this, durably, if it is larger. */
  shrinkImage(path: string, sizeBytes: number): Promise<void>
  /** Decodes a frame, checks it and writes it to its place. */
  decodeFrame(body: Uint8Array, target: FrameTarget): Promise<void>
  /** Checks a spooled log completely, its entries against the size of the disk. */
  verifyLog(paths: SpoolPaths, diskSizeBytes: number): Promise<void>
  /** Saves, durably, what logs will overwrite of an image and the point does not hold yet. */
  saveUndo(imagePath: string, logPaths: readonly string[], place: UndoPlace): Promise<void>
  /** Measures what verified logs will bring to an image. */
  measureLogs(imagePath: string, logPaths: readonly string[]): Promise<NativeChurn>
  /** Saves, durably, what stands in a range of an image and the point does not hold yet. */
  saveUndoRange(imagePath: string, range: ByteRange, place: UndoPlace): Promise<void>
  /** Points that files in an undo folder belong to, ascending. */
  undoPoints(undoDirectory: string): Promise<number[]>
  /** Points of an undo folder with a view that is open in some process. */
  pinnedPoints(undoDirectory: string): Promise<number[]>
  /** Moves what a point holds into the next older one, as far as that does not hold it. */
  mergePoint(place: UndoPlace, into: number): Promise<void>
  /** Brings together what many applications have saved for a point; what is few already stays. */
  compactPoint(place: UndoPlace): Promise<void>
  /** Deletes what leads back to points older than this. */
  dropPointsBefore(undoDirectory: string, point: number): Promise<void>
  /** Ends test failovers whose lifetime has passed and whose process has died. */
  endExpiredTests(store: ReplicaStore, clock: Clock): Promise<void>
  /** Writes the entries of verified logs to an image, in order, and syncs it. */
  applyLogs(imagePath: string, logPaths: readonly string[]): Promise<void>
  /** 16 bytes a chunk. */
  digests(request: DigestRequest): Promise<Uint8Array>
  /** Where an event moves the replica's state by the state table; undefined when the state does not take it. */
  next(state: ReplicationState, event: ReplicaEvent): ReplicationState | undefined
  /** Called with the name of a step just before it; a test kills the process there. */
  step(name: string): Promise<void> | void
}
