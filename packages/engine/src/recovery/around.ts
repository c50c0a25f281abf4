/**
 * What was written around a time, so that the moment just before a damage can be found and gone back to.
 *
 * Kept logs say of every write when it came, where and how long it was. Rates are counted per interval over all disks;
 * of the writes nearest to the time each is listed with the two names of the state right behind it: its time, which it
 * may share with the writes of the same batch, and its sequence number on its disk, which it shares with none.
 */

import { SecondsiteError, checkWithin, optionOutOfRange } from '../errors.js'
import { MINUTE_MS, NS_PER_MS } from '../units.js'
import type { KeptLog } from '../store/recovery-schema.js'
import type { ReplicaDisk } from '../store/replica-schema.js'
import { BASE_MARGIN_MS, type FoundWrite, type KeptSpan } from './choice.js'
import type { RecoveryContext } from './context.js'
import { keptSpan, type RecoveryPoint } from './points.js'

/** Before and behind the time, by default. */
const SPAN_MS = 5 * MINUTE_MS
const INTERVALS_MAX = 1000
const WRITES_MAX = 1000
const SPAN_MS_MAX = 7 * 24 * 60 * MINUTE_MS

/** Options of {@link Replica.around}. */
export interface AroundOptions {
  /** Milliseconds looked at before and behind the time, 1 to 7 days; default 5 minutes. */
  readonly spanMs?: number
  /** Intervals of it, 1 to 1000; default 20. */
  readonly intervalCount?: number
  /** Writes listed before and behind the time, 0 to 1000 each; default 10. */
  readonly writesEachSide?: number
}

/** What was written in an interval, over all disks. */
export interface WriteInterval {
  /** Unix milliseconds. */
  readonly fromMs: number
  readonly toMs: number
  readonly writeCount: number
  readonly writeBytes: number
  /** Bytes that were zeroed or given back: not data. */
  readonly zeroBytes: number
  readonly writesPerSecond: number
  readonly bytesPerSecond: number
  /** Whether a state inside of it can be gone back to exactly. */
  readonly isExact: boolean
}

/** A write that is kept; the state right behind it is a {@link RecoveryPointChoice} by its time or sequence number. */
export interface WriteMoment {
  /** Unix nanoseconds. */
  readonly timeNs: bigint
  readonly disk: string
  readonly sequence: number
  readonly operation: 'write' | 'write-zeroes' | 'discard'
  /** Where on the disk. */
  readonly offset: number
  readonly lengthBytes: number
  /** Whether the state of the time asked for has it. */
  readonly isBefore: boolean
}

/** Why no state of a time can be shown exactly. */
export type InexactReason =
  | 'not kept'
  | 'before the kept writes'
  | 'after the kept writes'
  | 'resynchronization'
  | 'coalesced'

/** What {@link Replica.around} gives. */
export interface WritesAround {
  /** Unix nanoseconds asked for. */
  readonly aroundNs: bigint
  /** Why the state of that time cannot be shown exactly; null when it can. */
  readonly inexactReason: InexactReason | null
  /** The time of which every write is kept; null where there is none. */
  readonly everyWriteKept: KeptSpan | null
  /** Ascending; empty where no write is kept. */
  readonly intervals: readonly WriteInterval[]
  /** By time; only those behind which a state is exact. */
  readonly moments: readonly WriteMoment[]
  /** Points within the time looked at, and the nearest one on each side of it. */
  readonly points: readonly RecoveryPoint[]
}

/** Reads the kept logs of the time around `time`. @throws {OPTION_OUT_OF_RANGE, LOG_CORRUPT} */
export async function readAround(
  context: RecoveryContext,
  points: readonly RecoveryPoint[],
  time: number | bigint,
  options: AroundOptions,
): Promise<WritesAround> {
  const window = windowOf(time, options)
  const logs = await context.recovery.keptLogs()
  const span = keptSpan(logs, points)
  const shown = {
    aroundNs: window.aroundNs,
    inexactReason: inexactReason(span, Number(window.aroundNs / NS_PER_MS)),
    everyWriteKept: span ?? null,
    points: nearestPoints(points, window),
  }
  if (span === undefined) return { ...shown, intervals: [], moments: [] }
  const read: DiskWrites[] = []
  for (const disk of await context.store.disks()) read.push(await readDisk(context, disk, logs, window))
  const intervals = intervalsOf(window, span, read)
  return { ...shown, intervals, moments: momentsOf(window, span, read) }
}

interface Window {
  readonly aroundNs: bigint
  readonly fromMs: number
  readonly toMs: number
  readonly intervalNs: bigint
  readonly intervalCount: number
  readonly writesEachSide: number
}

