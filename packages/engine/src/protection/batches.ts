/**
 * Batches of initial replication and of resynchronizations: logs built from ranges of a live disk, beside it.
 *
 * They stand where the guest's own logs grow. A batch that takes the last room there ends the logging of every disk that
 * logs to that file system, if only for the moment until it is taken back; so it takes a part of the room alone.
 */

import { isSecondsiteError } from '../errors.js'
import { MIB } from '../units.js'
import type { Batch, BatchRequest, MachineContext } from './machine-context.js'

/** The smallest batch that is tried. */
const BATCH_BYTES_MIN = MIB
/** A batch is read in pieces of this size, and the last one may go beyond its end. */
const PIECE_BYTES = MIB
/** One part of the room is for the batch, the others are for the logs of guests. */
const ROOM_PARTS = 2

/**
 * Builds a batch that leaves room for logs beside the disk; where it finds none all the same, one of half the size.
 * @throws {LOG_WRITE_FAILED} when there is no room for the smallest either
 */
export async function buildWithinRoom(context: MachineContext, request: BatchRequest): Promise<Batch> {
  const roomBytes = await context.work.roomBytes(request.disk.trackingDirectory)
  for (let dataBytesMax = batchBytesWithin(roomBytes, request.dataBytesMax); ; dataBytesMax /= 2) {
    try {
      return await context.work.buildBatch({ ...request, dataBytesMax })
    } catch (error) {
      const isSmallest = dataBytesMax / 2 < BATCH_BYTES_MIN
      if (isSmallest || !isSecondsiteError(error, 'LOG_WRITE_FAILED')) throw error
    }
  }
}

/**
 * Bytes of data that a batch may hold where `roomBytes` are free: at most `wantedBytes`, and never less than the smallest
 * batch, as a resynchronization that waits for room lets the logs grow into what there is.
 */
export function batchBytesWithin(roomBytes: number, wantedBytes: number): number {
  const shareBytes = Math.floor(roomBytes / ROOM_PARTS) - PIECE_BYTES
  return Math.min(wantedBytes, Math.max(BATCH_BYTES_MIN, shareBytes))
}
