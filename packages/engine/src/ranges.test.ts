import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  type ByteRange,
  chunkCount,
  chunksOf,
  fromPairs,
  mergeRanges,
  overlapping,
  toPairs,
  totalBytes,
} from './ranges.js'

const diskBytes = 200

/** The ranges as one bit a byte: a model too simple to be wrong. */
function bytesOf(ranges: readonly ByteRange[]): boolean[] {
  const bytes = Array.from({ length: diskBytes }, () => false)
  for (const range of ranges) bytes.fill(true, range.offset, range.offset + range.lengthBytes)
  return bytes
}

const sortedRanges = fc
  .array(fc.record({ offset: fc.nat(150), lengthBytes: fc.integer({ min: 1, max: 50 }) }), { maxLength: 12 })
  .map((ranges) => ranges.sort((a, b) => a.offset - b.offset))

describe('mergeRanges', () => {
  it('covers the same bytes with ranges that neither touch nor overlap', () => {
    fc.assert(
      fc.property(sortedRanges, (ranges) => {
        const merged = mergeRanges(ranges)
        expect(bytesOf(merged)).toEqual(bytesOf(ranges))
        for (const [index, range] of merged.slice(1).entries()) {
          const before = merged[index] as ByteRange
          expect(range.offset).toBeGreaterThan(before.offset + before.lengthBytes)
        }
      }),
    )
  })
})

describe('chunksOf', () => {
  it('cuts every range from its own start and loses no byte', () => {
    fc.assert(
      fc.property(sortedRanges.map(mergeRanges), fc.integer({ min: 1, max: 64 }), (ranges, chunkBytes) => {
        const chunks = [...chunksOf(ranges, chunkBytes)]
        expect(chunks).toHaveLength(chunkCount(ranges, chunkBytes))
        expect(totalBytes(chunks)).toBe(totalBytes(ranges))
        expect(bytesOf(chunks)).toEqual(bytesOf(ranges))
        expect(chunks.every((chunk) => chunk.lengthBytes <= chunkBytes)).toBe(true)
      }),
    )
  })
})

describe('overlapping', () => {
  it('keeps exactly the ranges that share a byte with the others', () => {
    fc.assert(
      fc.property(sortedRanges.map(mergeRanges), sortedRanges.map(mergeRanges), (ranges, others) => {
        const other = bytesOf(others)
        const expected = ranges.filter((range) =>
          other.slice(range.offset, range.offset + range.lengthBytes).includes(true),
        )
        expect(overlapping(ranges, others)).toEqual(expected)
      }),
    )
  })
})

it('pairs go there and back', () => {
  const ranges = [
    { offset: 0, lengthBytes: 5 },
    { offset: 9, lengthBytes: 1 },
  ]
  expect(toPairs(ranges)).toEqual([0, 5, 9, 1])
  expect(fromPairs(toPairs(ranges))).toEqual(ranges)
})
