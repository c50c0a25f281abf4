/**
 * Resynchronization: compare the candidate ranges of both sides by digests of fixed chunks, send what differs, close
 * with a cut, and prove at that cut that the candidates are equal.
 *
 * Tracking goes on throughout. The pass begins at an exact cut: what is not in a log since then is a candidate, and what is
 * read later than that is corrected by the log that the closing cut ships. Batches are held by the replica until then,
 * so its image stays at its newest consistent point. A disk whose first copy is not behind it is a candidate as a whole:
 * the pass is its copy. How far each disk is, is recorded with the batch that brings it
 * there; a pause, a cancel or a crash continues at that place with the same seed.
 */

import { join } from 'node:path'
import { SecondsiteError, throwIfAborted } from '../errors.js'
import { type ByteRange, mergeRanges, rangesFrom, totalBytes } from '../ranges.js'
import { windowsOf } from '../resync/compare.js'
import type { Resync } from '../store/state-schema.js'
import type { InTransaction } from '../store/state-store.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { message } from '../transport/messages.js'
import { buildWithinRoom } from './batches.js'
import { compareSides } from './comparison.js'
import type { MachineContext } from './machine-context.js'
import { noteCopies } from './membership.js'
import type { ProgressMeter } from './progress.js'
import type { Conversation } from './replica-link.js'
import { queueCut, queueShipment, removeFiles, shipQueue } from './shipping.js'

/** Result of a resynchronization. */
export interface ResyncReport {
  readonly reason: string
  /** Bytes of the candidates, compared on both sides. */
  readonly comparedBytes: number
  readonly equalBytes: number
  readonly differentBytes: number
  /** Bytes sent, as encoded. */
  readonly sentBytes: number
}

/**
 * Begins a pass, or takes up the one that was interrupted.
 * @param restart - begin at zero even when a pass could be continued
 */
export async function beginResync(
  context: MachineContext,
  conversation: Conversation,
  reason: string,
  restart: boolean,
): Promise<Resync> {
  const open = await context.resyncs.openResync(context.machineId)
  if (open && !restart && context.disks.every(isTrackedInLog)) {
    await context.resyncs.setResyncState(open.resyncId, 'running')
    return open
  }
  await context.work.step('resync.before-begin')
  const uncopied = [...context.copies.keys()]
  for (const disk of context.disks)
    if (uncopied.includes(disk.diskId)) await disk.requireResync('ASKED_FOR', true)
  for (const disk of context.disks) await disk.beginResync()
  await context.work.step('resync.before-discard')
  await discardHeld(conversation)
  const { chunkBytes, digest } = context.policy
  const pass = {
    resyncId: context.random.uuid(),
    machineId: context.machineId,
    reason,
    state: 'running' as const,
  }
  const seed = Buffer.from(context.random.bytes(8)).toString('hex')
  const row = { ...pass, seed, chunkBytes, digest, startedMs: context.clock.nowMs(), endedMs: null }
  const batches = (await context.store.queuedLogs(context.machineId)).filter(({ kind }) => kind !== 'delta')
  const begun = await context.resyncs.addResync(row, uncopied)
  for (const batch of batches) removeFiles(batch)
  await noteCopies(context)
  return begun
}

/** A log that failed since a pass began left writes that neither its candidates nor a log know: it cannot go on. */
function isTrackedInLog(disk: TrackedDisk): boolean {
  return disk.status().mode === 'logging'
}

/** The replica forgets what it holds of an earlier pass; this side's queue begins anew, too. */
async function discardHeld({ link, nextKey }: Conversation): Promise<void> {
  const key = nextKey()
  const status = link.reply('status', key)
  await link.send(message('discard', { key }))
  await status
}

/** Bytes of the candidates of all disks: what a pass reads on each side. */
export async function candidateBytes(context: MachineContext): Promise<number> {
  let bytes = 0
  for (const disk of context.disks) {
    for (const window of windowsOf(disk.sizeBytes, context.windowBytes))
      bytes += totalBytes(disk.candidates(window))
  }
  return bytes
}

/**
 * Compares, sends and closes.
 * @throws {ABORTED} when `signal` is aborted; the next call goes on there
 * @throws {DIGEST_MISMATCH} when the candidates are not equal at the closing cut
 */
