import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import type { NativeSealedLog } from '../native/types.js'
import { type Shipment, shipmentBytes, slicesOf } from './shipment.js'

function sealedLog(id: string, logSizeBytes: number, indexSizeBytes: number): NativeSealedLog {
  return {
    path: `${id}.hrl`,
    indexPath: `${id}.hrx`,
    id,
    previousId: '',
    firstSequence: 0,
    nextSequence: 1,
    entryCount: 1,
    dataBytes: logSizeBytes,
    logSizeBytes,
    indexSizeBytes,
    cutTimeMs: 0,
  }
}

function shipmentOf(logs: NativeSealedLog[]): Shipment {
  const entries = logs.map((log) => ({ diskId: 'disk', log }))
  return {
    number: 1,
    kind: 'delta',
    cutTimeMs: 0,
    isRebase: false,
    pointKind: 'crash-consistent',
    groupPointId: null,
    shrinks: [],
    logs: entries,
  }
}

it('sends every byte behind the cursor exactly once and none before it', () => {
  const size = fc.integer({ min: 1, max: 400 })
  fc.assert(
    fc.property(
      size,
      size,
      fc.nat(900),
      fc.integer({ min: 1, max: 97 }),
      (logSize, indexSize, cursor, frameBytes) => {
        const shipment = shipmentOf([sealedLog('a', logSize, indexSize), sealedLog('b', 10, 10)])
        const sent = new Uint8Array(logSize + indexSize)
        for (const slice of slicesOf(shipment, frameBytes, new Map([['a', cursor]]))) {
          expect(slice.lengthBytes).toBeLessThanOrEqual(frameBytes)
          if (slice.logId !== 'a') continue
          const start = slice.offset + (slice.part === 'index' ? logSize : 0)
          for (let at = start; at < start + slice.lengthBytes; at += 1) sent[at] = (sent[at] ?? 0) + 1
        }
        expect([...sent]).toEqual([...sent.keys()].map((at) => (at < cursor ? 0 : 1)))
      },
    ),
  )
})

it('names a log and its index in this order, log after log', () => {
  const shipment = shipmentOf([sealedLog('a', 5, 3), sealedLog('b', 4, 2)])
  const order = [...slicesOf(shipment, 4, new Map())].map((s) => `${s.path}@${s.offset}+${s.lengthBytes}`)
  expect(order).toEqual(['a.hrl@0+4', 'a.hrl@4+1', 'a.hrx@0+3', 'b.hrl@0+4', 'b.hrx@0+2'])
  expect(shipmentBytes(shipment)).toBe(14)
})
