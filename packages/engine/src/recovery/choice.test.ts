/** What a choice comes to at the edges of its times and numbers. */

import { describe, expect, it } from 'vitest'
import { BASE_MARGIN_MS, chooseState, chooseWrite, type KeptSpan, type StateInTime } from './choice.js'

const FIRST_MS = 1_000_000
const APART_MS = 100_000

/** Unix milliseconds of the cut of a point. */
const cutOf = (number: number): number => FIRST_MS + number * APART_MS
const nsOf = (timeMs: number): bigint => BigInt(timeMs) * 1_000_000n

const states: readonly StateInTime[] = [1, 2, 3, 4].map((number) => {
  return { number, kind: 'crash-consistent', cutTimeMs: cutOf(number), isLatest: number === 4 }
})
const span: KeptSpan = { fromPoint: 1, fromMs: cutOf(1), toMs: cutOf(4), gaps: [] }

/** The point and the time, in milliseconds, that a time comes to; null for the point itself. */
function chosen(timeMs: number, spans: readonly KeptSpan[] = [span]): [number, number | null] {
  const { state, untilNs } = chooseState(states, spans, { timeMs }, 'replica')
  return [state.number, untilNs === undefined ? null : Number(untilNs / 1_000_000n)]
}

function writtenIn(cycleNumber: number, latestMs: number): number {
  const write = { diskId: 'd1', sequence: 7, cycleNumber, logId: 'l1', latestNs: nsOf(latestMs) }
  return chooseWrite(states, [span], write, 'replica').state.number
}

describe('a time without kept writes', () => {
  it('is the point of that very time, and a nanosecond before it the one before', () => {
    expect(chosen(cutOf(2), [])).toEqual([2, null])
    expect(chosen(cutOf(2) - 1, [])).toEqual([1, null])
    const before = chooseState(states, [], { timeNs: nsOf(cutOf(2)) - 1n }, 'replica')
    expect(before.state.number).toBe(1)
  })

  it('before the first point is none', () => {
    expect(() => chosen(cutOf(1) - 1)).toThrow(expect.objectContaining({ code: 'POINT_NOT_FOUND' }))
  })
})

describe('a time with every write kept', () => {
  it('is exact from the first cut on, and as long behind the last as that may have been late', () => {
    expect(chosen(cutOf(1))).toEqual([1, cutOf(1)])
    const endMs = cutOf(4) + BASE_MARGIN_MS
    expect(chosen(endMs - 1)).toEqual([3, endMs - 1])
    expect(chosen(endMs)).toEqual([4, null])
  })

  it('leads forward from a point that is older by the margin', () => {
    const timeMs = cutOf(3) + BASE_MARGIN_MS
    expect(chosen(timeMs - 1)).toEqual([2, timeMs - 1])
    expect(chosen(timeMs)).toEqual([3, timeMs])
  })

  it('is refused inside of a gap, from its first millisecond to the one before its end', () => {
    const gap = { fromMs: cutOf(2), toMs: cutOf(3), reason: 'resynchronization' } as const
    const spans = [{ ...span, gaps: [gap] }]
    const refused = expect.objectContaining({ code: 'POINT_NOT_EXACT' })
    expect(() => chosen(gap.fromMs, spans)).toThrow(refused)
    expect(() => chosen(gap.toMs - 1, spans)).toThrow(refused)
    expect(chosen(gap.fromMs - 1, spans)).toEqual([1, gap.fromMs - 1])
    expect(chosen(gap.toMs, spans)).toEqual([2, gap.toMs])
  })
})

describe('a write', () => {
  it('leads forward from a point before the cut that brought it, whatever the clock said', () => {
    expect(writtenIn(3, cutOf(3) + BASE_MARGIN_MS)).toBe(2)
    expect(writtenIn(4, cutOf(3) + BASE_MARGIN_MS)).toBe(3)
  })

  it('of the cut that kept writes begin with is not there', () => {
    expect(() => writtenIn(1, cutOf(1))).toThrow(expect.objectContaining({ code: 'POINT_NOT_FOUND' }))
  })
})
