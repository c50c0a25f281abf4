/**
 * What travels in one go: the sealed logs of one shipment, cut into frames.
 *
 * A shipment is applied as a whole or not at all. Three kinds: `initial` (a batch of initial replication, applied at
 * once), `resync` (a batch of a resynchronization, held until the closing cut) and `delta` (the logs of a cycle).
 * Shipments of a machine are numbered without gaps, so each side can say which it has with one number.
 */

import type { DiskShrink } from '../disk-shrink.js'
import type { NativeSealedLog } from '../native/types.js'
import type { PointKind } from '../states.js'

export type ShipmentKind = 'initial' | 'resync' | 'delta'

/** A log of a shipment and the disk it belongs to. */
export interface ShipmentLog {
  /** UUID of the disk. */
  readonly diskId: string
  readonly log: NativeSealedLog
  /** Of overlapping writes only the last is in it; default false. */
  readonly isCoalesced?: boolean
}

/** The logs that travel together. */
export interface Shipment {
  /** From 1, without gaps, per machine. */
  readonly number: number
  readonly kind: ShipmentKind
  /** Unix milliseconds of the cut; the point in time that the replica shows when it is applied. */
  readonly cutTimeMs: number
  /** True when the chain of logs begins anew, after an initial replication or a resynchronization. */
  readonly isRebase: boolean
  /** What the cut was; the replica names its recovery point so. */
  readonly pointKind: PointKind
  /** The cut that all members of a consistency group share; null for one of the machine alone. */
  readonly groupPointId: string | null
  /** Disks whose images shrink with it. */
  readonly shrinks: readonly DiskShrink[]
  readonly logs: readonly ShipmentLog[]
}

/** The two files of a log. */
export type LogPart = 'log' | 'index'

/** A slice of one file of a log, as one frame carries it. */
export interface FrameSlice {
  readonly diskId: string
  readonly logId: string
  readonly part: LogPart
  readonly path: string
  readonly offset: number
  readonly lengthBytes: number
}

/** Bytes of a log that the replica has durably: a prefix of its .hrl followed by its .hrx. */
export type ResumeCursor = ReadonlyMap<string, number>

/** Bytes of both files of a log. */
export function logBytes(log: NativeSealedLog): number {
  return log.logSizeBytes + log.indexSizeBytes
}

/** Bytes of all files of a shipment. */
export function shipmentBytes(shipment: Shipment): number {
  return shipment.logs.reduce((total, { log }) => total + logBytes(log), 0)
}

/**
 * The slices of a shipment that the replica has not yet, in the order they are sent.
 *
 * @param frameBytes - bytes of a slice before encoding, at most
 * @param received - per log id the bytes that need not be sent again
 */
export function* slicesOf(
  shipment: Shipment,
  frameBytes: number,
  received: ResumeCursor,
): Generator<FrameSlice> {
  for (const { diskId, log } of shipment.logs) {
    const skip = received.get(log.id) ?? 0
    const from = { diskId, logId: log.id }
    yield* slice({ ...from, part: 'log', path: log.path }, log.logSizeBytes, skip, frameBytes)
    const skipIndex = Math.max(0, skip - log.logSizeBytes)
    yield* slice({ ...from, part: 'index', path: log.indexPath }, log.indexSizeBytes, skipIndex, frameBytes)
  }
}

function* slice(
  base: Omit<FrameSlice, 'offset' | 'lengthBytes'>,
  sizeBytes: number,
  skipBytes: number,
  frameBytes: number,
): Generator<FrameSlice> {
  for (let offset = Math.min(skipBytes, sizeBytes); offset < sizeBytes; offset += frameBytes) {
    yield { ...base, offset, lengthBytes: Math.min(frameBytes, sizeBytes - offset) }
  }
}
