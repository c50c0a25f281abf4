/**
 * The queue of shipments of a machine: recorded before they travel, shipped in their order, forgotten when applied.
 *
 * A shipment is recorded together with what it stands for (a cut, a batch and how far it brings a pass), so a crash
 * leaves either nothing or a shipment that the next call sends. Logs are released by the tracked disk only when the
 * replica's images hold them.
 */

import { unlinkSync } from 'node:fs'
import { type DiskShrink, parseShrinks, shrinksText } from '../disk-shrink.js'
import type { NativeSealedLog } from '../native/types.js'
import { type Shipment, ship } from '../ship/index.js'
import type { PointKind } from '../states.js'
import type { Cycle, LogKind, QueuedLog } from '../store/state-schema.js'
import { dropQueue } from '../store/resync-store.js'
import type { InTransaction } from '../store/state-store.js'
import { throwIfAborted } from '../errors.js'
import { diskOf, type MachineContext } from './machine-context.js'
import type { ProgressMeter } from './progress.js'
import type { Conversation } from './replica-link.js'
import { carriedShrinks, settleShrinks } from './shrinking.js'

/** A log to be queued. */
export interface QueueEntry {
  readonly diskId: string
  readonly log: NativeSealedLog
  /** Of overlapping writes only the last is in it; default false. */
  readonly isCoalesced?: boolean
}

/** What one call of {@link shipQueue} did. */
export interface ShipTotals {
  /** Unix milliseconds of the newest cut that the images hold; 0 when nothing was shipped. */
  cutTimeMs: number
  /** What that cut was. */
  pointKind: PointKind
  shipmentCount: number
  rawBytes: number
  sentBytes: number
}

/** Options of a shipment to be recorded. */
export interface QueueOptions {
  /** The chain of logs begins anew with it. */
  readonly isRebase?: boolean
  /** Further writes of the same transaction. */
  readonly also?: InTransaction
  /** Shipments that this one takes the place of. */
  readonly replaces?: readonly number[]
  /** Unix milliseconds of the cut; default now. */
  readonly cutTimeMs?: number
  /** What the cut was; default `crash-consistent`. */
  readonly pointKind?: PointKind
  /** The cut that all members of a consistency group share; default none. */
  readonly groupPointId?: string | null
  /** Disks that have shrunk before the cut; default none. */
  readonly shrinks?: readonly DiskShrink[]
}

/** Records a shipment. @returns its number */
export async function queueShipment(
  context: MachineContext,
  kind: LogKind,
  entries: readonly QueueEntry[],
  options: QueueOptions = {},
): Promise<number> {
  const { machineId, store, clock } = context
  const { nextCycleNumber: cycleNumber } = await store.machine(machineId)
  const logs = entries.map((entry) => ({ ...rowOf(entry), cycleNumber, kind, state: 'sealed' as const }))
  const isRebase = options.isRebase ? 1 : 0
  const times = { cutTimeMs: options.cutTimeMs ?? clock.nowMs(), receivedMs: null, appliedMs: null }
  const { pointKind = 'crash-consistent', groupPointId = null } = options
  const shrinksJson = shrinksText(options.shrinks ?? [])
  const point = { isRebase, pointKind, groupPointId, shrinksJson, ...times }
  const cycle = { machineId, cycleNumber, kind, state: 'cut' as const, ...point }
  await store.addCycle(cycle, logs, { also: options.also, replaces: options.replaces ?? [] })
  return cycleNumber
}

function rowOf({ diskId, log, isCoalesced = false }: QueueEntry) {
  const { id: logId, previousId: previousLogId, path, indexPath, firstSequence, nextSequence } = log
  const { logSizeBytes, indexSizeBytes, entryCount, dataBytes, cutTimeMs } = log
  const place = { logId, diskId, previousLogId, path, indexPath, firstSequence, nextSequence }
  const sizes = { logSizeBytes, indexSizeBytes, entryCount, dataBytes }
  return { ...place, ...sizes, cutTimeMs, isCoalesced: isCoalesced ? 1 : 0 }
}

