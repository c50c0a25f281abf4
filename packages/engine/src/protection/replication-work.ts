/**
 * What replicating a machine is made of: initial replication, cycles, resynchronization, verification.
 *
 * Each runs as the one job of the machine; what fails is counted, remembered, and may change the state before it is
 * thrown on. Recoverable failures are tried again by the scheduler.
 */

import { basename } from 'node:path'
import { asSecondsiteError, type SecondsiteError, throwIfAborted } from '../errors.js'
import type { QuiesceReport } from '../quiesce/quiesce.js'
import type { PointKind } from '../states.js'
import type { EventName } from './events.js'
import type { CutBarrier } from './group-barrier.js'
import { copyDisks, runInitialReplication } from './initial-replication.js'
import type { MachineContext } from './machine-context.js'
import type { MachineRecord } from './machine-record.js'
import { closeCopies, copiedDisks, noteCopies } from './membership.js'
import type { Monitor } from './monitor.js'
import { type Progress, type ProgressListener, ProgressMeter, type ProgressPhase } from './progress.js'
import { QuiescedCuts } from './quiesced-cuts.js'
import { type Conversation, type Notice, withReplica } from './replica-link.js'
import { beginResync, candidateBytes, type ResyncReport, runResync } from './resynchronization.js'
import { crashConsistentCut, type MakeCut, queueCut, shipQueue } from './shipping.js'
import { missedCycles } from './statistics.js'
import { enforceThreshold, foldAll } from './threshold.js'
import { SECOND_MS } from '../units.js'
import { dropQueue } from '../store/resync-store.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { runVerify, type VerifyReport } from './verification.js'

/** A cycle that begins this share of its interval late still counts as in time. */
const LATE_SHARE = 0.1

/** Options of a verb that works. */
export interface JobOptions {
  /** Called as work goes on; what it throws ends the job. */
  readonly onProgress?: ProgressListener
  /** Ends the job softly; the next call goes on where it stopped. */
  readonly signal?: AbortSignal
}

/** Options of a cycle. */
export interface CycleOptions extends JobOptions {
  /** Hold the applications at rest for the cut, by the hook of the policy; default when the policy says that it is due. */
  readonly applicationConsistent?: boolean
}

/** A cycle whose cut is made together with those of other machines. */
export interface BarrierOptions extends CycleOptions {
  readonly barrier?: CutBarrier
}

/** Result of a cycle. */
export interface CycleReport {
  /** What the newest cut was. */
  readonly pointKind: PointKind
  /** What came of the hook; null when none was asked to hold the applications at rest. */
  readonly quiesce: QuiesceReport | null
  /** Unix milliseconds of the cut that the replica now shows. */
  readonly cutTimeMs: number
  /** Shipments that travelled; more than one when earlier ones had waited. */
  readonly shipmentCount: number
  /** Bytes of the logs, decoded. */
  readonly rawBytes: number
  /** Bytes sent. */
  readonly sentBytes: number
  readonly durationMs: number
}

/** What happens when work has to go on later. */
export interface Later {
  /** The state has changed: sets the next due work. */
  arm(): void
  /** A recoverable failure: sets the next attempt. */
  retry(error: SecondsiteError): Promise<void>
}

export class ReplicationWork {
  readonly #context: MachineContext
  readonly #record: MachineRecord
  readonly #monitor: Monitor
  readonly #later: Later
  /** When the last cycle began that was in time; undefined where none was due before the next. */
  #cycleStartedMs: number | undefined
  readonly #quiesced: QuiescedCuts
  #lastCycle: CycleReport | null = null
  #progress: Progress | null = null

  constructor(context: MachineContext, record: MachineRecord, monitor: Monitor, later: Later) {
    this.#context = context
    this.#record = record
    this.#monitor = monitor
    this.#later = later
    this.#quiesced = new QuiescedCuts(context, monitor)
  }

  /** The newest cycle of this process; null before its first. */
  get lastCycle(): CycleReport | null {
    return this.#lastCycle
  }

