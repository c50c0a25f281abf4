/**
 * Ranges of a disk in bytes: sorted, not overlapping, as pure data.
 *
 * Lists of ranges cross the native border and the wire as flat pairs (offset, length), which cost 16 bytes a range.
 */

/** A piece of a disk. */
export interface ByteRange {
  /** First byte, from the start of the disk. */
  readonly offset: number
  /** Bytes, more than 0. */
  readonly lengthBytes: number
}

/** Sum of the lengths of `ranges`, in bytes. */
export function totalBytes(ranges: readonly ByteRange[]): number {
  return ranges.reduce((total, range) => total + range.lengthBytes, 0)
}

/** How many chunks of `chunkBytes` the ranges have; every range starts a chunk of its own, the last may be shorter. */
export function chunkCount(ranges: readonly ByteRange[], chunkBytes: number): number {
  return ranges.reduce((count, range) => count + Math.ceil(range.lengthBytes / chunkBytes), 0)
}

/** The chunks of `ranges` in order. */
export function* chunksOf(ranges: Iterable<ByteRange>, chunkBytes: number): Generator<ByteRange> {
  for (const range of ranges) {
    const end = range.offset + range.lengthBytes
    for (let offset = range.offset; offset < end; offset += chunkBytes) {
      yield { offset, lengthBytes: Math.min(chunkBytes, end - offset) }
    }
  }
}

/** Joins neighbours that touch or overlap. `ranges` must be sorted by offset. */
export function mergeRanges(ranges: Iterable<ByteRange>): ByteRange[] {
  const merged: { offset: number; lengthBytes: number }[] = []
  for (const range of ranges) {
    const last = merged.at(-1)
    if (last === undefined || range.offset > last.offset + last.lengthBytes) {
      merged.push({ ...range })
    } else {
      last.lengthBytes = Math.max(last.lengthBytes, range.offset + range.lengthBytes - last.offset)
    }
  }
  return merged
}

/** What of `ranges` lies at or behind `offset`. */
export function rangesFrom(ranges: readonly ByteRange[], offset: number): ByteRange[] {
  return ranges.flatMap((range) => {
    const start = Math.max(range.offset, offset)
    const lengthBytes = range.offset + range.lengthBytes - start
    return lengthBytes > 0 ? [{ offset: start, lengthBytes }] : []
  })
}

/** The members of `ranges` that share at least one byte with a member of `others`. Both sorted by offset. */
export function overlapping(ranges: readonly ByteRange[], others: readonly ByteRange[]): ByteRange[] {
  let index = 0
  return ranges.filter((range) => {
    while (index < others.length && endOf(others[index]) <= range.offset) index += 1
    const other = others[index]
    return other !== undefined && other.offset < range.offset + range.lengthBytes
  })
}

/** The end of a range, exclusive; 0 of nothing. */
function endOf(range: ByteRange | undefined): number {
  return range === undefined ? 0 : range.offset + range.lengthBytes
}

/** Ranges as flat pairs offset, length. */
export function toPairs(ranges: readonly ByteRange[]): number[] {
  return ranges.flatMap((range) => [range.offset, range.lengthBytes])
}

/** The reverse of {@link toPairs}; an odd last number is ignored. */
export function fromPairs(pairs: ArrayLike<number>): ByteRange[] {
  const ranges: ByteRange[] = []
  for (let index = 0; index + 1 < pairs.length; index += 2) {
    ranges.push({ offset: pairs[index] ?? 0, lengthBytes: pairs[index + 1] ?? 0 })
  }
  return ranges
}