/** What a cut was, as its shipment tells it. */
export interface CutPoint {
  readonly cutTimeMs: number
  readonly pointKind: PointKind
  readonly groupPointId: string | null
}

/** Makes a cut over all disks of a machine. */
export type MakeCut = (context: MachineContext) => Promise<CutPoint>

/** A cut of this machine alone, of whatever its applications were doing. */
export async function crashConsistentCut(context: MachineContext): Promise<CutPoint> {
  // Before the cut: a time that is too early promises less than the replica has.
  const cutTimeMs = context.clock.nowMs()
  await context.work.cut(context.disks)
  return { cutTimeMs, pointKind: 'crash-consistent', groupPointId: null }
}

/** Rotates the logs of all disks together and records what has to be shipped. @returns the number of the shipment */
export async function queueCut(
  context: MachineContext,
  options: QueueOptions = {},
  makeCut: MakeCut = crashConsistentCut,
): Promise<number> {
  await context.work.step('cycle.before-cut')
  const point = await makeCut(context)
  await context.work.step('cycle.after-cut')
  const { coalesce, keepEveryWrite } = context.policy
  const isFolded = coalesce.enabled && keepEveryWrite.hours === 0
  const coalescedIds = isFolded ? await coalesceFresh(context) : new Set<string>()
  await context.work.step('cycle.before-queueing')
  const entries = (await unqueuedLogs(context)).map((entry) => {
    return { ...entry, isCoalesced: coalescedIds.has(entry.log.id) }
  })
  const shrinks = await carriedShrinks(context)
  return queueShipment(context, 'delta', entries, { ...point, shrinks, ...options })
}

/** Of overlapping writes of one cycle only the last bytes travel, where that saves enough. @returns ids of such logs */
async function coalesceFresh(context: MachineContext): Promise<Set<string>> {
  const fresh = await unqueuedLogs(context)
  const coalesced = new Set<string>()
  for (const disk of context.disks) {
    const ids = fresh.filter((entry) => entry.diskId === disk.diskId).map((entry) => entry.log.id)
    // The log that is made takes the place, and the id, of the last one.
    if (ids.length > 0 && (await disk.coalesceLogs(ids))) coalesced.add(ids.at(-1) ?? '')
  }
  return coalesced
}

/** Sealed logs that stand in no shipment yet. */
async function unqueuedLogs(context: MachineContext): Promise<QueueEntry[]> {
  const queued = new Set((await context.store.queuedLogs(context.machineId)).map((log) => log.logId))
  return context.disks.flatMap((disk) => {
    const fresh = disk.unreleasedLogs().filter((log) => !queued.has(log.id))
    return fresh.map((log) => ({ diskId: disk.diskId, log }))
  })
}

/** Shipments whose sending has not begun; only they may be changed. */
export async function untouchedCycles(context: MachineContext): Promise<Cycle[]> {
  const open = await context.store.openCycles(context.machineId)
  return open.filter((cycle) => cycle.kind === 'delta' && cycle.state === 'cut')
}

/** Records one shipment in place of `cycles`, with the logs that are there now. */
export async function requeue(context: MachineContext, cycles: readonly Cycle[]): Promise<void> {
  const numbers = cycles.map((cycle) => cycle.cycleNumber)
  const rows = await context.store.queuedLogs(context.machineId)
  const replaced = new Map(rows.map((row) => [row.logId, row]))
  const queued = new Set(rows.filter((row) => !numbers.includes(row.cycleNumber)).map((row) => row.logId))
  const entries = context.disks.flatMap((disk) => {
    const logs = disk.unreleasedLogs().filter((log) => !queued.has(log.id))
    return logs.map((log) => ({
      diskId: disk.diskId,
      log,
      isCoalesced: isOtherNow(log, replaced.get(log.id)),
    }))
  })
  const isRebase = cycles.some((cycle) => cycle.isRebase === 1)
  // The images show the newest of the cuts, so theirs is the point.
  const newest = cycles.reduce((one, other) => (other.cycleNumber > one.cycleNumber ? other : one))
  const { cutTimeMs, pointKind, groupPointId } = newest
  const point = { cutTimeMs, pointKind, groupPointId }
  const shrinks = cycles.flatMap(({ shrinksJson }) => parseShrinks(shrinksJson))
  await queueShipment(context, 'delta', entries, { isRebase, replaces: numbers, shrinks, ...point })
}

