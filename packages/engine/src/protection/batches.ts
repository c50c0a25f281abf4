/**
 * Batches of initial replication and of resynchronizations: logs built from ranges of a live disk, beside it.
 */

import { isSecondsiteError } from '../errors.js'
import { MIB } from '../units.js'
import type { Batch, BatchRequest, MachineContext } from './machine-context.js'

/** The smallest batch that is tried. */
const BATCH_BYTES_MIN = MIB

/**
 * Builds a batch; where it finds no room beside the disk, one of half the size.
 * @throws {LOG_WRITE_FAILED} when there is no room for the smallest either
 */
export async function buildWithinRoom(context: MachineContext, request: BatchRequest): Promise<Batch> {
  for (let { dataBytesMax } = request; ; dataBytesMax /= 2) {
    try {
      return await context.work.buildBatch({ ...request, dataBytesMax })
    } catch (error) {
      const isSmallest = dataBytesMax / 2 < BATCH_BYTES_MIN
      if (isSmallest || !isSecondsiteError(error, 'LOG_WRITE_FAILED')) throw error
    }
  }
}
