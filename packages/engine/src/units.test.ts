import { describe, expect, it } from 'vitest'
import { checkOffset, checkSectorOffset, formatBytes, formatDuration, toSafeNumber } from './units.js'

describe('checkOffset', () => {
  it.each([0, 512, Number.MAX_SAFE_INTEGER])('takes %s', (value) => {
    expect(checkOffset(value)).toBe(value)
  })

  it.each([-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])('refuses %s', (value) => {
    expect(() => checkOffset(value, 'start')).toThrow(/^start must be/)
  })

  it('refuses what is not a whole sector', () => {
    expect(checkSectorOffset(1024)).toBe(1024)
    expect(() => checkSectorOffset(513)).toThrow(TypeError)
  })
})

describe('toSafeNumber', () => {
  it('never rounds', () => {
    expect(toSafeNumber(9007199254740991n)).toBe(9007199254740991)
    expect(() => toSafeNumber(9007199254740993n)).toThrow(RangeError)
  })
})

describe('texts for people', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.0 KiB'],
    [1536, '1.5 KiB'],
    [1048575, '1.0 MiB'],
    [5 * 2 ** 40, '5.0 TiB'],
  ])('%s bytes read %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text)
  })

  it.each([
    [0, '0 ms'],
    [999, '999 ms'],
    [1500, '1.5 s'],
    [59_960, '1 min'],
    [90_000, '1 min 30 s'],
    [3_599_600, '1 h'],
    [5_400_000, '1 h 30 min'],
    [86_400_000, '1 d'],
    [90_000_000, '1 d 1 h'],
  ])('%s ms read %s', (durationMs, text) => {
    expect(formatDuration(durationMs)).toBe(text)
  })
})
