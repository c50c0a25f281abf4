/**
 * `points`: what a replica can show, how much was changed between, and what was written around a time; locks on points.
 */

import { writeFileSync } from 'node:fs'
import {
  type Churn,
  formatBytes,
  formatDuration,
  openReplica,
  type RecoveryPoint,
  type Replica,
  type WriteMoment,
  type WritesAround,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'
import { timeText } from './recovery-command.js'
import { timeNsText } from './recovery-options.js'
import { bars, churnPage, churnSvg, type Picture } from './recovery-picture.js'

/** What `points` is given. */
export interface PointsGiven {
  readonly deep?: boolean
  readonly around?: bigint
  readonly span?: number
  readonly writes?: number
  readonly svg?: string
  readonly html?: string
}

/** `points REPLICA`. */
export async function points(
  invocation: Invocation,
  [directory = '']: string[],
  given: PointsGiven,
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  if (given.around !== undefined) return await around(invocation, replica, given.around, given)
  const list = await replica.points({ deep: given.deep ?? false })
  const picture = await pictureOf(replica, list)
  if (given.svg) writeFileSync(given.svg, churnSvg(picture))
  if (given.html) writeFileSync(given.html, churnPage(picture))
  await say(invocation, replica, list, picture)
  return list.some(({ damage }) => damage) ? EXIT.different : EXIT.ok
}

async function pictureOf(replica: Replica, points: readonly RecoveryPoint[]): Promise<Picture> {
  return { machine: await replica.machine(), cuts: await replica.churn(), points }
}

async function say(
  { output, isJson }: Invocation,
  replica: Replica,
  list: readonly RecoveryPoint[],
  { machine, cuts }: Picture,
): Promise<void> {
  const [state, span, notices] = [await replica.state(), await replica.keptSpan(), await replica.notices()]
  if (isJson)
    return output.json({ machine, state, points: list, everyWriteKept: span ?? null, churn: cuts, notices })
  output.say(`${machine}: ${state}`)
  const head = ['point', 'time', 'age', 'kind', 'undo', 'changed', 'noise', 'locked until', 'note']
  output.say(table(head, list.map(pointRow)))
  if (cuts.length > 1) output.say(bars(cuts))
  if (span) output.say(`every write is kept from ${timeText(span.fromMs)} to ${timeText(span.toMs)}`)
  for (const { fromMs, toMs, reason } of span?.gaps ?? [])
    output.say(`  but from ${timeText(fromMs)} to ${timeText(toMs)}: ${reason}`)
  const newest = notices.at(-1)
  if (newest)
    output.warn(`noticed ${timeText(newest.timeMs)}: ${newest.code} ${JSON.stringify(newest.details)}`)
}

function pointRow(one: RecoveryPoint): string[] {
  return [
    String(one.number),
    timeText(one.cutTimeMs),
    formatDuration(Math.max(0, Date.now() - one.cutTimeMs)),
    one.kind,
    one.isLatest ? '' : formatBytes(one.undoBytes),
    one.churn ? formatBytes(one.churn.writeBytes) : '',
    one.churn ? noiseText(one.churn) : '',
    one.lockedUntilMs === null ? '' : timeText(one.lockedUntilMs),
    noteOf(one),
  ]
}

function noiseText({ noiseBytes, writeBytes }: Churn): string {
  return writeBytes === 0 ? '' : `${Math.round((noiseBytes / writeBytes) * 100)} %`
}

const SUSPICIONS = {
  'last-before': 'last point before what looks like encryption',
  after: 'after what looks like encryption',
} as const

function noteOf({ damage, isLatest, withoutDisks, suspicion, digest }: RecoveryPoint): string {
  const notes = [
    damage ? `damaged: ${damage.reason}` : '',
    isLatest ? 'newest state' : '',
    withoutDisks.length > 0 ? `without ${withoutDisks.join(', ')}` : '',
    suspicion ? SUSPICIONS[suspicion] : '',
    digest ? `digest ${digest.slice(0, 12)}` : '',
  ]
  return notes.filter((note) => note !== '').join('; ')
}

/** `points REPLICA --around TIME`. */
async function around(
  { output, isJson }: Invocation,
  replica: Replica,
  timeNs: bigint,
  { span, writes }: PointsGiven,
): Promise<ExitCode> {
  const found = await replica.around(timeNs, {
    ...(span === undefined ? {} : { spanMs: span * 1000 }),
    ...(writes === undefined ? {} : { writesEachSide: writes }),
  })
  const disks = new Set(found.moments.map(({ disk }) => disk))
  if (isJson) output.json({ around: { ...found, moments: found.moments.map(withNames) } })
  else sayAround(output, found, disks.size > 1)
  return found.inexactReason === null ? EXIT.ok : EXIT.different
}

function withNames(moment: WriteMoment) {
  return { ...moment, ...namesOf(moment) }
}

/** What `--at` and `--sequence` take for the state right behind a write. */
function namesOf({ timeNs, disk, sequence }: WriteMoment) {
  return { at: timeNsText(timeNs), write: `${disk}:${sequence}` }
}

const REASONS: Readonly<Record<NonNullable<WritesAround['inexactReason']>, string>> = {
  'not kept':
    'writes are not kept one by one (protect with --keep-writes): only these points can be gone back to',
  'before the kept writes': 'that is before the writes that are kept: only points can be gone back to there',
  'after the kept writes': 'that is after the newest write that was received',
  resynchronization: 'that lies inside a resynchronization: no state in it is exact',
  coalesced: 'that lies where only the last of overlapping writes was sent: no state in it is exact',
}

function sayAround(output: Invocation['output'], found: WritesAround, hasDisks: boolean): void {
  if (found.inexactReason) output.say(REASONS[found.inexactReason])
  const { intervals, moments } = found
  const most = Math.max(1, ...intervals.map(({ bytesPerSecond }) => bytesPerSecond))
  if (intervals.length > 0) {
    const rows = intervals.map((one) => [
      timeText(one.fromMs),
      one.writesPerSecond.toFixed(1),
      `${formatBytes(Math.round(one.bytesPerSecond))}/s`,
      '█'.repeat(Math.round((one.bytesPerSecond / most) * 30)),
      one.isExact ? '' : 'not exact',
    ])
    output.say(table(['from', 'writes/s', 'data', '', ''], rows))
  }
  const pointRows = found.points.map((one) => [
    String(one.number),
    timeText(one.cutTimeMs),
    one.kind,
    noteOf(one),
  ])
  if (pointRows.length > 0) output.say(table(['point', 'time', 'kind', 'note'], pointRows))
  if (moments.length === 0) return
  const rows = moments.flatMap((moment, index) => {
    const isFirstAfter = !moment.isBefore && (moments[index - 1]?.isBefore ?? true)
    const asked = isFirstAfter ? [[timeNsText(found.aroundNs), '', 'asked for', '', '']] : []
    return [...asked, momentRow(moment)]
  })
  output.say(table(['--at', '--sequence', 'what', 'offset', 'bytes'], rows))
  const same = hasDisks ? ', and all of other disks until then' : ''
  output.say(
    `Each line names the state right behind its write${same}: restore or fail over with --at or --sequence.`,
  )
}

function momentRow(moment: WriteMoment): string[] {
  const { at, write } = namesOf(moment)
  return [at, write, moment.operation, String(moment.offset), String(moment.lengthBytes)]
}

/** `points lock REPLICA POINT --until TIME`. */
export async function pointsLock(
  { output, isJson }: Invocation,
  [directory = '', number = '']: string[],
  given: { until: bigint },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const lockedUntilMs = await replica.lockPoint(Number(number), Number(given.until / 1_000_000n))
  if (isJson) output.json({ point: Number(number), lockedUntilMs })
  else output.say(`point ${number} is locked until ${timeText(lockedUntilMs)}`)
  return EXIT.ok
}

/** `points dismiss REPLICA`. */
export async function pointsDismiss(
  { output, isJson }: Invocation,
  [directory = '']: string[],
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const dismissed = await replica.dismissSuspicions()
  if (isJson) output.json({ dismissed })
  else output.say(`${dismissed} cuts do not look like encryption any more`)
  return EXIT.ok
}

/** `points digest REPLICA POINT`. */
export async function pointsDigest(
  { output, isJson, signal }: Invocation,
  [directory = '', number = '']: string[],
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const startedMs = Date.now()
  const digest = await replica.digestPoint(
    { point: Number(number) },
    {
      signal,
      onProgress: ({ disk, doneBytes, totalBytes }) => {
        const bytesPerSecond = (doneBytes * 1000) / Math.max(1, Date.now() - startedMs)
        output.progress({ phase: `digest ${disk}`, doneBytes, totalBytes, bytesPerSecond, etaMs: null })
      },
    },
  )
  output.progress(undefined)
  if (isJson) output.json({ point: Number(number), digest })
  else output.say(`${digest}  point ${number}`)
  return EXIT.ok
}

/** `points unlock REPLICA POINT`. */
export async function pointsUnlock(
  { output, isJson }: Invocation,
  [directory = '', number = '']: string[],
  given: { yes?: boolean },
): Promise<ExitCode> {
  if (!given.yes) return unconfirmed({ output, isJson }, `--yes lets the rules remove point ${number} again`)
  await using replica = await openReplica({ directory })
  await replica.unlockPoint(Number(number))
  if (isJson) output.json({ point: Number(number), lockedUntilMs: null })
  else output.say(`point ${number} is not locked any more`)
  return EXIT.ok
}

/** `points delete REPLICA POINT`. */
export async function pointsDelete(
  { output, isJson }: Invocation,
  [directory = '', number = '']: string[],
  given: { yes?: boolean },
): Promise<ExitCode> {
  if (!given.yes) return unconfirmed({ output, isJson }, `--yes removes point ${number} for good`)
  await using replica = await openReplica({ directory })
  await replica.deletePoint(Number(number))
  if (isJson) output.json({ deleted: Number(number) })
  else output.say(`point ${number} is gone; its room is given back after the next cycle at the latest`)
  return EXIT.ok
}

function unconfirmed({ output, isJson }: Pick<Invocation, 'output' | 'isJson'>, what: string): ExitCode {
  const text = `nothing was changed: ${what}`
  if (isJson) output.json({ done: false, note: text })
  else output.say(text)
  return EXIT.refused
}
