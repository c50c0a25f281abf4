import { describe, expect, it } from 'vitest'
import { checkStartTime, isWindowOpen, nextWindowOpenMs } from './window.js'

const night = { windowStart: '18:30', windowEnd: '06:00', timeZone: 'UTC' }
const at = (iso: string): number => Date.parse(iso)
const iso = (ms: number): string => new Date(ms).toISOString()

describe('a window over midnight', () => {
  it.each([
    ['18:29:59', false],
    ['18:30:00', true],
    ['23:59:59', true],
    ['00:00:00', true],
    ['05:59:59', true],
    ['06:00:00', false],
    ['12:00:00', false],
  ])('at %s is open: %s', (time, isOpen) => {
    expect(isWindowOpen(night, at(`2026-03-04T${time}Z`))).toBe(isOpen)
  })

  it('opens next in the evening, to the minute', () => {
    expect(iso(nextWindowOpenMs(night, at('2026-03-04T06:00:00Z')))).toBe('2026-03-04T18:30:00.000Z')
    expect(iso(nextWindowOpenMs(night, at('2026-03-04T18:29:59.999Z')))).toBe('2026-03-04T18:30:00.000Z')
  })

  it('is open now when it is open', () => {
    const now = at('2026-03-04T03:00:12.345Z')
    expect(nextWindowOpenMs(night, now)).toBe(now)
  })
})

describe('other windows', () => {
  it('of one day are closed outside', () => {
    const noon = { windowStart: '12:00', windowEnd: '13:00', timeZone: 'UTC' }
    expect(
      ['11:59', '12:00', '12:59', '13:00'].map((time) => isWindowOpen(noon, at(`2026-03-04T${time}Z`))),
    ).toEqual([false, true, true, false])
    expect(iso(nextWindowOpenMs(noon, at('2026-03-04T13:00:00Z')))).toBe('2026-03-05T12:00:00.000Z')
  })

  it('with equal ends are always open', () => {
    expect(
      isWindowOpen({ windowStart: '06:00', windowEnd: '06:00', timeZone: 'UTC' }, at('2026-03-04T12:00Z')),
    ).toBe(true)
  })

  it('follow the time zone, also one of 45 minutes', () => {
    expect(iso(nextWindowOpenMs({ ...night, timeZone: 'Asia/Kathmandu' }, at('2026-03-04T06:00Z')))).toBe(
      '2026-03-04T12:45:00.000Z',
    )
  })
})

const berlin = (windowStart: string, windowEnd: string) => ({
  windowStart,
  windowEnd,
  timeZone: 'Europe/Berlin',
})

describe('when the clock changes (Europe/Berlin)', () => {
  it('in spring, opens at the same local time before and after', () => {
    const window = berlin('18:30', '06:00')
    expect(iso(nextWindowOpenMs(window, at('2026-03-28T12:00Z')))).toBe('2026-03-28T17:30:00.000Z')
    expect(iso(nextWindowOpenMs(window, at('2026-03-29T12:00Z')))).toBe('2026-03-29T16:30:00.000Z')
    expect(isWindowOpen(window, at('2026-03-29T03:59Z'))).toBe(true)
    expect(isWindowOpen(window, at('2026-03-29T04:00Z'))).toBe(false)
  })

  it('in spring, a start in the hour that does not exist opens when the clock jumps past it', () => {
    expect(iso(nextWindowOpenMs(berlin('02:30', '05:00'), at('2026-03-29T00:00Z')))).toBe(
      '2026-03-29T01:00:00.000Z',
    )
  })

  it('in spring, a window that lies wholly in that hour opens the day after', () => {
    expect(iso(nextWindowOpenMs(berlin('02:10', '02:50'), at('2026-03-29T00:00Z')))).toBe(
      '2026-03-30T00:10:00.000Z',
    )
  })

  it('in autumn, a start in the hour that comes twice opens at its first coming', () => {
    expect(iso(nextWindowOpenMs(berlin('02:30', '05:00'), at('2026-10-24T23:30Z')))).toBe(
      '2026-10-25T00:30:00.000Z',
    )
  })
})

describe('a start time', () => {
  const now = at('2026-03-04T12:00Z')
  const day = 86_400_000

  it.each([0, 1, 7 * day])('%s ms ahead is taken', (ahead) => {
    expect(checkStartTime(now + ahead, now)).toBe(now + ahead)
  })

  it.each([-1, 7 * day + 1, Number.NaN, Number.POSITIVE_INFINITY])('%s ms ahead is refused', (ahead) => {
    expect(() => checkStartTime(now + ahead, now)).toThrow(
      expect.objectContaining({ code: 'WINDOW_TOO_FAR' }),
    )
  })
})
