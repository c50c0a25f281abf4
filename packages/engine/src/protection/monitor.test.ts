import { describe, expect, it } from 'vitest'
import { intervalEndMs } from './monitor.js'
import { parsePolicy } from './policy.js'

const at = (text: string): number => Date.parse(`2026-11-21T${text}:00Z`)

function policy(monitoringStart: string, hours: number) {
  const monitoringIntervalSeconds = hours * 3600
  return parsePolicy({ monitoringStart, monitoringIntervalSeconds, autoResynchronize: { timeZone: 'UTC' } })
}

describe('a monitoring interval', () => {
  it('of a machine enabled in between is short: from 06:00 every 12 h, enabled at 14:00, it ends at 18:00', () => {
    expect(intervalEndMs(policy('06:00', 12), at('14:00'))).toBe(at('18:00'))
  })

  it('begins where the one before it ended', () => {
    expect(intervalEndMs(policy('09:00', 12), at('09:00'))).toBe(at('21:00'))
    expect(intervalEndMs(policy('09:00', 12), at('21:00'))).toBe(at('09:00') + 24 * 3_600_000)
    expect(intervalEndMs(policy('09:00', 1), at('08:30'))).toBe(at('09:00'))
  })

  it('may be longer than a day', () => {
    expect(intervalEndMs(policy('09:00', 168), at('10:00'))).toBe(at('09:00') + 168 * 3_600_000)
  })
})
