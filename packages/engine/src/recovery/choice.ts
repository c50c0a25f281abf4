/**
 * Which state of the replica is meant: a choice in the words of the model, and the point that it comes to.
 */

import { SecondsiteError } from '../errors.js'
import type { PointKind } from '../states.js'
import { NS_PER_MS } from '../units.js'

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
 * - the sequence number of a write that is kept: the state right behind it. It tells writes apart that came at the same
 *   time. `disk` names its disk and may be left out where there is one.
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
  | { readonly sequence: number; readonly disk?: string }

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
  /** Times inside of which no state is exact, ascending. */
  readonly gaps: readonly KeptGap[]
}

/** A time of which not every write is kept. */
export interface KeptGap {
  readonly fromMs: number
  readonly toMs: number
  /**
   * - `resynchronization`: the disks were put together out of pieces.
   * - `coalesced`: logs were over the threshold, so of overlapping writes only the last was sent.
   */
  readonly reason: 'resynchronization' | 'coalesced'
}

/** A write of which the log is kept. */
export interface KeptWrite {
  readonly diskId: string
  readonly sequence: number
  /** The shipment that brought it, and the log that has it. */
  readonly cycleNumber: number
  readonly logId: string
}

/** What a choice comes to. */
export interface ChosenState {
  readonly state: StateInTime
  /** Kept logs are applied on top up to this time; undefined for the point itself. */
  readonly untilNs?: bigint
  /** On its disk they end behind this write instead. */
  readonly untilWrite?: KeptWrite
}

/** A write that was asked for by its sequence number. */
export interface FoundWrite extends KeptWrite {
  /** The latest time of it and of what its disk was given before it, Unix nanoseconds. */
  readonly latestNs: bigint
}

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

/**
 * The state right behind a write that is kept. Writes to other disks up to the same time are part of it: none of them
 * began after the write, and all that were answered before it began are there.
 * @throws {POINT_NOT_FOUND, POINT_NOT_EXACT}
 */
export function chooseWrite(
  states: readonly StateInTime[],
  spans: readonly KeptSpan[],
  { latestNs, ...untilWrite }: FoundWrite,
  directory: string,
): ChosenState {
  const { sequence, cycleNumber } = untilWrite
  const older = states.filter(({ number }) => number < cycleNumber)
  const span = spans.find(({ fromPoint }) => fromPoint < cycleNumber)
  const timeMs = Number(latestNs / NS_PER_MS)
  if (span) refuseGap(span, timeMs)
  const state = span && baseOf(older, span, timeMs)
  if (state) return { state, untilNs: latestNs, untilWrite }
  throw new SecondsiteError('POINT_NOT_FOUND', {
    message: `no recovery point in ${directory} leads to write ${sequence}`,
    details: { path: directory, choice: describe({ sequence }), points: older.map(({ number }) => number) },
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
  if ('sequence' in choice) throw new TypeError('a write is found in the kept logs first: see chooseWrite')
  const timeNs = 'timeNs' in choice ? choice.timeNs : BigInt(choice.timeMs) * NS_PER_MS
  return exact(states, spans, timeNs) ?? newestUntil(states, timeNs)
}

function newestUntil(states: readonly StateInTime[], timeNs: bigint): ChosenState | undefined {
  const state = states.findLast(({ cutTimeMs }) => BigInt(cutTimeMs) * NS_PER_MS <= timeNs)
  return state && { state }
}

/** A cut is made that much later than the time it is recorded with, at most; an older point leads to the same state. */
export const BASE_MARGIN_MS = 60_000

const GAP_TEXTS: Readonly<Record<KeptGap['reason'], string>> = {
  resynchronization: 'a resynchronization',
  coalesced: 'a time of which only the last of overlapping writes was sent',
}

/** The newest point from which kept logs lead to the time. */
function exact(
  states: readonly StateInTime[],
  spans: readonly KeptSpan[],
  timeNs: bigint,
): ChosenState | undefined {
  const timeMs = Number(timeNs / NS_PER_MS)
  // The newest cut was made somewhat later than it says, and its log has what was written until then.
  const span = spans.find(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs + BASE_MARGIN_MS)
  if (span === undefined) return undefined
  refuseGap(span, timeMs)
  const state = baseOf(
    states.filter(({ cutTimeMs }) => cutTimeMs <= timeMs),
    span,
    timeMs,
  )
  return state && { state, untilNs: timeNs }
}

/** The newest of the points that logs lead forward from, with some distance. */
function baseOf(states: readonly StateInTime[], span: KeptSpan, timeMs: number): StateInTime | undefined {
  const older = states.filter(({ number, isLatest }) => number >= span.fromPoint && !isLatest)
  return older.findLast(({ cutTimeMs }) => cutTimeMs <= timeMs - BASE_MARGIN_MS) ?? older[0]
}

/** @throws {POINT_NOT_EXACT} */
function refuseGap(span: KeptSpan, timeMs: number): void {
  const gap = span.gaps.find(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs)
  if (gap) {
    throw new SecondsiteError('POINT_NOT_EXACT', {
      message: `${new Date(timeMs).toISOString()} lies inside ${GAP_TEXTS[gap.reason]}`,
      details: { timeMs, ...gap },
    })
  }
}

/** Unix milliseconds that a choice comes to. */
export function timeOf({ state, untilNs }: ChosenState): number {
  return untilNs === undefined ? state.cutTimeMs : Number(untilNs / NS_PER_MS)
}

function describe(choice: RecoveryPointChoice): string {
  if (typeof choice === 'string') return choice
  if ('point' in choice) return String(choice.point)
  if ('sequence' in choice) return `write ${choice.disk ? `${choice.disk}:` : ''}${choice.sequence}`
  return new Date('timeNs' in choice ? Number(choice.timeNs / NS_PER_MS) : choice.timeMs).toISOString()
}
