/**
 * The daily window in which a resynchronization may start by itself, in local time of the source.
 *
 * A window that ends before it starts goes over midnight; equal ends mean all day. Local time is read from the time
 * zone's own rules at each instant, so a day of 23 or 25 hours needs no case of its own: the window is open whenever the
 * clock on the wall says so. In spring a start inside the skipped hour opens when the clock jumps past it; in autumn a
 * start inside the doubled hour opens at its first coming.
 */

import { SecondsiteError } from '../errors.js'
import { DAY_MS, HOUR_MS, MINUTE_MS } from '../units.js'

/** Farthest start time that may be asked for. */
export const START_DAYS_MAX = 7

/** A daily window. */
export interface DailyWindow {
  /** HH:MM. */
  readonly windowStart: string
  /** HH:MM; excluded. */
  readonly windowEnd: string
  /** IANA name; default the time zone of this computer. */
  readonly timeZone?: string | undefined
}

/** Says whether the window is open at `nowMs`. */
export function isWindowOpen(window: DailyWindow, nowMs: number): boolean {
  return isInside(window, wallMinutes(window, nowMs))
}

/**
 * The first instant at or after `nowMs` at which the window is open, in Unix milliseconds.
 *
 * Looks at each minute of at most the next 49 hours: exact over any change of the clock, and 3000 look-ups at worst.
 */
export function nextWindowOpenMs(window: DailyWindow, nowMs: number): number {
  if (isWindowOpen(window, nowMs)) return nowMs
  const firstMinuteMs = Math.floor(nowMs / MINUTE_MS) * MINUTE_MS + MINUTE_MS
  for (let atMs = firstMinuteMs; atMs < nowMs + 2 * DAY_MS + HOUR_MS; atMs += MINUTE_MS) {
    if (isWindowOpen(window, atMs)) return atMs
  }
  throw new RangeError(`the window ${window.windowStart}-${window.windowEnd} never opens`)
}

/**
 * Returns `startMs` when a start may be set for then.
 * @throws {WINDOW_TOO_FAR} when it lies before `nowMs` or more than 7 days after it
 */
export function checkStartTime(startMs: number, nowMs: number): number {
  if (startMs >= nowMs && startMs <= nowMs + START_DAYS_MAX * DAY_MS) return startMs
  throw new SecondsiteError('WINDOW_TOO_FAR', {
    message: `the start time must lie within the next ${START_DAYS_MAX} days`,
    details: { startMs: Number.isFinite(startMs) ? startMs : String(startMs), nowMs },
  })
}

function isInside(window: DailyWindow, minutes: number): boolean {
  const start = minutesOf(window.windowStart)
  const end = minutesOf(window.windowEnd)
  if (start === end) return true
  return start < end ? minutes >= start && minutes < end : minutes >= start || minutes < end
}

/** `09:30` as 570. */
export function minutesOf(timeOfDay: string): number {
  const [hours = 0, minutes = 0] = timeOfDay.split(':').map(Number)
  return hours * 60 + minutes
}

/** Formatters are slow to make (0.1 ms) and quick to use. */
const formatters = new Map<string, Intl.DateTimeFormat>()

/** Minutes since midnight that the clock on the wall shows. */
export function wallMinutes(window: Pick<DailyWindow, 'timeZone'>, atMs: number): number {
  const zone = window.timeZone ?? Intl.DateTimeFormat().resolvedOptions().timeZone
  let formatter = formatters.get(zone)
  if (formatter === undefined) {
    const options = { timeZone: zone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' } as const
    formatter = new Intl.DateTimeFormat('en-GB', options)
    formatters.set(zone, formatter)
  }
  return minutesOf(formatter.format(atMs))
}
