import { array, assert, integer, property } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { MIB, MINUTE_MS } from '../units.js'
import { assessCut, BASELINE_CUTS_MIN, type MeasuredCut, TURNED_BYTES_MIN } from './attack.js'

const INTERVAL_MS = 5 * MINUTE_MS

function cut(turnedBytes: number, changed: Partial<MeasuredCut> = {}): MeasuredCut {
  return {
    fromMs: 0,
    cutTimeMs: INTERVAL_MS,
    writeBytes: turnedBytes,
    turnedBytes,
    isSuspicious: 0,
    ...changed,
  }
}

const isSuspicious = (one: MeasuredCut, before: readonly MeasuredCut[] = []): boolean =>
  assessCut(one, before).isSuspicious

const quiet = Array.from({ length: BASELINE_CUTS_MIN }, () => cut(0))
const usual = (turnedBytes: number) => Array.from({ length: 20 }, () => cut(turnedBytes))

describe('a cut looks like encryption', () => {
  it('from 4 MiB of data that was turned into noise on, not before', () => {
    expect(isSuspicious(cut(TURNED_BYTES_MIN), quiet)).toBe(true)
    expect(isSuspicious(cut(TURNED_BYTES_MIN - 1), quiet)).toBe(false)
  })

  it('when that is a fifth of what was written, not less', () => {
    expect(isSuspicious(cut(8 * MIB, { writeBytes: 40 * MIB }), quiet)).toBe(true)
    expect(isSuspicious(cut(8 * MIB, { writeBytes: 40 * MIB + 1 }), quiet)).toBe(false)
  })

  it('when the machine never does so by itself: ten times its own rate', () => {
    expect(isSuspicious(cut(10 * MIB), usual(MIB))).toBe(true)
    expect(isSuspicious(cut(10 * MIB - 1), usual(MIB))).toBe(false)
    expect(isSuspicious(cut(100 * MIB), usual(50 * MIB))).toBe(false)
  })

  it('by its rate, so that a cut after a long pause is none for its length', () => {
    const paused = cut(60 * MIB, { cutTimeMs: 12 * INTERVAL_MS })
    expect(isSuspicious(paused, usual(MIB))).toBe(false)
    expect(isSuspicious(cut(60 * MIB), usual(MIB))).toBe(true)
  })

  it('while the machine is unknown by size and share alone', () => {
    const few = usual(50 * MIB).slice(0, BASELINE_CUTS_MIN - 1)
    expect(assessCut(cut(8 * MIB), few)).toMatchObject({ isSuspicious: true, baselineBytesPerSecond: null })
  })

  it('as long as it lasts: suspicious cuts are not what is usual', () => {
    const before = [...usual(0), ...usual(50 * MIB).map((one) => ({ ...one, isSuspicious: 1 }))]
    expect(isSuspicious(cut(50 * MIB), before)).toBe(true)
  })

  it('although the clock was set back', () => {
    expect(isSuspicious(cut(8 * MIB, { fromMs: INTERVAL_MS, cutTimeMs: 0 }), quiet)).toBe(true)
  })

  it('never where nothing was turned, whatever else was written', () => {
    const bytes = integer({ min: 0, max: 1 << 30 })
    assert(
      property(bytes, array(bytes, { maxLength: 96 }), (writeBytes, before) => {
        expect(
          isSuspicious(
            cut(0, { writeBytes }),
            before.map((turned) => cut(turned)),
          ),
        ).toBe(false)
      }),
    )
  })
})