export async function runResync(
  context: MachineContext,
  conversation: Conversation,
  pass: Resync,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<void> {
  await shipQueue(context, conversation, meter, signal)
  for (const disk of context.disks) await resyncDisk(context, conversation, pass, disk, meter, signal)
  await context.work.step('resync.before-closing')
  await queueCut(context, { isRebase: true })
  await shipQueue(context, conversation, meter, signal)
  await prove(context, conversation, pass, signal)
  await context.work.step('resync.before-finish')
  for (const disk of context.disks) await disk.finishResync()
}

async function resyncDisk(
  context: MachineContext,
  conversation: Conversation,
  pass: Resync,
  disk: TrackedDisk,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<void> {
  const nextOffset = await context.resyncs.resyncOffset(pass.resyncId, disk.diskId)
  if (nextOffset > 0) meter.resumed(totalBytes(disk.candidates({ offset: 0, lengthBytes: nextOffset })))
  for (const step of stepsOf(context, disk, nextOffset)) {
    throwIfAborted(signal)
    await resyncStep(context, conversation, pass, disk, step, meter, signal)
  }
}

/** What is compared at once, and recorded as done at once. */
interface PassStep {
  readonly window: ByteRange
  /** The candidates in it. */
  readonly ranges: readonly ByteRange[]
}

/** Ranges of one step, at most: as many as a window of 256 MiB has where every other chunk is a candidate. */
const STEP_RANGES_MAX = 2048

/** Windows with few candidates are taken together, so that a pass takes as long as what it compares, wherever that is. */
function* stepsOf(context: MachineContext, disk: TrackedDisk, nextOffset = 0): Generator<PassStep> {
  let offset = nextOffset
  let ranges: ByteRange[] = []
  for (const window of windowsOf(disk.sizeBytes, context.windowBytes, nextOffset)) {
    const more = disk.candidates(window)
    const isFull =
      ranges.length + more.length > STEP_RANGES_MAX ||
      totalBytes(ranges) + totalBytes(more) > context.windowBytes
    if (ranges.length > 0 && isFull) {
      yield { window: { offset, lengthBytes: window.offset - offset }, ranges: mergeRanges(ranges) }
      offset = window.offset
      ranges = []
    }
    ranges.push(...more)
  }
  const lengthBytes = disk.sizeBytes - offset
  if (lengthBytes > 0) yield { window: { offset, lengthBytes }, ranges: mergeRanges(ranges) }
}

async function resyncStep(
  context: MachineContext,
  conversation: Conversation,
  pass: Resync,
  disk: TrackedDisk,
  { window, ranges }: PassStep,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<void> {
  const comparedBytes = totalBytes(ranges)
  const differing =
    comparedBytes === 0 ? [] : await differingOf(context, conversation, pass, disk, ranges, signal)
  const differentBytes = totalBytes(differing)
  const also = progressOf(context, pass, disk, window, comparedBytes, differentBytes)
  if (differentBytes === 0) await context.store.atomically(also)
  for (let rest = differing; rest.length > 0; ) {
    rest = await queueDiffering(context, pass, disk, rest, also)
    await shipQueue(context, conversation, meter, signal)
  }
  meter.compared(comparedBytes)
  meter.done(comparedBytes, disk.name)
}

/** All chunks that differ, whether the guest writes to them or not: what is in flight is in the log as well. */
async function differingOf(
  context: MachineContext,
  conversation: Conversation,
  pass: Resync,
  disk: TrackedDisk,
  ranges: readonly ByteRange[],
  signal?: AbortSignal,
): Promise<ByteRange[]> {
  const { different, unsettled } = await compareSides(context, conversation, pass, disk, ranges, signal)
  return mergeRanges([...different, ...unsettled].sort((a, b) => a.offset - b.offset))
}

/** Records how far a pass is; part of the transaction that queues what it found. */
function progressOf(
  context: MachineContext,
  pass: Resync,
  disk: TrackedDisk,
  window: ByteRange,
  comparedBytes: number,
  differentBytes: number,
): InTransaction {
  const nextOffset = window.offset + window.lengthBytes
  const counted = { comparedBytes, equalBytes: comparedBytes - differentBytes }
  return (transaction) =>
    context.resyncs.advanceResync(transaction, pass.resyncId, disk.diskId, nextOffset, counted)
}

/**
 * Builds and records the next batch of what differs in a window; the last one records that the window is done, too.
 * @returns what is left
 */
async function queueDiffering(
  context: MachineContext,
  pass: Resync,
  disk: TrackedDisk,
  ranges: ByteRange[],
  also: InTransaction,
): Promise<ByteRange[]> {
  await context.work.step('resync.before-batch')
  const name = `${disk.name}.resync-${pass.resyncId.slice(0, 8)}-${ranges[0]?.offset ?? 0}.hrl`
  const path = join(disk.trackingDirectory, name)
  const request = { disk, ranges, path, dataBytesMax: context.batchBytes }
  const { log, nextOffset } = await buildWithinRoom(context, request)
  const rest = rangesFrom(ranges, nextOffset)
  await context.work.step('resync.before-queueing')
  await queueShipment(context, 'resync', [{ diskId: disk.diskId, log }], rest.length === 0 ? { also } : {})
  return rest
}

/** The end of a resynchronization is a proof: the candidates are equal but for what was written since the closing cut. */
async function prove(
  context: MachineContext,
  conversation: Conversation,
  pass: Resync,
  signal?: AbortSignal,
): Promise<void> {
  const seed = Buffer.from(context.random.bytes(8)).toString('hex')
  for (const disk of context.disks) {
    for (const { ranges } of stepsOf(context, disk)) {
      if (ranges.length === 0) continue
      const { different } = await compareSides(context, conversation, { ...pass, seed }, disk, ranges, signal)
      if (different.length > 0) throw notEqual(context, disk, different)
    }
  }
}

function notEqual(context: MachineContext, disk: TrackedDisk, found: readonly ByteRange[]): SecondsiteError {
  const [first] = found
  const details = {
    machine: context.name,
    disk: disk.name,
    offset: first?.offset ?? 0,
    lengthBytes: totalBytes(found),
  }
  const message = `${disk.name} differs from its replica at offset ${details.offset} after a resynchronization`
  return new SecondsiteError('DIGEST_MISMATCH', { message, details })
}