  /** How far the job at work is; null when there is none. */
  get progress(): Progress | null {
    return this.#progress
  }

  async initial(job: JobOptions): Promise<void> {
    const context = this.#context
    const meter = this.#meter('initial-replication', totalSize(context.disks), job)
    await this.#run(job, (conversation, signal) =>
      runInitialReplication(context, conversation, meter, signal),
    )
    await closeCopies(context)
    await this.#record.transit('initialReplicationComplete', {}, { isInitialReplicationDone: 1 })
    await this.noticeOwedResync()
    this.#later.arm()
  }

  /** Whether the policy wants the next cut to be application-consistent. */
  get isQuiesceDue(): boolean {
    return this.#quiesced.isDue(this.#record.row)
  }

  /** @throws {QUIESCE_NOT_CONFIGURED} when the policy has no hook */
  requireQuiesce(): void {
    this.#quiesced.require()
  }

  /**
   * Copies disks that joined the machine, batch after batch, as long as nothing else is due; the next cycle closes it.
   * @param mayGoOn - asked after each batch
   */
  async copy(job: JobOptions, mayGoOn: () => boolean): Promise<void> {
    const context = this.#context
    const joining = context.disks.filter((disk) => context.copies.get(disk.diskId) === 'copying')
    const meter = this.#meter('initial-replication', totalSize(joining), job)
    const afterBatch = (): Promise<boolean> => Promise.resolve(mayGoOn())
    await this.#run(job, (conversation, signal) =>
      copyDisks(context, conversation, meter, { afterBatch, ...(signal ? { signal } : {}) }),
    )
    await noteCopies(context)
  }

  /** @param makeOwnCut - how the disks are cut where no group cuts them and nothing asks for frozen applications */
  async cycle(job: BarrierOptions, makeOwnCut: MakeCut = crashConsistentCut): Promise<CycleReport> {
    const { context, startedMs } = { context: this.#context, startedMs: this.#context.clock.nowMs() }
    const isQuiesced = job.applicationConsistent ?? this.isQuiesceDue
    if (isQuiesced) this.#quiesced.require()
    await job.barrier?.gather(job.signal)
    const makeCut = job.barrier?.cut ?? makeOwnCut
    await this.#cutWithinThreshold(isQuiesced ? this.#quiesced.maker(job.signal, makeCut) : makeCut)
    job.barrier?.recorded()
    const quiesce = isQuiesced ? await this.#quiesced.tell() : null
    this.#record.require(['Replicating'], 'replicate')
    const shownMs = (await this.#record.refresh()).lastAppliedCutMs
    const pendingBytes = context.disks.reduce((total, disk) => total + disk.status().unreleasedLogBytes, 0)
    const meter = this.#meter('delta', pendingBytes, job)
    const totals = await this.#run(job, (conversation, signal) =>
      shipQueue(context, conversation, meter, signal),
    )
    const durationMs = context.clock.nowMs() - startedMs
    await this.#tellCopied()
    await this.#countArrival(startedMs, shownMs, totals.sentBytes)
    meter.done(pendingBytes)
    const { cutTimeMs, pointKind, shipmentCount, rawBytes, sentBytes } = totals
    const point = { cutTimeMs, pointKind, quiesce }
    this.#lastCycle = { ...point, shipmentCount, rawBytes, sentBytes, durationMs }
    return this.#lastCycle
  }

  /**
   * Between jobs, when logs pass the threshold: what is open is cut, so that it can be coalesced, too. Where no cut may be
   * sent, in the middle of a copy or a pass, the changed map takes over at once.
   */
  async relieve(): Promise<void> {
    try {
      if (await this.#mayCut()) return await this.#cutWithinThreshold()
      await foldAll(this.#context)
      // A pass that waits for its retry begins anew by itself.
      if (this.#record.state !== 'Resynchronizing') await this.noticeOwedResync()
    } catch (error) {
      await this.failed(asSecondsiteError(error))
    }
  }

  async resync(restart: boolean, job: JobOptions): Promise<ResyncReport> {
    const context = this.#context
    const reason = this.#record.row.resyncReason ?? 'ASKED_FOR'
    const startedMs = context.clock.nowMs()
    await context.events.raise(context, 'resyncStarted', {
      reason,
      disks: context.disks.map(({ name }) => name),
    })
    const report = await this.#run(job, async (conversation, signal) => {
      const pass = await beginResync(context, conversation, reason, restart)
      const meter = this.#meter('resynchronize', await candidateBytes(context), job)
      await runResync(context, conversation, pass, meter, signal)
      const { comparedBytes, equalBytes } = await context.resyncs.resync(pass.resyncId)
      const differentBytes = comparedBytes - equalBytes
      return { reason, comparedBytes, equalBytes, differentBytes, sentBytes: meter.transferredBytes }
    })
    await this.#tellCopied()
    const settled = { resyncReason: null, resyncStartMs: null, isInitialReplicationDone: 1 }
    await this.#record.transit('resyncComplete', {}, settled)
    this.#cycleStartedMs = undefined
    const durationMs = context.clock.nowMs() - startedMs
    await context.events.raise(context, 'resyncFinished', { ...report, durationMs })
    // A log or a write of the guest may have failed while the pass ran.
    await this.noticeOwedResync()
    this.#later.arm()
    return report
  }

  /** A resynchronization that the window or a start time begins, or that was interrupted. */
  async dueResync(signal: AbortSignal): Promise<ResyncReport> {
    if (this.#record.state === 'WaitingForStartResynchronize') await this.#record.transit('windowOpens')
    return this.resync(false, { signal })
  }

  /** @param makeCut - makes the cut at which both sides are compared */
  async verify(job: JobOptions, makeCut: MakeCut = crashConsistentCut): Promise<VerifyReport> {
    const meter = this.#meter('verify', totalSize(copiedDisks(this.#context)), job)
    return this.#run(job, (conversation, signal) =>
      runVerify(this.#context, conversation, meter, signal, makeCut),
    )
  }

  /** Cycles that came due while replication was paused do not count as missed. */
  resumed(): void {
    this.#cycleStartedMs = undefined
  }

  /** What the disks say is owed becomes the state. */
  async noticeOwedResync(): Promise<void> {
    const reasons = this.#context.disks.map((disk) => disk.status().resyncReason)
    const owed = reasons.find((reason) => reason !== null)
    if (owed && this.#record.isInitialReplicationDone) await this.#markOwed(owed)
  }

  /** A resynchronization that nothing requires compares everything. @throws {INVALID_STATE} */
  async askForResync(): Promise<void> {
    this.#record.next('resynchronize')
    const isOwed = this.#record.row.resyncReason !== null
    const isOpen = (await this.#context.resyncs.openResync(this.#context.machineId)) !== undefined
    if (isOwed || isOpen) return
    for (const disk of this.#context.disks) await disk.requireResync('ASKED_FOR', true)
    await this.#record.set({ resyncReason: 'ASKED_FOR' })
  }

  /** Remembers and counts a failure, and does to the state what its class demands. */
  async failed(error: SecondsiteError): Promise<void> {
    if (error.code === 'ABORTED') return
    await this.#monitor.count({ kind: 'failure', isNetwork: error.code.startsWith('TRANSPORT') })
    await this.#record.set({ errorJson: JSON.stringify({ code: error.code, message: error.message }) })
    const cause = resyncCause(error)
    if (cause) await this.#requireResync(cause, error)
    if (error.code === 'STATE_BEHIND') await this.#numberBehind(Number(error.details['receivedShipment']))
    if (cause) return
    if (error.retryable === 'recoverable') return this.#tryAgain(error)
    if (error.code === 'REPLICA_FAILED_OVER' && this.#record.takes('replicaFailedOver'))
      return this.#record.transit('replicaFailedOver', { reason: error.code })
    if (this.#record.takes('nonRecoverableError')) {
      await this.#record.transit('nonRecoverableError', { reason: error.code })
    }
  }

  /** Whether a cut may be queued: a delta in the middle of a copy or a pass would bring the replica to no point in time. */
  async #mayCut(): Promise<boolean> {
    const { machineId, resyncs } = this.#context
    const isBetweenCycles = ['Replicating', 'Suspended', 'Error'].includes(this.#record.state)
    if (!isBetweenCycles || !this.#record.isInitialReplicationDone) return false
    return (await resyncs.openResync(machineId)) === undefined
  }

  async #cutWithinThreshold(makeCut: MakeCut = crashConsistentCut): Promise<void> {
    await queueCut(this.#context, {}, makeCut)
    if (await enforceThreshold(this.#context)) {
      await this.#monitor.count({ kind: 'coalesced' })
      await this.#context.events.raise(this.#context, 'logsCoalesced')
    }
    await this.noticeOwedResync()
  }

  /** Counts a cycle, those that came due meanwhile, and what a failover just before would have lost. */
  async #countArrival(startedMs: number, shownMs: number | null, sentBytes: number): Promise<void> {
    const { clock, policy } = this.#context
    const nowMs = clock.nowMs()
    const intervalMs = policy.replicationFrequencySeconds * SECOND_MS
    const sinceMs = startedMs - (this.#cycleStartedMs ?? startedMs)
    this.#cycleStartedMs = startedMs
    const misses = missedCycles(sinceMs - intervalMs * LATE_SHARE, intervalMs)
    await this.#monitor.arrived(
      Math.max(0, nowMs - (shownMs ?? startedMs)),
      { kind: 'success', sentBytes, latencyMs: nowMs - startedMs },
      ...Array.from({ length: misses }, () => ({ kind: 'miss' }) as const),
    )
  }

  async #tryAgain(error: SecondsiteError): Promise<void> {
    await this.#later.retry(error)
    const { retryAttempt: attempt, retryAtMs } = this.#record.row
    const { code, message } = error
    await this.#context.events.raise(this.#context, 'failed', { code, message, attempt, retryAtMs })
  }

  /** Success ends a series of attempts. */
  async #works(): Promise<void> {
    if (this.#record.row.errorJson === null) return
    await this.#record.set({ errorJson: null, retryAttempt: 0, retryAtMs: null })
    await this.#context.events.raise(this.#context, 'recovered')
  }

  /** What the replica found becomes events, and a warning of the health until the monitoring interval ends. */
  async #tellNotices(notices: readonly Notice[]): Promise<void> {
    for (const { code, timeMs, details } of notices) {
      const known = EVENT_OF_NOTICE.get(code)
      if (known === undefined) continue // A later replica knows more than this primary.
      await this.#monitor.count({ kind: known.counted })
      await this.#context.events.raise(this.#context, known.event, { ...details, noticedMs: timeMs })
    }
  }

  /** Works over a link; what fails is remembered before it is thrown on. */
  async #run<Result>(
    job: JobOptions,
    action: (conversation: Conversation, signal?: AbortSignal) => Promise<Result>,
  ): Promise<Result> {
    try {
      throwIfAborted(job.signal)
      const result = await withReplica(this.#context, job.signal, async (conversation) => {
        try {
          return await action(conversation, job.signal)
        } finally {
          await this.#tellNotices(conversation.notices)
        }
      })
      await this.#works()
      return result
    } catch (error) {
      await this.failed(asSecondsiteError(error))
      throw error
    } finally {
      this.#progress = null
    }
  }

  async #requireResync(
    reason: 'CHAIN_BROKEN' | 'LOG_DAMAGED' | 'REPLICA_CHANGED',
    error: SecondsiteError,
  ): Promise<void> {
    const { machineId, store, resyncs, disks } = this.#context
    if (reason === 'REPLICA_CHANGED') await store.forgetApplied(machineId)
    const damaged = reason === 'LOG_DAMAGED' ? await diskOfLog(this.#context, error) : undefined
    // What a log covers that was not released, its disk knows; and a pass keeps its candidates to its end.
    if (damaged) await damaged.requireResync(reason, false)
    else for (const disk of disks) await disk.requireResync(reason, true)
    // A pass cannot go on with a batch that cannot be sent, or that the replica has thrown away.
    await resyncs.forgetOpen(machineId)
    await this.#markOwed(reason)
  }

  /** Only once the resynchronization is owed: with other numbers nothing tells any more that it is. */
  async #numberBehind(receivedShipment: number): Promise<void> {
    const { store, machineId } = this.#context
    await store.atomically((transaction) => dropQueue(transaction, machineId))
    const { nextCycleNumber } = await this.#record.refresh()
    await this.#record.set({ nextCycleNumber: Math.max(nextCycleNumber, receivedShipment + 1) })
  }

  async #markOwed(reason: string): Promise<void> {
    if (!this.#record.takes('resyncRequired')) return
    await this.#record.transit('resyncRequired', { reason }, { resyncReason: reason })
    this.#later.arm()
  }

  #meter(phase: ProgressPhase, totalBytes: number, job: JobOptions): ProgressMeter {
    const { name, clock } = this.#context
    return new ProgressMeter(phase, name, totalBytes, clock, (progress) => {
      this.#progress = progress
      job.onProgress?.(progress)
    })
  }

  /** The cuts of the machine hold for disks that joined it, now that one behind their copies is applied. */
  async #tellCopied(): Promise<void> {
    for (const disk of await closeCopies(this.#context))
      await this.#context.events.raise(this.#context, 'diskCopied', { disk })
  }
}

/** What becomes of a notice of the replica, by its code. */
const EVENT_OF_NOTICE: ReadonlyMap<
  string,
  { readonly event: EventName; readonly counted: 'suspicion' | 'expiry-failure' }
> = new Map([
  ['ENCRYPTION_SUSPECTED', { event: 'encryptionSuspected', counted: 'suspicion' }],
  ['EXPIRY_FAILED', { event: 'expiryFailed', counted: 'expiry-failure' }],
])

function totalSize(disks: readonly TrackedDisk[]): number {
  return disks.reduce((total, disk) => total + disk.sizeBytes, 0)
}

/** What says that a log is not what it was when it was sealed, or is gone; sending it again cannot help. */
const DAMAGE: readonly string[] = [
  'LOG_CORRUPT',
  'LOG_ENTRY_OUT_OF_RANGE',
  'LOG_HEADER_CORRUPT',
  'LOG_INDEX_MISMATCH',
  'LOG_INDEX_MISSING',
  'LOG_NOT_HRL',
  'LOG_NOT_SEALED',
  'LOG_TORN_TAIL',
  'LOG_VERSION_UNSUPPORTED',
]

/** The disk whose log an error is about: one that waits here, or the copy of one that is queued. */
async function diskOfLog(
  context: MachineContext,
  { details }: SecondsiteError,
): Promise<TrackedDisk | undefined> {
  const { path } = details
  if (typeof path !== 'string') return undefined
  const name = basename(path)
  const isNamed = (log: { readonly path: string; readonly indexPath: string }, id: string): boolean =>
    path === log.path || path === log.indexPath || name.includes(id)
  const queued = await context.store.queuedLogs(context.machineId)
  const row = queued.find((log) => isNamed(log, log.logId))
  return context.disks.find(
    (disk) => disk.diskId === row?.diskId || disk.unreleasedLogs().some((log) => isNamed(log, log.id)),
  )
}

/** Failures that only a resynchronization mends: the replica misses a log, or has lost what it had, or a log is damaged. */
function resyncCause({
  code,
}: SecondsiteError): 'CHAIN_BROKEN' | 'LOG_DAMAGED' | 'REPLICA_CHANGED' | undefined {
  if (code === 'LOG_CHAIN_GAP' || code === 'LOG_CHAIN_FORK') return 'CHAIN_BROKEN'
  if (DAMAGE.includes(code)) return 'LOG_DAMAGED'
  return code === 'REPLICA_BEHIND' || code === 'STATE_BEHIND' ? 'REPLICA_CHANGED' : undefined
}
