/**
 * Which state of the replica is meant: a choice in the words of the model, and the point that it comes to.
 */

import { SecondsiteError } from '../errors.js'
import type { PointKind } from '../states.js'

/**
 * - `Latest`: what was received is applied first, then the newest state; the least is lost.
 * - `LatestProcessed`: the newest state that is applied; the fastest.
 * - `LatestApplicationConsistent`: the newest cut that was made while applications were frozen.
 * - `LatestMultiVmProcessed`: the newest cut of the machine's consistency group; `LatestMultiVmApplicationConsistent`: the newest
 *   of them that was made while applications were frozen. Whether the other members can show it too is asked of all of them
 *   by `startGroupFailover`.
 * - a number of a point, as {@link RecoveryPoint.number}.
 * - a time: with every write kept exactly then, otherwise the newest point that is not later. Unix milliseconds, or
 *   nanoseconds as bigint.
 */
export type RecoveryPointChoice =
  | 'Latest'
  | 'LatestProcessed'
  | 'LatestApplicationConsistent'
  | 'LatestMultiVmProcessed'
  | 'LatestMultiVmApplicationConsistent'
  | { readonly point: number }
  | { readonly timeMs: number }
  | { readonly timeNs: bigint }

/** A state that the replica can show. */
export interface StateInTime {
  readonly number: number
  readonly kind: PointKind
  readonly cutTimeMs: number
  readonly isLatest: boolean
  /** The cut that all members of a consistency group share; null or absent for one of the machine alone. */
  readonly groupPointId?: string | null
}

/** Logs that were kept and follow one another without a gap. */
export interface KeptSpan {
  /** The point that they lead forward from. */
  readonly fromPoint: number
  /** Cut of that point and of the newest kept log, Unix milliseconds. */
  readonly fromMs: number
  readonly toMs: number
  /** Times inside of which no state is exact, ascending: resynchronizations. */
  readonly gaps: readonly { readonly fromMs: number; readonly toMs: number }[]
}

/** What a choice comes to. */
export interface ChosenState {
  readonly state: StateInTime
  /** Kept logs are applied on top up to this time; undefined for the point itself. */
  readonly untilNs?: bigint
}

const NS_PER_MS = 1_000_000n

/**
 * @param states - ascending by number, the newest one last
 * @throws {POINT_NOT_FOUND, POINT_NOT_EXACT}
 */
export function chooseState(
  states: readonly StateInTime[],
  spans: readonly KeptSpan[],
  choice: RecoveryPointChoice,
  directory: string,
): ChosenState {
  const found = typeof choice === 'string' ? named(states, choice) : addressed(states, spans, choice)
  if (found) return found
  const known = states.map(({ number }) => number)
  throw new SecondsiteError('POINT_NOT_FOUND', {
    message: `no recovery point ${describe(choice)} in ${directory}; there are ${known.length}`,
    details: { path: directory, choice: describe(choice), points: known },
  })
}

type NamedChoice = Extract<RecoveryPointChoice, string>

function named(states: readonly StateInTime[], choice: NamedChoice): ChosenState | undefined {
  const wanted = states.findLast((one) => isMeant(one, choice))
  return wanted && { state: wanted }
}

function isMeant({ kind, isLatest, groupPointId }: StateInTime, choice: NamedChoice): boolean {
  const isOfGroup = typeof groupPointId === 'string'
  switch (choice) {
    case 'Latest':
    case 'LatestProcessed':
      return isLatest
    case 'LatestApplicationConsistent':
      return kind === 'application-consistent'
    case 'LatestMultiVmProcessed':
      return isOfGroup
    case 'LatestMultiVmApplicationConsistent':
      return isOfGroup && kind === 'application-consistent'
  }
}

function addressed(
  states: readonly StateInTime[],
  spans: readonly KeptSpan[],
  choice: Exclude<RecoveryPointChoice, string>,
): ChosenState | undefined {
  if ('point' in choice) {
    const state = states.find(({ number }) => number === choice.point)
    return state && { state }
  }
  const timeNs = 'timeNs' in choice ? choice.timeNs : BigInt(choice.timeMs) * NS_PER_MS
  return exact(states, spans, timeNs) ?? newestUntil(states, timeNs)
}

function newestUntil(states: readonly StateInTime[], timeNs: bigint): ChosenState | undefined {
  const state = states.findLast(({ cutTimeMs }) => BigInt(cutTimeMs) * NS_PER_MS <= timeNs)
  return state && { state }
}

/** A cut is made that much later than the time it is recorded with, at most; an older point leads to the same state. */
const BASE_MARGIN_MS = 60_000

/** The newest point from which kept logs lead to the time. */
function exact(
  states: readonly StateInTime[],
  spans: readonly KeptSpan[],
  timeNs: bigint,
): ChosenState | undefined {
  const timeMs = Number(timeNs / NS_PER_MS)
  const span = spans.find(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs)
  if (span === undefined) return undefined
  const gap = span.gaps.find(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs)
  if (gap) {
    throw new SecondsiteError('POINT_NOT_EXACT', {
      message: `${new Date(timeMs).toISOString()} lies inside a resynchronization`,
      details: { timeMs, fromMs: gap.fromMs, toMs: gap.toMs },
    })
  }
  const older = states.filter(
    (one) => one.number >= span.fromPoint && one.cutTimeMs <= timeMs && !one.isLatest,
  )
  const state = older.findLast((one) => one.cutTimeMs <= timeMs - BASE_MARGIN_MS) ?? older[0]
  return state && { state, untilNs: timeNs }
}

/** Unix milliseconds that a choice comes to. */
export function timeOf({ state, untilNs }: ChosenState): number {
  return untilNs === undefined ? state.cutTimeMs : Number(untilNs / NS_PER_MS)
}

function describe(choice: RecoveryPointChoice): string {
  if (typeof choice === 'string') return choice
  if ('point' in choice) return String(choice.point)
  return new Date('timeNs' in choice ? Number(choice.timeNs / NS_PER_MS) : choice.timeMs).toISOString()
}
