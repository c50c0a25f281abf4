/**
 * Which recovery points are kept: a pure function of the points, the rules and the time.
 *
 * A point stays while any rule wants it: among the newest ones, the newest of its hour, day or week, locked, or in use.
 * Hours, days and weeks are those of UTC, so that the same points are kept wherever the rules are looked at.
 */

import type { RecoverySettings } from '../store/recovery-settings.js'
import { DAY_MS, HOUR_MS, SECOND_MS } from '../units.js'

/** A point as the rules see it. */
export interface KeptPoint {
  readonly pointNumber: number
  /** Unix milliseconds of its cut. */
  readonly cutTimeMs: number
  /** Unix milliseconds until which nothing removes it; null without a lock. */
  readonly lockedUntilMs: number | null
  /** It exists for a view alone, and no rule counts it. */
  readonly isTransient: boolean
}

/** A cut whose state may become a point. */
export interface Candidate {
  readonly cutTimeMs: number
  readonly isOrdinary: boolean
}

const WEEK_MS = 7 * DAY_MS
/** The first Monday of Unix time. */
const FIRST_MONDAY_MS = 4 * DAY_MS

/** Whether the settings ask for points at all. */
export function wantsPoints({ recoveryPoints, retention, keepEveryWrite }: RecoverySettings): boolean {
  const { hourly, daily, weekly } = retention
  return recoveryPoints + hourly + daily + weekly + keepEveryWrite.hours > 0
}

/** Whether the present state becomes a point before it is overwritten. */
export function isPointDue(
  points: readonly KeptPoint[],
  candidate: Candidate,
  settings: RecoverySettings,
): boolean {
  if (!wantsPoints(settings)) return false
  if (!candidate.isOrdinary) return true
  const newestMs = points.filter((point) => !point.isTransient).at(-1)?.cutTimeMs
  if (newestMs === undefined) return true
  // A clock that was set back must not keep points from being made until it has caught up.
  const sinceMs = candidate.cutTimeMs - newestMs
  return sinceMs < 0 || sinceMs >= settings.recoveryPointIntervalSeconds * SECOND_MS
}

/**
 * The numbers of the points that no rule keeps.
 * @param points - ascending by number
 * @param inUse - points with an open view or failover
 */
export function expiredPoints(
  points: readonly KeptPoint[],
  settings: RecoverySettings,
  nowMs: number,
  inUse: ReadonlySet<number>,
): number[] {
  const ruled = points.filter((point) => !point.isTransient)
  const { hourly, daily, weekly } = settings.retention
  const kept = new Set([
    ...newest(ruled, settings.recoveryPoints),
    ...newestOfEach(ruled, hourly, (timeMs) => Math.floor(timeMs / HOUR_MS)),
    ...newestOfEach(ruled, daily, (timeMs) => Math.floor(timeMs / DAY_MS)),
    ...newestOfEach(ruled, weekly, (timeMs) => Math.floor((timeMs - FIRST_MONDAY_MS) / WEEK_MS)),
    ...baseOfKeptWrites(ruled, settings, nowMs),
  ])
  const isLocked = (point: KeptPoint): boolean => (point.lockedUntilMs ?? 0) > nowMs
  return points
    .filter((point) => !kept.has(point.pointNumber) && !isLocked(point) && !inUse.has(point.pointNumber))
    .map((point) => point.pointNumber)
}

function newest(points: readonly KeptPoint[], count: number): number[] {
  return count === 0 ? [] : points.slice(-count).map((point) => point.pointNumber)
}

function newestOfEach(
  points: readonly KeptPoint[],
  count: number,
  periodOf: (timeMs: number) => number,
): number[] {
  const byPeriod = new Map(points.map((point) => [periodOf(point.cutTimeMs), point.pointNumber]))
  const periods = [...byPeriod.keys()].toSorted((left, right) => right - left)
  return periods.slice(0, count).map((period) => byPeriod.get(period) ?? 0)
}

/** Kept logs lead forward from a point: the newest one before them stays, and those among them. */
function baseOfKeptWrites(
  points: readonly KeptPoint[],
  { keepEveryWrite }: RecoverySettings,
  nowMs: number,
): number[] {
  if (keepEveryWrite.hours === 0) return []
  const sinceMs = nowMs - keepEveryWrite.hours * HOUR_MS
  const first = points.findLastIndex((point) => point.cutTimeMs <= sinceMs)
  return points.slice(Math.max(0, first)).map((point) => point.pointNumber)
}
