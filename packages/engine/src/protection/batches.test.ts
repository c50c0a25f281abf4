import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { GIB, MIB } from '../units.js'
import { batchBytesWithin } from './batches.js'

it('a batch leaves half of the room to the logs, whatever was wanted', () => {
  const bytes = fc.integer({ min: 4 * MIB, max: 4 * GIB })
  fc.assert(
    fc.property(bytes, bytes, (roomBytes, wantedBytes) => {
      const dataBytes = batchBytesWithin(roomBytes, wantedBytes)
      expect(dataBytes).toBeLessThanOrEqual(wantedBytes)
      // The last piece, of 1 MiB at most, may go beyond the end of a batch.
      expect(dataBytes + MIB).toBeLessThanOrEqual(roomBytes / 2)
    }),
  )
})

it('a batch is as large as wanted where there is room, and never smaller than the smallest', () => {
  expect(batchBytesWithin(GIB, 64 * MIB)).toBe(64 * MIB)
  expect(batchBytesWithin(24 * MIB, 64 * MIB)).toBe(11 * MIB)
  expect(batchBytesWithin(0, 64 * MIB)).toBe(MIB)
  expect(batchBytesWithin(GIB, 4096)).toBe(4096)
})
