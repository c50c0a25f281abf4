/**
 * Recovery points that must stay, and points that are to go before any rule lets go of them.
 *
 * A point that is deleted becomes one that no rule counts: it is not listed any more, and its files go with the next expiry.
 * Only who applies removes them, since undo of a newer point than the one that is saved for must never be left behind.
 */

import { SecondsiteError, optionOutOfRange } from '../errors.js'
import type { Point } from '../store/recovery-schema.js'
import { noPoint } from '../store/recovery-store.js'
import { readPoints, type RecoveryContext } from './context.js'

/** Nothing removes the point before that time; a lock is never made shorter. @throws {POINT_NOT_FOUND, OPTION_OUT_OF_RANGE} */
export async function lockPoint(
  { recovery, clock }: RecoveryContext,
  number: number,
  untilMs: number,
): Promise<number> {
  if (!Number.isSafeInteger(untilMs) || untilMs <= clock.nowMs())
    throw optionOutOfRange({ path: 'until', value: untilMs, range: 'a time that is still to come' })
  return recovery.lockPoint(number, untilMs)
}

/** The rules hold for the point again. @throws {POINT_NOT_FOUND} */
export async function unlockPoint(context: RecoveryContext, number: number): Promise<void> {
  await pointOf(context, number)
  await context.recovery.setPoint(number, { lockedUntilMs: null })
}

/**
 * Lets go of a point before the rules do. Writes that are kept are then gone back to from the next older point, where there
 * is one.
 * @throws {POINT_NOT_FOUND, POINT_LOCKED, POINT_IN_USE}
 * @throws {OPTION_OUT_OF_RANGE} for the newest state, which is no point that could go
 */
export async function deletePoint(context: RecoveryContext, number: number): Promise<void> {
  const latest = await context.recovery.latest()
  if (latest?.cycle.cycleNumber === number)
    throw optionOutOfRange({ path: 'point', value: number, range: 'an older one than the newest state' })
  await pointOf(context, number)
  await refuseUsed(context, number)
  const left = await context.recovery.deletePoint(number)
  if (left) throw locked(context.directory, [number], left.lockedUntilMs ?? 0)
  await context.letGo()
}

async function pointOf({ recovery, directory }: RecoveryContext, number: number): Promise<Point> {
  const point = (await recovery.points()).find((one) => one.pointNumber === number && one.isTransient === 0)
  if (point) return point
  throw noPoint(directory, `there is no point ${number}`, { point: number })
}

/** A failover needs its point also while nobody has it open. */
async function refuseUsed(context: RecoveryContext, number: number): Promise<void> {
  const { recovery, directory } = context
  if ((await recovery.failover())?.pointNumber === number) throw inUse(directory, [number], 'the failover')
  for (const { disk, points } of await readPoints(context))
    if (points.includes(number)) throw inUse(directory, [number], `a reader of ${disk}`)
}

/** That points must stay, as somebody needs them. */
export function inUse(directory: string, points: readonly number[], user: string): SecondsiteError {
  const what = points.length === 1 ? `point ${points[0]} is` : `points ${points.join(', ')} are`
  return new SecondsiteError('POINT_IN_USE', {
    message: `recovery ${what} used by ${user}`,
    details: { path: directory, points: [...points] },
  })
}

/** That points are locked. */
export function locked(directory: string, points: readonly number[], untilMs: number): SecondsiteError {
  const what = points.length === 1 ? `recovery point ${points[0]} is` : `${points.length} recovery points are`
  return new SecondsiteError('POINT_LOCKED', {
    message: `${what} locked until ${new Date(untilMs).toISOString()}`,
    details: { path: directory, points: [...points], untilMs },
  })
}