/** A log that begins with another entry than the one that was queued was made of several; also where a death came in between. */
function isOtherNow(log: NativeSealedLog, row: QueuedLog | undefined): boolean {
  if (row === undefined) return false
  return row.isCoalesced === 1 || row.firstSequence !== log.firstSequence
}

/** Forgets what is queued but batches of a first copy: the logs are folded into the changed map. */
export async function dropQueuedLogs(context: MachineContext): Promise<void> {
  const dropped = ['delta', 'resync'] as const
  await context.store.atomically((transaction) => dropQueue(transaction, context.machineId, dropped))
}

/**
 * Brings queue and disks together after a crash: a shipment whose logs were coalesced is recorded anew, one whose logs
 * were folded into the changed map is forgotten; files of batches that were never recorded are removed.
 */
export async function reconcile(context: MachineContext): Promise<void> {
  await releaseApplied(context)
  const present = new Map(
    context.disks.flatMap((disk) => disk.unreleasedLogs()).map((log) => [log.id, log.logSizeBytes]),
  )
  const stale: Cycle[] = []
  for (const cycle of await context.store.openCycles(context.machineId)) {
    const logs = await context.store.logsOfCycle(context.machineId, cycle.cycleNumber)
    const isThere = (log: QueuedLog): boolean => present.get(log.logId) === log.logSizeBytes
    if (cycle.kind === 'delta' && !logs.every(isThere)) stale.push(cycle)
  }
  if (stale.length === 0) return
  if (context.disks.some((disk) => disk.status().resyncReason !== null)) return dropQueuedLogs(context)
  await requeue(context, stale)
}

/**
 * Ships everything in the queue and waits until the images hold it; batches of a resynchronization are only waited for
 * until they are received, as they are held for the closing cut.
 */
