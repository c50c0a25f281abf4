/**
 * The list of what a replica can show: kept points, the newest state, and the times between them of which every write is
 * kept.
 */

import type { NativeUndoSummary } from '../native/types.js'
import type { PointKind } from '../states.js'
import type { KeptLog, Point } from '../store/recovery-schema.js'
import { type LostImage, lostImages } from '../store/image-file.js'
import { sizesOf } from '../store/recovery-store.js'
import type { ReplicaDisk } from '../store/replica-schema.js'
import { undoFolder } from '../store/undo-folder.js'
import { BASE_MARGIN_MS, type KeptGap, type KeptSpan, type StateInTime } from './choice.js'
import { type Churn, churnBetween, type PointSuspicion, readChurn, suspicionOf } from './churn.js'
import { identityOf, type RecoveryContext } from './context.js'

/** Why a point cannot be shown. */
export interface PointDamage {
  readonly disk: string
  readonly path: string
  readonly offset: number
  readonly reason: string
}

/** A state of the machine that can be gone back to. */
export interface RecoveryPoint extends StateInTime {
  /** The shipment that brought the replica to it; it names the point. */
  readonly number: number
  readonly kind: PointKind
  /** Unix milliseconds of the cut that it shows. */
  readonly cutTimeMs: number
  /** Unix milliseconds at which the replica came to it. */
  readonly appliedMs: number
  /** True for the newest state, which is no point of its own until it is about to be overwritten. */
  readonly isLatest: boolean
  /** Disks of the machine that it does not show: they joined later, or their image was lost and made anew. */
  readonly withoutDisks: readonly string[]
  /** Bytes of all disks at the point. */
  readonly sizeBytes: number
  /** Bytes of what leads from the next newer point back to this one. */
  readonly undoBytes: number
  /** Fencing number of the primary that made it. */
  readonly lineage: number
  /** Digest over all disks, where one was computed. */
  readonly digest: string | null
  /** The cut that all members of a consistency group share; null for one of the machine alone. */
  readonly groupPointId: string | null
  /** Unix milliseconds until which nothing removes it; null without a lock. */
  readonly lockedUntilMs: number | null
  /** Why it cannot be shown; null when it can. */
  readonly damage: PointDamage | null
  /** What was changed since the next older point in the list; null where nothing was measured. */
  readonly churn: Churn | null
  /** Where it stands to what looks like encryption; null without any. */
  readonly suspicion: PointSuspicion | null
}

/** A point without what only its neighbours tell. */
type BarePoint = Omit<RecoveryPoint, 'churn' | 'suspicion'>

/** Oldest first. @param isDeep - reads and checks everything that leads back */
export async function listPoints(context: RecoveryContext, isDeep = false): Promise<RecoveryPoint[]> {
  const [points, cuts] = [await barePoints(context, isDeep), await readChurn(context)]
  return points.map((point, index) => {
    const [older, newer] = [points[index - 1]?.number, points[index + 1]?.number]
    const churn = churnBetween(cuts, older, point.number)
    return { ...point, churn, suspicion: suspicionOf(cuts, point.number, newer) }
  })
}

/** The same without what was changed between them. */
export async function barePoints(context: RecoveryContext, isDeep = false): Promise<BarePoint[]> {
  // From the commit on the images are the new primary's disks, and no state of the past.
  const { state } = (await context.store.identity()) ?? {}
  if (state === 'FailedOver' || state === 'Disabled') return []
  const latest = await context.recovery.latest()
  const all = await context.recovery.points()
  const rows = all.filter(({ isTransient }) => isTransient === 0)
  const disks = await context.store.disks()
  const undo = await undoOf(context, disks, isDeep)
  const known = { disks, undo, lost: await lostImages(disks, () => context.store.disks()) }
  const points = rows.map((row) => pointOf(row, latest?.cycle.cycleNumber === row.pointNumber, known))
  if (latest === undefined || points.at(-1)?.isLatest) return points
  const { cycleNumber: number, pointKind: kind, cutTimeMs, appliedMs, groupPointId } = latest.cycle
  const { fencingNumber: lineage } = await identityOf(context)
  const shown = disks.filter(({ isImageWhole }) => isImageWhole === 1)
  // A view made a row of it that nobody counts.
  const digest = all.find(({ pointNumber }) => pointNumber === number)?.digest ?? null
  const newest: BarePoint = {
    number,
    kind,
    cutTimeMs,
    appliedMs: appliedMs ?? cutTimeMs,
    isLatest: true,
    withoutDisks: namesBut(disks, shown),
    sizeBytes: sumOf(shown.map(({ sizeBytes }) => sizeBytes)),
    undoBytes: 0,
    lineage,
    digest,
    groupPointId,
    lockedUntilMs: null,
    damage: damageOf(known, shown, number),
  }
  return [...points, newest]
}

