import { describe, expect, it } from 'vitest'
import { isQuiesceDue, type QuiesceFacts } from './quiesced-cuts.js'

const MINUTE = 60_000
const NOW = 1_000 * MINUTE
const hourly: QuiesceFacts = { nowMs: NOW, frequencyHours: 1, lastCutMs: null, lastFailureMs: null }

function isDue(changes: Partial<QuiesceFacts>): boolean {
  return isQuiesceDue({ ...hourly, ...changes })
}

describe('an application-consistent cut is due', () => {
  it('never when the policy wants none', () => {
    expect(isDue({ frequencyHours: 0 })).toBe(false)
  })

  it('at once when there has been none', () => {
    expect(isDue({})).toBe(true)
  })

  it.each([
    [59, false],
    [60, true],
    [61, true],
  ])('%s minutes after the last one: %s', (minutes, expected) => {
    expect(isDue({ lastCutMs: NOW - minutes * MINUTE })).toBe(expected)
  })

  it.each([
    [14, false],
    [15, true],
  ])('%s minutes after a failure: %s', (minutes, expected) => {
    expect(isDue({ lastFailureMs: NOW - minutes * MINUTE })).toBe(expected)
    expect(isDue({ lastFailureMs: NOW - minutes * MINUTE, lastCutMs: NOW - 90 * MINUTE })).toBe(expected)
  })

  it('when a clock that was set back puts the last one in the future', () => {
    expect(isDue({ lastCutMs: NOW + MINUTE })).toBe(true)
  })
})