function windowOf(time: number | bigint, options: AroundOptions): Window {
  const { spanMs = SPAN_MS, intervalCount = 20, writesEachSide = 10 } = options
  checkWithin('spanMs', spanMs, 1, SPAN_MS_MAX)
  checkWithin('intervalCount', intervalCount, 1, INTERVALS_MAX)
  checkWithin('writesEachSide', writesEachSide, 0, WRITES_MAX)
  const aroundNs = typeof time === 'bigint' ? time : BigInt(Math.trunc(time)) * NS_PER_MS
  const aroundMs = Number(aroundNs / NS_PER_MS)
  checkWithin('time', aroundMs, 0, Number.MAX_SAFE_INTEGER)
  const [fromMs, toMs] = [Math.max(0, aroundMs - spanMs), aroundMs + spanMs]
  // Rounded up, so that the last interval reaches the end.
  const intervalNs = (BigInt(toMs - fromMs) * NS_PER_MS) / BigInt(intervalCount) + 1n
  return { aroundNs, fromMs, toMs, intervalNs, intervalCount, writesEachSide }
}

function inexactReason(span: KeptSpan | undefined, timeMs: number): InexactReason | null {
  if (span === undefined) return 'not kept'
  if (timeMs < span.fromMs) return 'before the kept writes'
  if (timeMs >= span.toMs + BASE_MARGIN_MS) return 'after the kept writes'
  return span.gaps.find(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs)?.reason ?? null
}

function nearestPoints(points: readonly RecoveryPoint[], { fromMs, toMs }: Window): RecoveryPoint[] {
  const before = points.findLastIndex(({ cutTimeMs }) => cutTimeMs < fromMs)
  const after = points.findIndex(({ cutTimeMs }) => cutTimeMs > toMs)
  return points.slice(Math.max(0, before), after === -1 ? points.length : after + 1)
}

/** What the core says of the kept logs of a disk. */
interface DiskWrites {
  readonly disk: string
  readonly intervals: readonly Counted[]
  readonly before: readonly Entry[]
  readonly after: readonly Entry[]
}

interface Counted {
  readonly writeCount: number
  readonly writeBytes: number
  readonly zeroBytes: number
}

interface Entry {
  readonly operation: string
  readonly offset: number
  readonly lengthBytes: number
  readonly sequence: number
  readonly timeNs: bigint
}

async function readDisk(
  context: RecoveryContext,
  { diskId, name }: ReplicaDisk,
  logs: readonly KeptLog[],
  window: Window,
): Promise<DiskWrites> {
  const own = logsWithin(
    logs.filter((log) => log.diskId === diskId && log.kind === 'delta'),
    window,
  )
  const exact = await activity(
    context,
    own.filter((log) => !log.isCoalesced),
    window,
  )
  // Their entries stand in the order of the disk: they are counted, but nothing comes right behind another.
  const coalesced = await activity(
    context,
    own.filter((log) => log.isCoalesced),
    { ...window, writesEachSide: 0 },
  )
  const intervals = exact.intervals.map((one, index) => sum(one, coalesced.intervals[index]))
  return { disk: name, intervals, before: exact.before, after: exact.after }
}

/** A cut is recorded with a time somewhat before its own. */
function logsWithin(logs: readonly KeptLog[], { fromMs, toMs }: Window): KeptLog[] {
  let [beganMs, newest] = [0, logs[0]]
  return logs.filter((log) => {
    if (newest && newest.cycleNumber < log.cycleNumber) beganMs = newest.cutTimeMs
    newest = log
    return log.cutTimeMs + BASE_MARGIN_MS >= fromMs && beganMs <= toMs
  })
}

async function activity(
  context: RecoveryContext,
  logs: readonly KeptLog[],
  { aroundNs, fromMs, intervalNs, intervalCount, writesEachSide }: Window,
): Promise<Omit<DiskWrites, 'disk'>> {
  const fromNs = BigInt(fromMs) * NS_PER_MS
  const asked = { aroundNs, fromNs, intervalNs, intervalCount, entriesMax: writesEachSide }
  const args = [logs.map(({ path }) => path), asked]
  return (await context.pool.run('native', { call: 'logActivity', args })) as Omit<DiskWrites, 'disk'>
}

function sum(one: Counted, other: Counted | undefined): Counted {
  return {
    writeCount: one.writeCount + (other?.writeCount ?? 0),
    writeBytes: one.writeBytes + (other?.writeBytes ?? 0),
    zeroBytes: one.zeroBytes + (other?.zeroBytes ?? 0),
  }
}

const NOTHING: Counted = { writeCount: 0, writeBytes: 0, zeroBytes: 0 }

