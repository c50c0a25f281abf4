/**
 * Comparing two sides by the digests of fixed chunks: what to ask for, and what the answers say.
 *
 * Pure functions over ranges and digests; who sends and reads them is the caller's business.
 */

import { type ByteRange, chunkCount, chunksOf, mergeRanges } from '../ranges.js'

/** Bytes of one digest, of either algorithm. */
export const digestBytes = 16

/** Bytes that a set of ranges needs for its digests. */
export function digestListBytes(ranges: readonly ByteRange[], chunkBytes: number): number {
  return chunkCount(ranges, chunkBytes) * digestBytes
}

/**
 * The chunks of `ranges` whose digests differ, neighbours joined.
 *
 * @param source - digests of the source, {@link digestBytes} a chunk, in the order of {@link chunksOf}
 * @param replica - the same of the replica
 * @throws RangeError when a list has not exactly one digest a chunk: a programmer's mistake or a broken peer
 */
export function differingChunks(
  ranges: readonly ByteRange[],
  chunkBytes: number,
  source: Uint8Array,
  replica: Uint8Array,
): ByteRange[] {
  const wanted = digestListBytes(ranges, chunkBytes)
  if (source.length !== wanted || replica.length !== wanted) {
    throw new RangeError(`${wanted} bytes of digests expected, got ${source.length} and ${replica.length}`)
  }
  return mergeRanges(differing(ranges, chunkBytes, source, replica))
}

function* differing(
  ranges: readonly ByteRange[],
  chunkBytes: number,
  source: Uint8Array,
  replica: Uint8Array,
): Generator<ByteRange> {
  let at = 0
  for (const chunk of chunksOf(ranges, chunkBytes)) {
    if (!isEqualDigest(source, replica, at)) yield chunk
    at += digestBytes
  }
}

function isEqualDigest(source: Uint8Array, replica: Uint8Array, at: number): boolean {
  for (let index = at; index < at + digestBytes; index += 1) {
    if (source[index] !== replica[index]) return false
  }
  return true
}

/** The windows of `windowBytes` that a pass over a disk walks, from `nextOffset` on. */
export function* windowsOf(sizeBytes: number, windowBytes: number, nextOffset = 0): Generator<ByteRange> {
  for (let offset = nextOffset; offset < sizeBytes; offset += windowBytes) {
    yield { offset, lengthBytes: Math.min(windowBytes, sizeBytes - offset) }
  }
}
