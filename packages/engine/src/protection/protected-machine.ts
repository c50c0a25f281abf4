/**
 * A protected machine, as an embedder holds it: its disks, its state, and the verbs of replication.
 *
 * One job at a time: a verb that works waits for the one before it, `suspend` and the cancels end it softly first. A
 * verb that the present state does not take is refused with INVALID_STATE and changes nothing. While the state is
 * Replicating a scheduler runs a cycle every interval; recoverable errors are retried by the table of the model, others
 * lead to state Error.
 */

import { asSecondsiteError, isSecondsiteError, SecondsiteError, throwIfAborted } from '../errors.js'
import type { ReplicationHealth, ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { removeTrackingFiles } from '../track/tracking-files.js'
import { assessHealth, type HealthReport } from './health.js'
import { runInitialReplication } from './initial-replication.js'
import { Jobs } from './jobs.js'
import type { MachineContext } from './machine-context.js'
import { type Facts, requireTransition, transition, type Trigger } from './machine.js'
import { ProgressMeter, type ProgressListener } from './progress.js'
import { Scheduler } from './scheduler.js'
import { withReplica } from './replica-link.js'
import { beginResync, candidateBytes, type ResyncReport, runResync } from './resynchronization.js'
import { reconcile, queueCut, shipQueue } from './shipping.js'
import { type Counters, count, ZERO_COUNTERS } from './statistics.js'
import { enforceThreshold, isOverThreshold } from './threshold.js'
import { runVerify, type VerifyReport } from './verification.js'
import { checkStartTime } from './window.js'

/** Options of a verb that works. */
export interface JobOptions {
  /** Called as work goes on; what it throws ends the job. */
  readonly onProgress?: ProgressListener
  /** Ends the job softly; the next call goes on where it stopped. */
  readonly signal?: AbortSignal
}

/** Options of {@link ProtectedMachine.resynchronize}. */
export interface ResynchronizeOptions extends JobOptions {
  /** Begin at zero even where an interrupted pass could be continued; default false. */
  readonly restart?: boolean
  /** Unix milliseconds at which to begin, at most 7 days ahead; default now. */
  readonly startTimeMs?: number
}

/** Result of a cycle. */
export interface CycleReport {
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

/** What {@link ProtectedMachine.measure} says. */
export interface Measurement {
  readonly machine: string
  readonly state: ReplicationState
  readonly health: ReplicationHealth
  readonly healthDetails: HealthReport['details']
  readonly counters: Counters
  /** Unix milliseconds; null before the first. */
  readonly lastReceivedMs: number | null
  readonly lastAppliedMs: number | null
  /** What a failover now would lose, in milliseconds: since the newest applied cut. Null before the first. */
  readonly lossMs: number | null
  /** The same in bytes of log that the replica does not hold. */
  readonly pendingBytes: number
  /** Why a resynchronization is owed, if one is. */
  readonly resyncReason: string | null
  readonly lastError: { readonly code: string; readonly message: string } | null
  readonly disks: readonly DiskMeasurement[]
}

export interface DiskMeasurement {
  readonly name: string
  readonly sizeBytes: number
  readonly writtenBytes: number
  readonly logBytes: number
  /** Unreleased logs in percent of the disk's size; the threshold stands beside it. */
  readonly logPercent: number
  readonly thresholdPercent: number
  readonly mode: 'logging' | 'map'
  readonly changedBytes: number
  /** Longest time a cut held writes, in nanoseconds. */
  readonly holdNsMax: number
}

const OPERATOR = 'engine'

export class ProtectedMachine {
  readonly #context: MachineContext
  readonly #jobs = new Jobs()
  readonly #scheduler: Scheduler
  #row: Machine
  #counters: Counters = ZERO_COUNTERS
  #isRemoved = false

  private constructor(context: MachineContext, row: Machine) {
    this.#context = context
    this.#row = row
    this.#scheduler = new Scheduler(context, this.#jobs, {
      state: () => this.state,
      row: () => this.#row,
      cycle: (signal) => this.#scheduledCycle(signal),
      initial: (signal) => this.#initial({ signal }),
      resync: (signal) => this.#dueResync(signal),
      isOverThreshold: () => isOverThreshold(context),
      relieve: () => this.#relieve(),
    })
  }

  /** Takes up a machine from its rows: what a crash left between disks and queue is settled first. */
  static async take(context: MachineContext): Promise<ProtectedMachine> {
    await reconcile(context)
    const machine = new ProtectedMachine(context, await context.store.machine(context.machineId))
    await machine.#noticeOwedResync()
    machine.#scheduler.arm()
    return machine
  }

  get name(): string {
    return this.#context.name
  }

  get id(): string {
    return this.#context.machineId
  }

  /** Its disks, in the order they were given to `enable`. */
  get disks(): readonly TrackedDisk[] {
    return this.#context.disks
  }

  get state(): ReplicationState {
    return this.#row.state
  }

  /**
   * Copies all disks to the replica while they are written to; afterwards the state is Replicating.
   *
   * Goes on where an earlier call stopped.
   * @throws {INVALID_STATE} unless the state is ReadyForInitialReplication
   * @throws {ABORTED} when the signal or a verb stopped it; TRANSPORT_LOST and other codes of the way to the replica
   */
  startInitialReplication(options: JobOptions = {}): Promise<void> {
    return this.#verb('startInitialReplication', options, (job) => this.#initial(job))
  }

  /** Stops initial replication; what was copied is kept for the next start. @throws {INVALID_STATE} */
  async cancelInitialReplication(): Promise<void> {
    await this.#stopThenTransit('cancelInitialReplication')
  }

  /**
   * Runs one cycle now: cut, ship, apply. The replica then equals the disks at the cut.
   * @throws {INVALID_STATE} unless the state is Replicating
   */
  async replicate(options: JobOptions = {}): Promise<CycleReport> {
    return this.#jobs.run(options.signal, (signal) => {
      this.#require(['Replicating'], 'replicate')
      return this.#cycle({ ...options, signal })
    })
  }

  /** Pauses replication; tracking goes on. A job at work is ended softly first. @throws {INVALID_STATE} */
  async suspend(): Promise<void> {
    await this.#stopThenTransit('suspend')
  }

  /**
   * Goes on after `suspend`, an error or a due resynchronization: with cycles, initial replication or the resynchronization.
   * What was interrupted continues in the background; its failures are retried and shown by {@link measure}.
   * @throws {INVALID_STATE}
   */
  async resume(): Promise<void> {
    await this.#transit('resume', {}, { errorJson: null, retryAttempt: 0, retryAtMs: null })
    this.#scheduler.arm()
  }

  /**
   * Compares the candidates of both sides by digests and sends what differs; afterwards the state is Replicating.
   *
   * Where nothing is known about what differs, the whole disk is compared. With `startTimeMs` it only marks the machine.
   * @throws {INVALID_STATE, WINDOW_TOO_FAR, DIGEST_MISMATCH, ABORTED}
   */
  async resynchronize(options: ResynchronizeOptions = {}): Promise<ResyncReport | undefined> {
    const { startTimeMs, restart = false } = options
    if (startTimeMs !== undefined) return this.#scheduleResync(startTimeMs)
    await this.#jobs.stop()
    await this.#askForResync()
    return this.#verb('resynchronize', options, (job) => this.#resync(restart, job))
  }

  /** Stops a resynchronization; what it has compared and sent is kept. @throws {INVALID_STATE} */
  async cancelResynchronize(): Promise<void> {
    await this.#stopThenTransit('cancelResynchronize')
    const open = await this.#context.resyncs.openResync(this.id)
    if (open) await this.#context.resyncs.setResyncState(open.resyncId, 'cancelled')
  }

  /**
   * Compares all disks with their replicas at a cut, while the guest writes; nothing is sent but the cut itself.
   * @param options.repair - sends what differs, as a resynchronization of those ranges
   * @throws {INVALID_STATE} unless the state is Replicating
   */
  async verify(options: JobOptions & { readonly repair?: boolean } = {}): Promise<VerifyReport> {
    const report = await this.#jobs.run(options.signal, (signal) => {
      this.#require(['Replicating'], 'verify')
      return this.#verify({ ...options, signal })
    })
    if (!options.repair || report.equal) return report
    await this.resynchronize(options)
    return this.verify({ ...options, repair: false })
  }

  /** State, health, counters, and what a failover now would lose. */
  async measure(): Promise<Measurement> {
    const row = await this.#refresh()
    const { context, nowMs } = { context: this.#context, nowMs: this.#context.clock.nowMs() }
    const disks = context.disks.map((disk) => measureDisk(context, disk))
    const error = row.errorJson === null ? null : JSON.parse(row.errorJson)
    const health = assessHealth({
      side: 'primary',
      state: row.state,
      nowMs,
      lastReceivedMs: row.lastReceivedMs,
      counters: this.#counters,
      replicationFrequencySeconds: context.policy.replicationFrequencySeconds,
      rpoThresholdMinutes: context.policy.rpoThresholdMinutes,
      resyncReason: row.resyncReason,
      errorCode: error?.code ?? null,
    })
    return {
      machine: this.name,
      state: row.state,
      health: health.health,
      healthDetails: health.details,
      counters: this.#counters,
      lastReceivedMs: row.lastReceivedMs,
      lastAppliedMs: row.lastAppliedMs,
      lossMs: row.lastAppliedMs === null ? null : nowMs - row.lastAppliedMs,
      pendingBytes: disks.reduce((total, disk) => total + disk.logBytes, 0),
      resyncReason: row.resyncReason,
      lastError: error,
      disks,
    }
  }

  /** Sets the counters of {@link measure} to zero. */
  resetStatistics(): void {
    this.#counters = ZERO_COUNTERS
  }

  /** Ends the protection on this side: tracking stops, rows, logs and tracking files go; the replica and its files stay. */
  async disable(): Promise<void> {
    await this.#stopThenTransit('disable', async (next) => {
      const { machineId, store } = this.#context
      const change = {
        machineId,
        trigger: 'disable',
        from: this.state,
        to: next,
        operator: OPERATOR,
        reason: 'asked for',
      }
      await store.removeMachine(change)
      this.#row = { ...this.#row, state: next }
      this.#isRemoved = true
    })
    await this.close()
    for (const disk of this.#context.disks) removeTrackingFiles(disk.trackingDirectory, disk.name)
  }

  /** Stops the jobs and closes the disks in order. The engine calls it; after `disable` it has nothing left to do. */
  async close(): Promise<void> {
    this.#scheduler.disarm()
    await this.#jobs.close()
    for (const disk of this.#context.disks) await disk.close()
  }

  /** Drops everything as the death of the process would; for tests. */
  async abandon(): Promise<void> {
    this.#scheduler.disarm()
    await this.#jobs.close()
    for (const disk of this.#context.disks) disk.abandon()
  }

  /** Whether `disable` has been called. */
  get isDisabled(): boolean {
    return this.#isRemoved
  }

  /** Moves the state by a verb, then does its work as the one job. */
  async #verb<Result>(
    trigger: Trigger,
    options: JobOptions,
    work: (job: JobOptions) => Promise<Result>,
  ): Promise<Result> {
    return this.#jobs.run(options.signal, async (signal) => {
      await this.#transit(trigger)
      return work({ ...options, signal })
    })
  }

  async #initial(job: JobOptions): Promise<void> {
    const context = this.#context
    const meter = new ProgressMeter(
      'initial-replication',
      this.name,
      totalSize(context),
      context.clock,
      job.onProgress,
    )
    await this.#work(job, (conversation, signal) =>
      runInitialReplication(context, conversation, meter, signal),
    )
    await this.#transit('initialReplicationComplete', {}, { isInitialReplicationDone: 1 })
    await this.#noticeOwedResync()
    this.#scheduler.arm()
  }

  async #cycle(job: JobOptions): Promise<CycleReport> {
    const { context, startedMs } = { context: this.#context, startedMs: this.#context.clock.nowMs() }
    await queueCut(context)
    if (await enforceThreshold(context)) this.#count({ kind: 'coalesced' })
    await this.#noticeOwedResync()
    this.#require(['Replicating'], 'replicate')
    const pendingBytes = context.disks.reduce((total, disk) => total + disk.status().unreleasedLogBytes, 0)
    const meter = new ProgressMeter('delta', this.name, pendingBytes, context.clock, job.onProgress)
    const totals = await this.#work(job, (conversation, signal) =>
      shipQueue(context, conversation, meter, signal),
    )
    const durationMs = context.clock.nowMs() - startedMs
    this.#count({ kind: 'success', sentBytes: totals.sentBytes, latencyMs: durationMs })
    meter.done(pendingBytes)
    return {
      cutTimeMs: totals.cutTimeMs,
      shipmentCount: totals.shipmentCount,
      rawBytes: totals.rawBytes,
      sentBytes: totals.sentBytes,
      durationMs,
    }
  }

  /** Between cycles, when logs pass the threshold: what is open is cut, so that it can be coalesced, too. */
  async #relieve(): Promise<void> {
    try {
      await queueCut(this.#context)
      if (await enforceThreshold(this.#context)) this.#count({ kind: 'coalesced' })
      await this.#noticeOwedResync()
    } catch (error) {
      await this.#failed(asSecondsiteError(error))
    }
  }

  /** A cycle that nobody waits for: the threshold is looked at even when nothing can be sent. */
  async #scheduledCycle(signal: AbortSignal): Promise<number> {
    return (await this.#cycle({ signal })).durationMs
  }

  async #resync(restart: boolean, job: JobOptions): Promise<ResyncReport> {
    const context = this.#context
    const reason = this.#row.resyncReason ?? 'ASKED_FOR'
    const report = await this.#work(job, async (conversation, signal) => {
      const pass = await beginResync(context, conversation, reason, restart)
      const meter = new ProgressMeter(
        'resynchronize',
        this.name,
        await candidateBytes(context),
        context.clock,
        job.onProgress,
      )
      await runResync(context, conversation, pass, meter, signal)
      const { comparedBytes, equalBytes } = await context.resyncs.resync(pass.resyncId)
      return {
        reason,
        comparedBytes,
        equalBytes,
        differentBytes: comparedBytes - equalBytes,
        sentBytes: meter.transferredBytes,
      }
    })
    await this.#transit('resyncComplete', {}, { resyncReason: null, resyncStartMs: null })
    this.#scheduler.arm()
    return report
  }

  async #dueResync(signal: AbortSignal): Promise<ResyncReport> {
    if (this.state === 'WaitingForStartResynchronize') await this.#transit('windowOpens')
    return this.#resync(false, { signal })
  }

  async #verify(job: JobOptions): Promise<VerifyReport> {
    const context = this.#context
    const meter = new ProgressMeter('verify', this.name, totalSize(context), context.clock, job.onProgress)
    return this.#work(job, (conversation, signal) => runVerify(context, conversation, meter, signal))
  }

  /** Works over a link; what fails is remembered, counted, and may change the state, before it is thrown on. */
  async #work<Result>(
    job: JobOptions,
    action: Parameters<typeof withReplica<Result>>[2] extends (c: infer C) => unknown
      ? (conversation: C, signal?: AbortSignal) => Promise<Result>
      : never,
  ): Promise<Result> {
    try {
      throwIfAborted(job.signal)
      const result = await withReplica(this.#context, job.signal, (conversation) =>
        action(conversation, job.signal),
      )
      await this.#set({ errorJson: null, retryAttempt: 0, retryAtMs: null })
      return result
    } catch (error) {
      await this.#failed(asSecondsiteError(error))
      throw error
    }
  }

  async #failed(error: SecondsiteError): Promise<void> {
    if (error.code === 'ABORTED') return
    this.#count({ kind: 'failure', isNetwork: error.code.startsWith('TRANSPORT') })
    await this.#set({ errorJson: JSON.stringify({ code: error.code, message: error.message }) })
    if (isResyncCause(error)) return this.#requireResync('CHAIN_BROKEN')
    if (error.retryable === 'recoverable') return this.#scheduler.retry(error)
    if (transition('primary', this.state, 'nonRecoverableError', this.#facts()).isAllowed) {
      await this.#transit('nonRecoverableError', { reason: error.code })
    }
  }

  /** What the disks say is owed becomes the state. */
  async #noticeOwedResync(): Promise<void> {
    const owed = this.#context.disks
      .map((disk) => disk.status().resyncReason)
      .find((reason) => reason !== null)
    if (owed && this.#row.isInitialReplicationDone === 1) await this.#markOwed(owed)
  }

  async #requireResync(reason: 'CHAIN_BROKEN'): Promise<void> {
    for (const disk of this.#context.disks) await disk.requireResync(reason, true)
    await this.#markOwed(reason)
  }

  async #markOwed(reason: string): Promise<void> {
    if (!transition('primary', this.state, 'resyncRequired', this.#facts()).isAllowed) return
    await this.#transit('resyncRequired', { reason }, { resyncReason: reason })
    this.#scheduler.arm()
  }

  /** A resynchronization that nothing requires compares everything. */
  async #askForResync(): Promise<void> {
    requireTransition('primary', this.state, 'resynchronize', this.#facts(), this.name)
    const isOwed = this.#row.resyncReason !== null
    const isOpen = (await this.#context.resyncs.openResync(this.id)) !== undefined
    if (isOwed || isOpen) return
    for (const disk of this.#context.disks) await disk.requireResync('ASKED_FOR', true)
    await this.#set({ resyncReason: 'ASKED_FOR' })
  }

  async #scheduleResync(startTimeMs: number): Promise<undefined> {
    const resyncStartMs = checkStartTime(startTimeMs, this.#context.clock.nowMs())
    await this.#jobs.stop()
    if (this.state === 'WaitingForStartResynchronize') {
      await this.#set({ resyncStartMs })
    } else {
      await this.#askForResync()
      await this.#transit(
        'resyncRequired',
        { reason: 'ASKED_FOR' },
        { resyncReason: 'ASKED_FOR', resyncStartMs },
      )
    }
    this.#scheduler.arm()
    return undefined
  }

  /** Refuses a verb before anything is stopped for it. */
  async #stopThenTransit(
    trigger: Trigger,
    instead?: (next: ReplicationState) => Promise<void>,
  ): Promise<void> {
    requireTransition('primary', this.state, trigger, this.#facts(), this.name)
    await this.#jobs.stop()
    this.#scheduler.disarm()
    if (instead) await instead(requireTransition('primary', this.state, trigger, this.#facts(), this.name))
    else await this.#transit(trigger)
    this.#scheduler.arm()
  }

  async #transit(
    trigger: Trigger,
    { reason = 'asked for' } = {},
    also: Partial<Machine> = {},
  ): Promise<void> {
    const from = this.state
    const to = requireTransition('primary', from, trigger, this.#facts(), this.name)
    const { machineId, store, resyncs, clock } = this.#context
    await store.transition(
      { machineId, trigger, from, to, operator: OPERATOR, reason },
      async (transaction) => {
        if (trigger === 'resyncComplete') await resyncs.completeResync(transaction, machineId, clock.nowMs())
        if (Object.keys(also).length === 0) return
        await transaction.updateTable('machines').set(also).where('machineId', '=', machineId).execute()
      },
    )
    this.#row = { ...this.#row, ...also, state: to }
  }

  async #set(values: Partial<Machine>): Promise<void> {
    const { machineId, store } = this.#context
    await store.db.updateTable('machines').set(values).where('machineId', '=', machineId).execute()
    this.#row = { ...this.#row, ...values }
  }

  async #refresh(): Promise<Machine> {
    if (!this.#isRemoved) this.#row = await this.#context.store.machine(this.id)
    return this.#row
  }

  #require(states: readonly ReplicationState[], verb: string): void {
    if (states.includes(this.state)) return
    throw new SecondsiteError('INVALID_STATE', {
      message: `${verb} is not possible on ${this.name} while its state is ${this.state}`,
      details: { machine: this.name, state: this.state, trigger: verb, allowedStates: states },
    })
  }

  #facts(): Facts {
    return { isInitialReplicationDone: this.#row.isInitialReplicationDone === 1 }
  }

  #count(event: Parameters<typeof count>[1]): void {
    this.#counters = count(this.#counters, event)
  }
}

/** The replica cannot follow: a log is missing between what it has and what comes. */
function isResyncCause(error: unknown): boolean {
  return isSecondsiteError(error, 'LOG_CHAIN_GAP') || isSecondsiteError(error, 'LOG_CHAIN_FORK')
}

function totalSize(context: MachineContext): number {
  return context.disks.reduce((total, disk) => total + disk.sizeBytes, 0)
}

function measureDisk(context: MachineContext, disk: TrackedDisk): DiskMeasurement {
  const status = disk.status()
  return {
    name: disk.name,
    sizeBytes: disk.sizeBytes,
    writtenBytes: status.writtenBytes,
    logBytes: status.unreleasedLogBytes,
    logPercent: (status.unreleasedLogBytes / disk.sizeBytes) * 100,
    thresholdPercent: context.policy.resyncThresholdPercent,
    mode: status.mode,
    changedBytes: status.changedBytes,
    holdNsMax: status.maxHoldNs,
  }
}
