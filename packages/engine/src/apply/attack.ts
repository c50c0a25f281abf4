/**
 * The rule by which a cut looks as if data was being encrypted: a pure function of what it brought and of the cuts before.
 *
 * Encryption in place puts noise where data was that compresses; nothing else does so much of it all of a sudden. What it
 * sees, what it takes for it and what it misses stands in docs/points.md. It only ever tells: nothing is stopped by it.
 */

import type { ChurnRow } from '../store/insight-schema.js'
import { MIB, SECOND_MS } from '../units.js'

/** Fewer bytes that were turned into noise in one cut are never a rise. */
export const TURNED_BYTES_MIN = 4 * MIB
/** Percent of what a cut wrote that must have been turned. */
export const TURNED_PERCENT_MIN = 20
/** How many times the machine's own rate of such bytes it must be. */
export const BASELINE_FACTOR = 10
/** Cuts before it that make the machine's own rate; those that were suspicious themselves do not count. */
export const BASELINE_CUTS_MAX = 96
/** With fewer the machine has no rate of its own yet, and the first two conditions are enough. */
export const BASELINE_CUTS_MIN = 4

/** What the rule looks at. */
export type MeasuredCut = Pick<
  ChurnRow,
  'fromMs' | 'cutTimeMs' | 'writeBytes' | 'turnedBytes' | 'isSuspicious'
>

/** What the rule found. */
export interface Assessment {
  readonly isSuspicious: boolean
  /** Bytes turned in a second, in this cut and in those before; null while there are too few. */
  readonly turnedBytesPerSecond: number
  readonly baselineBytesPerSecond: number | null
}

/** @param before - cuts before it, at most {@link BASELINE_CUTS_MAX} */
export function assessCut(cut: MeasuredCut, before: readonly MeasuredCut[]): Assessment {
  const usual = before.filter(({ isSuspicious }) => isSuspicious === 0)
  const baselineBytesPerSecond = usual.length < BASELINE_CUTS_MIN ? null : rateOf(usual)
  const turnedBytesPerSecond = rateOf([cut])
  const isRise = turnedBytesPerSecond >= BASELINE_FACTOR * (baselineBytesPerSecond ?? 0)
  const isMuch = cut.turnedBytes >= TURNED_BYTES_MIN
  const isMost = cut.turnedBytes * 100 >= cut.writeBytes * TURNED_PERCENT_MIN
  return { isSuspicious: isMuch && isMost && isRise, turnedBytesPerSecond, baselineBytesPerSecond }
}

function rateOf(cuts: readonly MeasuredCut[]): number {
  const turnedBytes = cuts.reduce((total, cut) => total + cut.turnedBytes, 0)
  // A clock that was set back makes an interval of nothing.
  const durationMs = cuts.reduce((total, cut) => total + Math.max(0, cut.cutTimeMs - cut.fromMs), 0)
  return (turnedBytes * SECOND_MS) / Math.max(SECOND_MS, durationMs)
}