export async function shipQueue(
  context: MachineContext,
  conversation: Conversation,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<ShipTotals> {
  const nothing = { cutTimeMs: 0, shipmentCount: 0, rawBytes: 0, sentBytes: 0 }
  const totals: ShipTotals = { ...nothing, pointKind: 'crash-consistent' }
  await conversation.tellSizes()
  for (const cycle of await context.store.openCycles(context.machineId)) {
    throwIfAborted(signal)
    await shipOne(context, conversation, cycle, meter, totals, signal)
    if (cycle.kind === 'resync') continue
    totals.cutTimeMs = cycle.cutTimeMs
    totals.pointKind = cycle.pointKind
  }
  return totals
}

async function shipOne(
  context: MachineContext,
  conversation: Conversation,
  cycle: Cycle,
  meter: ProgressMeter,
  totals: ShipTotals,
  signal?: AbortSignal,
): Promise<void> {
  const { link, welcome } = conversation
  const { cycleNumber: number } = cycle
  const isHeld = cycle.kind === 'resync'
  if (number <= welcome.appliedShipment) return settleApplied(context, number)
  if (isHeld && cycle.state === 'received') return
  if (isHeld && number <= welcome.receivedShipment) {
    await context.store.markReceived(context.machineId, number, 0)
    return dropBatchFiles(context, number)
  }
  const applied = link.reply('applied', number, signal)
  applied.catch(() => {}) // Waited for below; what fails first is the one to tell.
  await context.work.step('ship.before-sending')
  const sentBytes = await sendOne(context, { link, welcome }, cycle, meter, totals, signal)
  await context.work.step('ship.before-received')
  await context.store.markReceived(context.machineId, number, sentBytes)
  if (isHeld) return dropBatchFiles(context, number)
  conversation.noted((await applied).header.notices)
  await settleApplied(context, number)
}

async function sendOne(
  context: MachineContext,
  { link, welcome }: Pick<Conversation, 'link' | 'welcome'>,
  cycle: Cycle,
  meter: ProgressMeter,
  totals: ShipTotals,
  signal?: AbortSignal,
): Promise<number> {
  await context.store.markShipping(context.machineId, cycle.cycleNumber)
  const shipment = await shipmentOf(context, cycle)
  const received = new Map(welcome.spool.map((log) => [log.logId, log.durableBytes]))
  const onFrame = (_rawBytes: number, sentBytes: number): void => meter.transferred(sentBytes)
  const { encode } = context.work
  const options = { encode, frameBytes: context.frameBytes, received, onFrame, ...(signal ? { signal } : {}) }
  const report = await ship(link, shipment, options)
  totals.shipmentCount += 1
  totals.rawBytes += report.rawBytes
  totals.sentBytes += report.sentBytes
  return report.sentBytes
}

async function shipmentOf(context: MachineContext, cycle: Cycle): Promise<Shipment> {
  const rows = await context.store.logsOfCycle(context.machineId, cycle.cycleNumber)
  const { cycleNumber: number, kind, cutTimeMs, isRebase, pointKind, groupPointId } = cycle
  const logs = rows.map((row) => {
    return { diskId: row.diskId, log: sealedLogOf(row), isCoalesced: row.isCoalesced === 1 }
  })
  const shrinks = parseShrinks(cycle.shrinksJson)
  return { number, kind, cutTimeMs, isRebase: isRebase === 1, pointKind, groupPointId, shrinks, logs }
}

function sealedLogOf(row: QueuedLog): NativeSealedLog {
  const { logId: id, previousLogId: previousId, path, indexPath, firstSequence, nextSequence } = row
  const { logSizeBytes, indexSizeBytes, entryCount, dataBytes, cutTimeMs } = row
  const sizes = { logSizeBytes, indexSizeBytes, entryCount, dataBytes }
  return { id, previousId, path, indexPath, firstSequence, nextSequence, ...sizes, cutTimeMs }
}

/** The images hold this shipment and all before it: logs are released, rows forgotten. */
async function settleApplied(context: MachineContext, number: number): Promise<void> {
  await context.work.step('ship.before-applied')
  for (const { cycleNumber, shrinksJson } of await context.store.openCycles(context.machineId)) {
    if (cycleNumber > number) continue
    await context.store.markApplied(context.machineId, cycleNumber)
    // Not in one transaction: a shrink that is carried a second time is known by its id.
    await settleShrinks(context, parseShrinks(shrinksJson))
  }
  await context.work.step('ship.before-release')
  await releaseApplied(context)
}

/** Deletes the logs that the images hold; also those that a crash left behind. */
export async function releaseApplied(context: MachineContext): Promise<void> {
  const rows = await context.store.appliedLogs(context.machineId)
  for (const [diskId, ids] of deltaIdsByDisk(rows)) await diskOf(context, diskId).releaseLogs(ids)
  for (const row of rows) if (row.kind !== 'delta') removeFiles(row)
  await context.store.forgetLogs(rows.map((row) => row.logId))
}

function deltaIdsByDisk(rows: readonly QueuedLog[]): Map<string, string[]> {
  const byDisk = new Map<string, string[]>()
  for (const row of rows) {
    if (row.kind === 'delta') byDisk.set(row.diskId, [...(byDisk.get(row.diskId) ?? []), row.logId])
  }
  return byDisk
}

/** A batch that the replica holds is not needed here any more. */
async function dropBatchFiles(context: MachineContext, number: number): Promise<void> {
  for (const row of await context.store.logsOfCycle(context.machineId, number)) removeFiles(row)
}

/** Removes the files of a log that is no tracked disk's: of a batch. */
export function removeFiles(row: QueuedLog): void {
  for (const path of [row.path, row.indexPath]) {
    try {
      unlinkSync(path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
}
