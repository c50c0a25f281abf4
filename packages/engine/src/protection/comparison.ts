/**
 * One comparison of ranges of a live disk with its replica.
 */

import { type ByteRange, chunksOf, mergeRanges, overlapping } from '../ranges.js'
import { differingChunks } from '../resync/compare.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { message } from '../transport/messages.js'
import type { MachineContext } from './machine-context.js'
import type { Conversation } from './replica-link.js'

/** How to compare. */
export interface Comparison {
  readonly chunkBytes: number
  readonly digest: string
  /** 16 hex digits. */
  readonly seed: string
}

/** What a comparison found. */
export interface Compared {
  /** Chunks that differ and were not written since the last cut. */
  readonly different: readonly ByteRange[]
  /** Chunks that differ and were: their replica could not be equal yet. */
  readonly unsettled: readonly ByteRange[]
  readonly sourceDigests: Uint8Array
  readonly replicaDigests: Uint8Array
}

/** Asks both sides for the digests of `ranges`, which work at the same time. */
export async function compareSides(
  context: MachineContext,
  { link, nextKey }: Conversation,
  comparison: Comparison,
  disk: TrackedDisk,
  ranges: readonly ByteRange[],
  signal?: AbortSignal,
): Promise<Compared> {
  const { chunkBytes, seed } = comparison
  const algorithm = comparison.digest as 'xxh3-128' | 'blake3'
  const key = nextKey()
  const answer = link.reply('digests', key, signal)
  answer.catch(() => {}) // Awaited below; what fails first is the one to tell.
  const request = { key, diskId: disk.diskId, ranges: [...ranges], chunkBytes, algorithm, seed }
  await link.send(message('digest-request', request), signal)
  const sourceDigests = await context.work.digests({ disk, ranges, chunkBytes, algorithm, seed })
  const replicaDigests = (await answer).body ?? new Uint8Array()
  const found = differingChunks(ranges, chunkBytes, sourceDigests, replicaDigests)
  return { ...settle(disk, found, chunkBytes), sourceDigests, replicaDigests }
}

/** Parts the differing chunks into those that were written since the last cut and those that were not. */
function settle(
  disk: TrackedDisk,
  found: readonly ByteRange[],
  chunkBytes: number,
): Pick<Compared, 'different' | 'unsettled'> {
  const chunks = [...chunksOf(found, chunkBytes)]
  const written = mergeRanges(found.flatMap((range) => disk.writtenSinceCut(range)))
  const inFlight = new Set(overlapping(chunks, written))
  return {
    different: mergeRanges(chunks.filter((chunk) => !inFlight.has(chunk))),
    unsettled: mergeRanges(chunks.filter((chunk) => inFlight.has(chunk))),
  }
}
