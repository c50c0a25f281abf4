/**
 * A protected machine, as an embedder holds it: its disks, its state, and the verbs of replication.
 *
 * One job at a time: a verb that works waits for the one before it, `suspend` and the cancels end it softly first. A
 * verb that the present state does not take is refused with INVALID_STATE and changes nothing. While the state is
 * Replicating a scheduler runs a cycle every interval; recoverable errors are retried by the table of the model, others
 * lead to state Error.
 */

import { basename } from 'node:path'
import { asSecondsiteError, type ErrorCode, type SecondsiteError } from '../errors.js'
import type { ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import type { DiskInput } from '../track/disk-input.js'
import type { NbdExport, NbdOptions } from '../track/nbd-export.js'
import { closeDisks, type DiskRecovery, type TrackedDisk } from '../track/tracked-disk.js'
import { removeTrackingFiles } from '../track/tracking-files.js'
import { GroupMember } from './group-member.js'
import { Jobs } from './jobs.js'
import { recreateLostImages } from './lost-images.js'
import type { MachineContext } from './machine-context.js'
import { MachineRecord } from './machine-record.js'
import type { Trigger } from './machine.js'
import { addDisk, finishLeaving, isCopying, noteCopies, removeDisk } from './membership.js'
import { Monitor } from './monitor.js'
import { type Measurement, measure } from './measurement.js'
import { prepareFailover, type PrepareOptions, type PrepareReport } from './failover-preparation.js'
import { type Policy, type PolicyInput, parsePolicy } from './policy.js'
import { type CycleOptions, type CycleReport, type JobOptions, ReplicationWork } from './replication-work.js'
import type { ResyncReport } from './resynchronization.js'
import { Scheduler } from './scheduler.js'
import { reconcile } from './shipping.js'
import { acceptShrinks, noteShrinks } from './shrinking.js'
import { isOverThreshold } from './threshold.js'
import type { VerifyReport } from './verification.js'
import { checkStartTime } from './window.js'

/** Options of {@link ProtectedMachine.resynchronize}. */
export interface ResynchronizeOptions extends JobOptions {
  /** Begin at zero even where an interrupted pass could be continued; default false. */
  readonly restart?: boolean
  /**
   * Makes images of the replica that are lost (deleted or cut short by somebody) anew: their disks are compared as a whole, and
   * the recovery points of the machine show the other disks alone; default false, and refused with REPLICA_IMAGE_LOST.
   */
  readonly recreateImages?: boolean
  /** Unix milliseconds at which to begin, at most 7 days ahead; default now. */
  readonly startTimeMs?: number
}

/** States in which disks are tracked for a replica: they may join and leave, and logs grow that no job looks at. */
const LIVE_STATES: readonly ReplicationState[] = [
  'ReadyForInitialReplication',
  'InitialReplicationInProgress',
  'Replicating',
  'Suspended',
  'Error',
  'WaitingForStartResynchronize',
  'Resynchronizing',
  'ResynchronizeSuspended',
]

export class ProtectedMachine {
  /** @internal As a member of a consistency group. */
  readonly asMember: GroupMember
  readonly #context: MachineContext
  readonly #jobs = new Jobs()
  readonly #record: MachineRecord
  readonly #monitor: Monitor
  readonly #work: ReplicationWork
  readonly #scheduler: Scheduler
  /** Why the disks are not open. */
  #fault: SecondsiteError | undefined

  private constructor(context: MachineContext, row: Machine, monitor: Monitor) {
    const record = new MachineRecord(context, row)
    this.#context = context
    this.#record = record
    this.#monitor = monitor
    this.#work = new ReplicationWork(context, record, monitor, {
      arm: () => this.#scheduler.arm(),
      retry: (error) => this.#scheduler.retry(error),
    })
    this.#scheduler = new Scheduler(context, this.#jobs, {
      state: () => record.state,
      row: () => record.row,
      cycle: (signal) => context.group?.dueCycle(context.machineId, signal) ?? this.#work.cycle({ signal }),
      isCopying: () => isCopying(context),
      copy: (signal, mayGoOn) => this.#work.copy({ signal }, mayGoOn),
      initial: (signal) => this.#work.initial({ signal }),
      resync: (signal) => this.#work.dueResync(signal),
      setRetry: (retryAttempt, retryAtMs) => record.set({ retryAttempt, retryAtMs }),
      watch: () => this.#watch(),
    })
    this.asMember = new GroupMember({
      context,
      jobs: this.#jobs,
      record,
      work: this.#work,
      scheduler: this.#scheduler,
      fault: () => this.#fault,
    })
  }

  /** Takes a machine whose disks are open. */
  static async take(context: MachineContext): Promise<ProtectedMachine> {
    const machine = await ProtectedMachine.#of(context)
    await machine.#begin()
    return machine
  }

  /** Takes up a machine where the last process left it; one whose disks cannot be opened says why and waits for `resume`. */
  static async takeUp(context: MachineContext): Promise<ProtectedMachine> {
    const machine = await ProtectedMachine.#of(context)
    await machine.#open().catch((error: unknown) => machine.#cannotOpen(asSecondsiteError(error)))
    return machine
  }

  static async #of(context: MachineContext): Promise<ProtectedMachine> {
    const row = await context.store.machine(context.machineId)
    return new ProtectedMachine(context, row, await Monitor.open(context))
  }

  get name(): string {
    return this.#context.name
  }

  get id(): string {
    return this.#context.machineId
  }

  /** The consistency group that it is in; null when it is in none. */
  get groupName(): string | null {
    return this.#context.group?.name ?? null
  }

  /** Paths of its disks, also while they cannot be opened. */
  get diskPaths(): readonly string[] {
    return this.#context.diskPaths
  }

  /** The folder of its replica. */
  get replicaDirectory(): string {
    return (JSON.parse(this.#record.row.replicaJson) as { directory: string }).directory
  }

  /** Its disks, in the order they were given to `enable`. */
  get disks(): readonly TrackedDisk[] {
    return this.#context.disks
  }

  get state(): ReplicationState {
    return this.#record.state
  }

  /**
   * Copies all disks to the replica while they are written to; afterwards the state is Replicating.
   *
   * Goes on where an earlier call stopped.
   * @throws {INVALID_STATE} unless the state is ReadyForInitialReplication
   * @throws {ABORTED} when the signal or a verb stopped it; TRANSPORT_LOST and other codes of the way to the replica
   */
  async startInitialReplication(options: JobOptions = {}): Promise<void> {
    return this.#verb('startInitialReplication', options, (job) => this.#work.initial(job))
  }

  /** Stops initial replication; what was copied is kept for the next start. @throws {INVALID_STATE} */
  async cancelInitialReplication(): Promise<void> {
    await this.#stopThen('cancelInitialReplication')
  }

  /**
   * Runs one cycle now: cut, ship, apply. The replica then equals the disks at the cut.
   *
   * With `applicationConsistent` the hook of the policy holds the applications at rest for the cut. A hook that fails is
   * told by the report and counted; the cut is made all the same and is crash-consistent.
   * @throws {INVALID_STATE} unless the state is Replicating
   * @throws {QUIESCE_NOT_CONFIGURED} when `applicationConsistent` is asked for and the policy has no hook; nothing is cut
   */
  async replicate(options: CycleOptions = {}): Promise<CycleReport> {
    this.#requireDisks()
    return this.#jobs.run(options.signal, (signal) => {
      this.#record.require(['Replicating'], 'replicate')
      return this.#work.cycle({ ...options, signal })
    })
  }

  /**
   * Readies a planned failover: nobody may write to the disks any more, what they hold is sent and, by their digests, proven
   * to be what the replica holds. Nothing is replicated from then on; {@link cancelFailover} takes it back.
   * @throws {INVALID_STATE} unless the state is Replicating
   * @throws {MACHINE_RUNNING} when a client has a disk open, or writes go on; nothing has changed
   * @throws {DIGEST_MISMATCH} when the replica differs: resynchronize first
   */
  async prepareFailover(options: PrepareOptions = {}): Promise<PrepareReport> {
    this.#requireDisks()
    this.#record.next('prepareFailover')
    await this.#jobs.stop()
    const report = await this.#jobs.run(options.signal, (signal) =>
      prepareFailover(this.#context, this.#record, this.#work, { ...options, signal }),
    )
    this.#scheduler.arm()
    return report
  }

  /** Takes {@link prepareFailover} back; cycles go on. @throws {INVALID_STATE} */
  async cancelFailover(): Promise<void> {
    await this.#record.transit('cancelFailover')
    this.#scheduler.arm()
  }

  /** Pauses replication; tracking goes on. A job at work is ended softly first. @throws {INVALID_STATE} */
  async suspend(): Promise<void> {
    await this.#stopThen('suspend')
  }

  /**
   * Goes on after `suspend`, an error or a due resynchronization: with cycles, initial replication or the resynchronization.
   * What was interrupted continues in the background; its failures are retried and shown by {@link measure}. Disks that
   * could not be opened are tried again first.
   * @throws {INVALID_STATE} and, as before, the codes of a disk that still cannot be opened
   */
  async resume(): Promise<void> {
    const wasClosed = this.#fault !== undefined
    if (wasClosed) await this.#open()
    if (wasClosed && !this.#record.takes('resume')) return this.#record.set({ errorJson: null })
    await this.#record.transit('resume', {}, { errorJson: null, retryAttempt: 0, retryAtMs: null })
    this.#work.resumed()
    this.#scheduler.arm()
  }

  /**
   * Compares the candidates of both sides by digests and sends what differs; afterwards the state is Replicating.
   *
   * Where nothing is known about what differs, the whole disk is compared. With `startTimeMs` it only marks the machine.
   * @throws {INVALID_STATE, WINDOW_TOO_FAR, DIGEST_MISMATCH, ABORTED}
   */
  async resynchronize(options: ResynchronizeOptions = {}): Promise<ResyncReport | undefined> {
    const { startTimeMs, restart = false, recreateImages = false } = options
    this.#requireDisks()
    if (startTimeMs !== undefined) return this.#scheduleResync(startTimeMs)
    this.#record.next('resynchronize')
    await this.#jobs.stop()
    if (recreateImages)
      return this.#jobs.run(options.signal, (signal) => this.#recreateImages({ ...options, signal }))
    await this.#work.askForResync()
    return this.#verb('resynchronize', options, (job) => this.#work.resync(restart, job))
  }

  /** Stops a resynchronization; what it has compared and sent is kept. @throws {INVALID_STATE} */
  async cancelResynchronize(): Promise<void> {
    await this.#stopThen('cancelResynchronize')
    const open = await this.#context.resyncs.openResync(this.id)
    if (open) await this.#context.resyncs.setResyncState(open.resyncId, 'cancelled')
  }

  /**
   * Compares all disks with their replicas at a cut, while the guest writes; nothing is sent but the cut itself.
   * @param options.repair - sends what differs, as a resynchronization of those ranges
   * @throws {INVALID_STATE} unless the state is Replicating
   */
  async verify(options: JobOptions & { readonly repair?: boolean } = {}): Promise<VerifyReport> {
    this.#requireDisks()
    const report = await this.#jobs.run(options.signal, (signal) => {
      this.#record.require(['Replicating'], 'verify')
      return this.#work.verify({ ...options, signal })
    })
    if (!options.repair || report.equal) return report
    await this.resynchronize(options)
    return this.verify({ ...options, repair: false })
  }

  /**
   * Exports all its disks to NBD clients at one address, each under its name, until the export or the machine is closed.
   *
   * @example
   * await using nbd = await web01.exportNbd({ listen: 'unix:/run/web01.sock' })
   * for (const disk of web01.disks) console.log(nbd.uri(disk))
   * @throws {OPTION_OUT_OF_RANGE, NBD_ADDRESS_IN_USE, NBD_LISTEN_FAILED, NBD_TLS_INVALID}
   */
  async exportNbd(options: NbdOptions): Promise<NbdExport> {
    this.#requireDisks()
    if (this.state === 'PreparedForFailover') this.#record.require([], 'exportNbd')
    return this.#context.work.exportNbd(this.#context.disks, options)
  }

  /** State, health, counters, and what a failover now would lose. */
  async measure(): Promise<Measurement> {
    await this.#monitor.endInterval()
    return measure(this.#context, await this.#record.refresh(), this.#monitor, this.#work)
  }

  /** Its policy, every setting filled in. */
  get policy(): Policy {
    return this.#context.policy
  }

  /**
   * Changes the settings given and keeps the others; what is due is set anew. A flush mode counts from the next opening.
   * @throws {OPTION_OUT_OF_RANGE} naming every setting that is wrong; nothing has changed
   */
  async configure(policy: PolicyInput): Promise<Policy> {
    const changed = parsePolicy({ ...this.#context.policy, ...policy })
    await this.#record.set({ policyJson: JSON.stringify(changed), retryAttempt: 0, retryAtMs: null })
    this.#context.policy = changed
    if (!this.#fault) this.#scheduler.arm()
    return changed
  }

  /**
   * Looks whether disks have grown; the replica follows before the next cut, and nothing is compared but a new range that
   * holds data. It happens every few seconds by itself.
   * @throws {DISK_SIZE_DIFFERS} when a disk has shrunk: tracking goes on with the size it had, see {@link acceptShrink}
   */
  async noticeGrowth(): Promise<void> {
    for (const disk of this.#context.disks)
      if (!this.#context.shrinking.has(disk.diskId) && (await disk.grow())) await this.#noteSize(disk)
  }

  /**
   * Accepts that disks have shrunk, each to the size that is named for it, and goes on where that had stopped the machine. The
   * replica follows with the next cut, and saves for its recovery points what it cuts off. Nothing is compared, unless a disk shrank
   * while it was not tracked. Clients that are connected see the new size when they connect again.
   *
   * What has not shrunk is passed over, so a repetition is harmless.
   * @param sizes - bytes by the name of the disk
   * @throws {INVALID_STATE, OPTION_OUT_OF_RANGE}
   * @throws {DISK_SIZE_DIFFERS} when a disk has another size than that, as a wrong one has; nothing has changed
   */
  async acceptShrink(sizes: Readonly<Record<string, number>>): Promise<void> {
    this.#record.require(LIVE_STATES, 'acceptShrink')
    await this.#jobs.stop()
    const accepted = await this.#jobs.run(undefined, () => acceptShrinks(this.#context, sizes))
    for (const { diskId, fromBytes, toBytes } of accepted) {
      const disk = (await this.#context.store.disks(this.id)).find((row) => row.diskId === diskId)?.name ?? ''
      await this.#context.events.raise(this.#context, 'diskShrunk', { disk, fromBytes, toBytes })
    }
    if (this.#fault) await this.#open()
    await this.#goOnAfter('DISK_SIZE_DIFFERS')
  }

  /**
   * Tracks one more disk from here on. Its first copy begins by itself while the state is Replicating, between the cycles, which
   * go on for all disks; cuts and {@link verify} hold for it from the first cycle behind that copy on.
   *
   * It is not part of an export that is there already: export it alone, or all of them anew.
   * @throws {INVALID_STATE, MACHINE_EXISTS, OPTION_OUT_OF_RANGE} and, of the disk, the codes of {@link Engine.enable}; nothing has
   *   changed
   */
  async addDisk(input: DiskInput): Promise<TrackedDisk> {
    this.#requireDisks()
    this.#record.require(LIVE_STATES, 'addDisk')
    const disk = await addDisk(this.#context, input, () => this.#jobs.isClosed)
    const { name, path, sizeBytes } = disk
    await this.#context.events.raise(this.#context, 'diskAdded', { disk: name, path, sizeBytes })
    if (this.state === 'Replicating') this.#scheduler.arm()
    return disk
  }

  /**
   * Ends the protection of one disk: its exports end, tracking stops, logs and tracking file go; its replica stays as it is. A job
   * at work is ended softly first, and goes on without it.
   * @throws {INVALID_STATE}
   * @throws {OPTION_OUT_OF_RANGE} when the machine has no disk of that name, or no other; nothing has changed
   */
  async removeDisk(name: string): Promise<void> {
    this.#requireDisks()
    this.#record.require(LIVE_STATES, 'removeDisk')
    await this.#jobs.stop()
    await this.#jobs.run(undefined, () => removeDisk(this.#context, name))
    await this.#context.events.raise(this.#context, 'diskRemoved', { disk: name })
    this.#scheduler.arm()
  }

  /** Sets the counters of {@link measure} to zero. */
  async resetStatistics(): Promise<void> {
    await this.#monitor.reset()
  }

  /** Ends the protection on this side: tracking stops, rows, logs and tracking files go; the replica and its files stay. */
  async disable(): Promise<void> {
    const disks = await this.#context.store.disks(this.id)
    await this.#stopThen('disable', () => this.#record.remove())
    await this.close()
    for (const { trackingDirectory, path } of disks) removeTrackingFiles(trackingDirectory, basename(path))
  }

  /** Ends the open logs of all disks at one cut, so that everything written stands in sealed ones. */
  async sealLogs(): Promise<void> {
    await this.#context.work.cut(this.#context.disks)
  }

  /**
   * Ends this side because the replica has become the primary: the disks go on as its replica, so tracking ends and rows and
   * tracking files go. What was never sent must have been looked at before. Part of `reverseReplication`.
   */
  async retire(): Promise<void> {
    const disks = await this.#context.store.disks(this.id)
    const trigger = this.state === 'PreparedForFailover' ? 'reverseReplication' : 'replicaReversed'
    await this.#stopThen(trigger, () => this.#record.remove(trigger))
    await this.close()
    for (const { trackingDirectory, path } of disks) removeTrackingFiles(trackingDirectory, basename(path))
  }

  /** Stops the jobs and closes the disks in order. The engine calls it; after `disable` it has nothing left to do. */
  async close(): Promise<void> {
    this.#scheduler.disarm()
    await this.#jobs.close()
    try {
      await this.#scheduler.settled()
    } finally {
      await closeDisks(this.#context.disks)
    }
  }

  /** Drops everything as the death of the process would; for tests. */
  async abandon(): Promise<void> {
    this.#scheduler.disarm()
    await this.#jobs.close()
    await this.#scheduler.settled()
    for (const disk of this.#context.disks) await disk.abandon()
  }

  /** Whether `disable` has been called. */
  get isDisabled(): boolean {
    return this.#record.isRemoved
  }

  async #open(): Promise<void> {
    await finishLeaving(this.#context)
    this.#context.disks = await this.#context.openDisks()
    try {
      await this.#begin()
      this.#fault = undefined
    } catch (error) {
      await closeDisks(this.#context.disks).catch(() => undefined)
      this.#context.disks = []
      throw error
    }
  }

  /** What a crash left between disks and queue is settled before anything is due. */
  async #begin(): Promise<void> {
    await noteCopies(this.#context)
    await noteShrinks(this.#context)
    await reconcile(this.#context)
    for (const { name, recovery } of this.#context.disks) await this.#noteRecovery(name, recovery)
    const rows = await this.#context.store.disks(this.id)
    for (const disk of this.#context.disks) {
      const row = rows.find(({ diskId }) => diskId === disk.diskId)
      if (row && row.sizeBytes < disk.sizeBytes) await this.#noteSize(disk)
    }
    await this.#work.noticeOwedResync()
    this.#scheduler.arm()
  }

  async #noteRecovery(disk: string, { kind, redoneBytes }: DiskRecovery): Promise<void> {
    if (kind === 'created' || kind === 'clean') return
    await this.#context.events.raise(this.#context, 'diskRecovered', { disk, kind, redoneBytes })
  }

  async #noteSize({ diskId, name: disk, sizeBytes }: TrackedDisk): Promise<void> {
    const { store, events } = this.#context
    await store.db.updateTable('disks').set({ sizeBytes }).where('diskId', '=', diskId).execute()
    await events.raise(this.#context, 'diskGrown', { disk, sizeBytes })
  }

  /** Looks at what time and the guest's writes change by themselves. */
  async #watch(): Promise<void> {
    const isQuiet = LIVE_STATES.includes(this.state) && !this.#jobs.isBusy
    const isDue = isQuiet && isOverThreshold(this.#context)
    try {
      await this.noticeGrowth()
      if (isDue) await this.#jobs.run(undefined, () => this.#work.relieve())
      const { health, healthDetails } = await this.measure()
      await this.#monitor.noteHealth(
        health,
        healthDetails.map(({ code }) => code),
      )
      await this.#monitor.remindOfTest(healthDetails.find(({ code }) => code === 'TEST_FAILOVER_DUE'))
    } catch (error) {
      if (asSecondsiteError(error).code !== 'ABORTED') await this.#work.failed(asSecondsiteError(error))
    }
  }

  async #cannotOpen(error: SecondsiteError): Promise<void> {
    this.#fault = error
    const errorJson = JSON.stringify({ code: error.code, message: error.message })
    if (!this.#record.takes('nonRecoverableError')) return this.#record.set({ errorJson })
    await this.#record.transit('nonRecoverableError', { reason: error.code }, { errorJson })
  }

  /** What has stopped the machine is mended; a resynchronization that is owed waits for its time. */
  async #goOnAfter(code: ErrorCode): Promise<void> {
    const { errorJson } = this.#record.row
    const isMended = errorJson !== null && (JSON.parse(errorJson) as { code: string }).code === code
    if (isMended && this.state === 'Error') return this.resume()
    if (isMended) await this.#record.set({ errorJson: null })
    this.#scheduler.arm()
  }

  /** @throws what keeps the disks from being open */
  #requireDisks(): void {
    if (this.#fault) throw this.#fault
  }

  /** Moves the state by a verb, then does its work as the one job. */
  async #verb<Result>(
    trigger: Trigger,
    options: JobOptions,
    work: (job: JobOptions) => Promise<Result>,
  ): Promise<Result> {
    this.#requireDisks()
    return this.#jobs.run(options.signal, async (signal) => {
      await this.#record.transit(trigger)
      return work({ ...options, signal })
    })
  }

  async #recreateImages({ restart = false, ...job }: ResynchronizeOptions): Promise<ResyncReport> {
    this.#record.next('resynchronize')
    await recreateLostImages(this.#context)
    await this.#work.noticeOwedResync()
    await this.#work.askForResync()
    await this.#record.transit('resynchronize')
    return this.#work.resync(restart, job)
  }

  async #scheduleResync(startTimeMs: number): Promise<undefined> {
    const resyncStartMs = checkStartTime(startTimeMs, this.#context.clock.nowMs())
    await this.#jobs.stop()
    if (this.state === 'WaitingForStartResynchronize') {
      await this.#record.set({ resyncStartMs })
    } else {
      await this.#work.askForResync()
      const reason = 'ASKED_FOR'
      await this.#record.transit('resyncRequired', { reason }, { resyncReason: reason, resyncStartMs })
    }
    this.#scheduler.arm()
  }

  /** Refuses a verb before anything is stopped for it. */
  async #stopThen(
    trigger: Trigger,
    act: () => Promise<void> = () => this.#record.transit(trigger),
  ): Promise<void> {
    this.#record.next(trigger)
    await this.#jobs.stop()
    this.#scheduler.disarm()
    await act()
    this.#scheduler.arm()
  }
}
