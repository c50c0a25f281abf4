import { array, assert, integer, property } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { NO_RECOVERY_POINTS, type RecoverySettings } from '../store/recovery-settings.js'
import { DAY_MS, HOUR_MS, MINUTE_MS } from '../units.js'
import { expiredPoints, isPointDue, type KeptPoint } from './retention.js'

// A Wednesday.
const NOON_MS = Date.UTC(2026, 10, 18, 12)

function settings(changed: Partial<RecoverySettings> = {}, retention = {}): RecoverySettings {
  return {
    ...NO_RECOVERY_POINTS,
    ...changed,
    retention: { ...NO_RECOVERY_POINTS.retention, ...retention },
  }
}

function pointsAt(timesMs: readonly number[], changed: Partial<KeptPoint> = {}): KeptPoint[] {
  return timesMs.map((cutTimeMs, index) => {
    return { pointNumber: index + 1, cutTimeMs, lockedUntilMs: null, isTransient: false, ...changed }
  })
}

function kept(points: readonly KeptPoint[], rules: RecoverySettings, nowMs = NOON_MS): number[] {
  const expired = expiredPoints(points, rules, nowMs, new Set())
  return points.map(({ pointNumber }) => pointNumber).filter((number) => !expired.includes(number))
}

describe('points that are kept', () => {
  it('are the newest ones', () => {
    const points = pointsAt([1, 2, 3, 4, 5].map((hour) => NOON_MS + hour * HOUR_MS))
    expect(kept(points, settings({ recoveryPoints: 2 }))).toEqual([4, 5])
    expect(kept(points, settings({ recoveryPoints: 24 }))).toEqual([1, 2, 3, 4, 5])
    expect(kept(points, settings())).toEqual([])
  })

  it('are the newest of each hour, day and week', () => {
    const hourly = pointsAt([0, 10, 20, 70, 130, 140].map((minute) => NOON_MS + minute * MINUTE_MS))
    expect(kept(hourly, settings({}, { hourly: 2 }))).toEqual([4, 6])
    const daily = pointsAt([0, 1, 12, 24, 30].map((hour) => NOON_MS + hour * HOUR_MS))
    expect(kept(daily, settings({}, { daily: 2 }))).toEqual([2, 5])
    // Sunday before midnight and Monday after it are of two weeks.
    const sunday = Date.UTC(2026, 10, 22, 23)
    const weekly = pointsAt([NOON_MS, sunday, sunday + 2 * HOUR_MS, sunday + DAY_MS])
    expect(kept(weekly, settings({}, { weekly: 2 }))).toEqual([2, 4])
  })

  it('are those that are locked, until they are not, and those in use', () => {
    const points = pointsAt([NOON_MS, NOON_MS + HOUR_MS], { lockedUntilMs: NOON_MS + DAY_MS })
    expect(kept(points, settings(), NOON_MS + DAY_MS - 1)).toEqual([1, 2])
    expect(kept(points, settings(), NOON_MS + DAY_MS)).toEqual([])
    expect(expiredPoints(points, settings(), NOON_MS + DAY_MS, new Set([1]))).toEqual([2])
  })

  it('do not count what exists for a view alone', () => {
    const points = [
      ...pointsAt([NOON_MS, NOON_MS + HOUR_MS]),
      { ...pointsAt([NOON_MS + 2 * HOUR_MS], { isTransient: true })[0]!, pointNumber: 3 },
    ]
    expect(kept(points, settings({ recoveryPoints: 2 }))).toEqual([1, 2])
  })

  it('reach back to the point that kept writes lead forward from', () => {
    const points = pointsAt([-5, -3, -1, 0].map((hour) => NOON_MS + hour * HOUR_MS))
    const rules = { ...settings(), keepEveryWrite: { hours: 2, bytesMax: 0 } }
    expect(kept(points, rules)).toEqual([2, 3, 4])
  })

  it('never are fewer under more rules', () => {
    const times = array(integer({ min: 0, max: 60 * 24 * 60 }), { maxLength: 40 })
    const count = integer({ min: 0, max: 5 })
    assert(
      property(times, count, count, count, (minutes, recoveryPoints, hourly, daily) => {
        const points = pointsAt(
          minutes.toSorted((left, right) => left - right).map((minute) => NOON_MS + minute * MINUTE_MS),
        )
        const less = kept(points, settings({ recoveryPoints }, { hourly }))
        const more = kept(points, settings({ recoveryPoints }, { hourly, daily }))
        expect(less.every((number) => more.includes(number))).toBe(true)
        expect(less.length).toBeGreaterThanOrEqual(Math.min(recoveryPoints, points.length))
      }),
    )
  })
})

describe('a new point', () => {
  const points = pointsAt([NOON_MS])
  const ordinary = (sinceMs: number) => ({ cutTimeMs: NOON_MS + sinceMs, isOrdinary: true })

  it('is made once the interval is over', () => {
    const rules = settings({ recoveryPoints: 1, recoveryPointIntervalSeconds: 60 })
    expect(isPointDue([], ordinary(0), rules)).toBe(true)
    expect(isPointDue(points, ordinary(MINUTE_MS - 1), rules)).toBe(false)
    expect(isPointDue(points, ordinary(MINUTE_MS), rules)).toBe(true)
  })

  it('is made of any cut that is not an ordinary one', () => {
    const rules = settings({ recoveryPoints: 1 })
    expect(isPointDue(points, { cutTimeMs: NOON_MS + 1, isOrdinary: false }, rules)).toBe(true)
  })

  it('is made although the clock was set back', () => {
    expect(isPointDue(points, ordinary(-DAY_MS), settings({ recoveryPoints: 1 }))).toBe(true)
  })

  it('is never made where nobody asks for points', () => {
    expect(isPointDue([], { cutTimeMs: NOON_MS, isOrdinary: false }, settings())).toBe(false)
  })
})
