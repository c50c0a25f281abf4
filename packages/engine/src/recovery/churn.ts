/**
 * How much the guest changed over time and how well that compresses, as the replica measured it cut by cut, and which points
 * stand before and behind a rise of what looks like encryption.
 */

import type { ErrorDetails } from '../errors.js'
import type { ChurnRow, NoticeCode } from '../store/insight-schema.js'
import { InsightStore } from '../store/insight-store.js'
import type { RecoveryContext } from './context.js'

/** What was changed in a time, over all disks. Zeros and discards are not data. */
export interface Churn {
  /** Unix milliseconds. */
  readonly fromMs: number
  readonly toMs: number
  readonly writeCount: number
  /** Bytes of writes. */
  readonly writeBytes: number
  /** Bytes that were zeroed or given back. */
  readonly zeroBytes: number
  /** What `writeBytes` would take at the entropy of their bytes; a compressor does better, as it sees repetitions. */
  readonly entropyBytes: number
  /** Bytes of `writeBytes` that no compressor shrinks: encrypted, compressed or random. */
  readonly noiseBytes: number
  /** Bytes of them that replaced data that one shrinks. */
  readonly turnedBytes: number
  /** A resynchronization brought some of it, written nobody knows when. */
  readonly isResync: boolean
}

/** What one cut brought. */
export interface CutChurn extends Churn {
  /** The shipment that brought it, which is the number of the point that it may be. */
  readonly number: number
  /** It looks as if data was being encrypted in place. */
  readonly isSuspicious: boolean
}

/**
 * - `last-before`: the newest point before data began to look as if it was being encrypted.
 * - `after`: newer than that.
 */
export type PointSuspicion = 'last-before' | 'after'

/** Something that the replica found. */
export interface ReplicaNotice {
  readonly code: NoticeCode
  readonly timeMs: number
  readonly details: ErrorDetails
}

/** What cuts brought, oldest first, as far as it is remembered: from the oldest point on, and 31 days. */
export async function readChurn({ store, clock }: RecoveryContext): Promise<CutChurn[]> {
  return (await new InsightStore(store, clock).churn()).map(cutOf)
}

/** What looked like encryption was none. @returns how many cuts had looked so */
export function dismissSuspicions({ store, clock }: RecoveryContext): Promise<number> {
  return new InsightStore(store, clock).dismissSuspicions()
}

/** What the replica found, newest last. */
export async function readNotices({ store, clock }: RecoveryContext): Promise<ReplicaNotice[]> {
  return (await new InsightStore(store, clock).notices()).map(({ code, timeMs, detailsJson }) => {
    return { code, timeMs, details: JSON.parse(detailsJson) as ErrorDetails }
  })
}

function cutOf({ cycleNumber: number, cutTimeMs: toMs, isResync, isSuspicious, ...row }: ChurnRow): CutChurn {
  return { ...row, number, toMs, isResync: isResync === 1, isSuspicious: isSuspicious === 1 }
}

/** What the cuts after one point and until another brought together; null where none of them was measured. */
export function churnBetween(
  cuts: readonly CutChurn[],
  after: number | undefined,
  until: number,
): Churn | null {
  // Before the oldest point everything is counted that is remembered.
  const own = cuts.filter(({ number }) => number > (after ?? -1) && number <= until)
  const [first] = own
  if (first === undefined) return null
  const sum = (of: (cut: CutChurn) => number): number => own.reduce((total, cut) => total + of(cut), 0)
  return {
    fromMs: first.fromMs,
    toMs: own.at(-1)?.toMs ?? first.toMs,
    writeCount: sum(({ writeCount }) => writeCount),
    writeBytes: sum(({ writeBytes }) => writeBytes),
    zeroBytes: sum(({ zeroBytes }) => zeroBytes),
    entropyBytes: sum(({ entropyBytes }) => entropyBytes),
    noiseBytes: sum(({ noiseBytes }) => noiseBytes),
    turnedBytes: sum(({ turnedBytes }) => turnedBytes),
    isResync: own.some(({ isResync }) => isResync),
  }
}

/**
 * Where a point stands to what looks like encryption: the rises count that began, not each cut of one.
 * @param next - the number of the next newer point; undefined for the newest state
 */
export function suspicionOf(
  cuts: readonly CutChurn[],
  number: number,
  next: number | undefined,
): PointSuspicion | null {
  const rises = cuts.filter((cut, index) => cut.isSuspicious && cuts[index - 1]?.isSuspicious !== true)
  const isLastBefore = rises.some((rise) => number < rise.number && (next ?? Infinity) >= rise.number)
  if (isLastBefore) return 'last-before'
  return rises.some((rise) => rise.number <= number) ? 'after' : null
}