function intervalsOf(window: Window, span: KeptSpan, read: readonly DiskWrites[]): WriteInterval[] {
  const intervalMs = Number(window.intervalNs) / Number(NS_PER_MS)
  return Array.from({ length: window.intervalCount }, (_, index) => {
    const fromMs = Math.round(window.fromMs + index * intervalMs)
    const toMs = Math.round(window.fromMs + (index + 1) * intervalMs)
    const counted = read.map(({ intervals }) => intervals[index] ?? NOTHING).reduce(sum, NOTHING)
    const seconds = intervalMs / 1000
    return {
      fromMs,
      toMs,
      ...counted,
      writesPerSecond: counted.writeCount / seconds,
      bytesPerSecond: counted.writeBytes / seconds,
      isExact: isExact(span, fromMs, toMs),
    }
  })
}

function isExact(span: KeptSpan, fromMs: number, toMs: number): boolean {
  const isWithin = span.fromMs <= fromMs && toMs <= span.toMs
  return isWithin && span.gaps.every((gap) => gap.toMs <= fromMs || toMs <= gap.fromMs)
}

/** Of all disks together the nearest ones, in the order in which they would be gone through. */
function momentsOf(
  { writesEachSide }: Window,
  { gaps }: KeptSpan,
  read: readonly DiskWrites[],
): WriteMoment[] {
  const isInGap = (timeMs: number): boolean =>
    gaps.some(({ fromMs, toMs }) => fromMs <= timeMs && timeMs < toMs)
  const of = (side: 'before' | 'after'): WriteMoment[] =>
    read
      .flatMap((disk) => disk[side].map((entry) => momentOf(disk.disk, entry, side === 'before')))
      .filter(({ timeNs }) => !isInGap(Number(timeNs / NS_PER_MS)))
      .toSorted((left, right) => Number(left.timeNs - right.timeNs))
  const before = of('before')
  return [
    ...before.slice(Math.max(0, before.length - writesEachSide)),
    ...of('after').slice(0, writesEachSide),
  ]
}

function momentOf(disk: string, { operation, ...entry }: Entry, isBefore: boolean): WriteMoment {
  const { timeNs, sequence, offset, lengthBytes } = entry
  return {
    timeNs,
    disk,
    sequence,
    operation: operation as WriteMoment['operation'],
    offset,
    lengthBytes,
    isBefore,
  }
}

/**
 * The kept write with a sequence number.
 * @throws {OPTION_OUT_OF_RANGE} when the machine has several disks and none is named, or no such disk
 * @throws {POINT_NOT_FOUND} when it is not kept; {POINT_NOT_EXACT} when its log was coalesced
 */
export async function findWrite(
  context: RecoveryContext,
  { sequence, disk }: { readonly sequence: number; readonly disk?: string },
): Promise<FoundWrite> {
  checkWithin('sequence', sequence, 0, Number.MAX_SAFE_INTEGER)
  const { diskId, name } = await diskNamed(context, disk)
  const kept = (await context.recovery.keptLogs()).filter(
    (log) => log.diskId === diskId && log.kind === 'delta',
  )
  const args = [kept.map(({ path }) => path), sequence]
  const found = (await context.pool.run('native', { call: 'findLogEntry', args })) as FoundEntry | null
  const log = found ? kept[found.logIndex] : undefined
  if (!found || !log) throw notKept(context.directory, name, sequence)
  if (log.isCoalesced) throw notExact(name, sequence, log)
  return { diskId, sequence, cycleNumber: log.cycleNumber, logId: log.logId, latestNs: found.latestNs }
}

interface FoundEntry {
  readonly logIndex: number
  readonly latestNs: bigint
}

async function diskNamed(context: RecoveryContext, name: string | undefined): Promise<ReplicaDisk> {
  const disks = await context.store.disks()
  const [first, ...others] = name === undefined ? disks : disks.filter((disk) => disk.name === name)
  if (first && others.length === 0) return first
  const range = `one of ${disks.map((disk) => disk.name).join(', ')}`
  const message = `each disk counts its own writes: a sequence number needs ${range}`
  throw optionOutOfRange({ path: 'disk', value: name ?? null, range }, message)
}

function notKept(directory: string, disk: string, sequence: number): SecondsiteError {
  return new SecondsiteError('POINT_NOT_FOUND', {
    message: `write ${sequence} of ${disk} is not kept in ${directory}`,
    details: { path: directory, disk, sequence, reason: 'the write is not kept' },
  })
}

function notExact(disk: string, sequence: number, { cutTimeMs }: KeptLog): SecondsiteError {
  return new SecondsiteError('POINT_NOT_EXACT', {
    message: `write ${sequence} of ${disk} stands in a log of which only the last of overlapping writes was sent`,
    details: { disk, sequence, cutTimeMs, reason: 'coalesced' },
  })
}