interface DiskUndo extends NativeUndoSummary {
  readonly disk: string
}

async function undoOf(
  context: RecoveryContext,
  disks: readonly ReplicaDisk[],
  isDeep: boolean,
): Promise<DiskUndo[]> {
  const lists: DiskUndo[] = []
  for (const disk of disks) {
    const args = [undoFolder(context.directory, disk), isDeep]
    const summary = (await context.pool.run('native', { call: 'undoSummary', args })) as NativeUndoSummary
    lists.push({ ...summary, disk: disk.name })
  }
  return lists
}

/** What there is to show points from. */
interface KnownDisks {
  readonly disks: readonly ReplicaDisk[]
  readonly undo: readonly DiskUndo[]
  readonly lost: readonly LostImage[]
}

function pointOf(row: Point, isLatest: boolean, known: KnownDisks): BarePoint {
  const { pointNumber: number, kind, cutTimeMs, appliedMs, fencingNumber, digest, groupPointId } = row
  const sizes = sizesOf(row)
  const shown = known.disks.filter(({ diskId }) => sizes[diskId] !== undefined)
  const own = known.undo.flatMap(({ points }) => points.filter(({ point }) => point === number))
  return {
    number,
    kind,
    cutTimeMs,
    appliedMs,
    isLatest,
    withoutDisks: namesBut(known.disks, shown),
    sizeBytes: sumOf(Object.values(sizes)),
    undoBytes: sumOf(own.map(({ storedBytes }) => storedBytes)),
    lineage: fencingNumber,
    digest,
    groupPointId,
    lockedUntilMs: row.lockedUntilMs,
    damage: damageOf(known, shown, number),
  }
}

function namesBut(disks: readonly ReplicaDisk[], shown: readonly ReplicaDisk[]): string[] {
  return disks.filter((disk) => !shown.includes(disk)).map(({ name }) => name)
}

function sumOf(bytes: readonly number[]): number {
  return bytes.reduce((total, one) => total + one, 0)
}

/**
 * Undo leads back from an image, so without it there is nothing to show. What is damaged of a point stands between it and
 * every newer one, so it is missed by all that are older.
 */
function damageOf(known: KnownDisks, shown: readonly ReplicaDisk[], number: number): PointDamage | null {
  const lost = known.lost.find(({ disk }) => shown.includes(disk))
  if (lost) return { disk: lost.disk.name, path: lost.disk.imagePath, offset: 0, reason: lost.reason }
  for (const { disk, damage } of known.undo) {
    const found = damage.find(({ throughPoint }) => throughPoint === -1 || number <= throughPoint)
    if (found) return { disk, path: found.path, offset: found.offset, reason: found.reason }
  }
  return null
}

/** The time of which every write is kept; undefined where there is none. */
export function keptSpan(logs: readonly KeptLog[], points: readonly StateInTime[]): KeptSpan | undefined {
  const first = logs[0]
  const from = first && points.find(({ number }) => number >= first.cycleNumber - 1)
  if (first === undefined || from === undefined) return undefined
  const toMs = logs.reduce((newest, { cutTimeMs }) => Math.max(newest, cutTimeMs), 0)
  return { fromPoint: from.number, fromMs: from.cutTimeMs, toMs, gaps: gapsOf(logs) }
}

/** Nothing between the cuts before and behind such a log is a state of the disks. */
function gapsOf(logs: readonly KeptLog[]): KeptGap[] {
  const deltas = logs.filter(({ kind }) => kind === 'delta')
  const inexact = logs.filter(({ kind, isCoalesced }) => kind === 'resync' || isCoalesced === 1)
  const gaps = inexact.map((log): KeptGap => {
    const fromMs = deltas.findLast(({ cycleNumber }) => cycleNumber < log.cycleNumber)?.cutTimeMs ?? 0
    if (log.kind === 'resync') {
      const after = deltas.find(({ cycleNumber }) => cycleNumber > log.cycleNumber)
      const toMs = after?.cutTimeMs ?? Number.MAX_SAFE_INTEGER
      return { fromMs, toMs, reason: 'resynchronization' }
    }
    // Its entries stand in the order of the disk: only a time behind all of them applies all of them.
    return { fromMs, toMs: log.cutTimeMs + BASE_MARGIN_MS, reason: 'coalesced' }
  })
  return gaps.filter(
    (gap, index) =>
      index === gaps.findIndex(({ toMs, reason }) => toMs === gap.toMs && reason === gap.reason),
  )
}
