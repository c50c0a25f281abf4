import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type ByteRange, chunksOf, mergeRanges, totalBytes } from '../ranges.js'
import { differingChunks, digestBytes, digestListBytes, windowsOf } from './compare.js'

const ranges: ByteRange[] = [
  { offset: 0, lengthBytes: 100 },
  { offset: 300, lengthBytes: 64 },
]

describe('differingChunks', () => {
  it('finds exactly the chunks in which one byte of the digest was changed', () => {
    const chunks = [...chunksOf(ranges, 32)]
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(chunks.length - 1)), fc.nat(digestBytes - 1), (changed, byte) => {
        const source = new Uint8Array(digestListBytes(ranges, 32)).fill(7)
        const replica = source.slice()
        for (const index of changed) replica[index * digestBytes + byte] = 8
        const expected = changed.sort((a, b) => a - b).map((index) => chunks[index] as ByteRange)
        expect(differingChunks(ranges, 32, source, replica)).toEqual(mergeRanges(expected))
      }),
    )
  })

  it('refuses a list that has not one digest a chunk', () => {
    const full = new Uint8Array(digestListBytes(ranges, 32))
    expect(() => differingChunks(ranges, 32, full, full.subarray(digestBytes))).toThrow(RangeError)
  })
})

describe('windowsOf', () => {
  it('walks the rest of the disk without a gap', () => {
    const windows = [...windowsOf(1000, 300, 300)]
    expect(windows.map((window) => window.offset)).toEqual([300, 600, 900])
    expect(totalBytes(windows)).toBe(700)
    expect(windows.at(-1)?.lengthBytes).toBe(100)
  })
})
