/**
 * The replica of a machine, as the one who needs it holds it: its recovery points, and the verbs of failover.
 *
 * It is opened from its folder alone, beside the process that replicates into it or without any: an operator whose primary
 * is gone has this folder and nothing else. Points are listed, viewed, restored and tested while replication goes on; a
 * failover takes the replica away from its primary, which is refused from then on.
 */

import { SecondsiteError, optionOutOfRange } from '../errors.js'
import type { ReplicationState } from '../states.js'
import { imageLost, lostImages } from '../store/image-file.js'
import type { FailoverKind, FailoverRow } from '../store/recovery-schema.js'
import { type ChosenState, type RecoveryPointChoice, timeOf } from './choice.js'
import { cancelFailover, type CommitProgress, recordCommit, requireCommit, settleCommit } from './commit.js'
import { awaitQuiet, identityOf, settleImages } from './context.js'
import { diffPoints } from './diff.js'
import {
  beginFailover,
  Failover,
  type FailoverInfo,
  failoverStarted,
  type FailoverTrigger,
  move,
  rowOf,
} from './failover.js'
import { askHolder, FailoverHolder, type HolderAnswer, isHeld } from './failover-holder.js'
import type { RecoveryPoint } from './points.js'
import { ReplicaPoints } from './replica-points.js'
import { runInfo, type RunInfo, stopLeftRun } from './runner.js'
import { FAILOVER_RUN } from './runner-record.js'
import { PointView } from './view.js'

/** What a failover would do. */
export interface FailoverOutlook {
  readonly state: ReplicationState
  readonly point: RecoveryPoint
  /** Unix milliseconds that the disks would begin with. */
  readonly pointTimeMs: number
  /** Milliseconds of the past that would be lost if the primary ended now. */
  readonly lossMs: number
  /** Bytes that were received and are not applied yet; `Latest` applies them first. */
  readonly receivedBytes: number
  /** Bytes of the newest state that the point takes back. */
  readonly undoneBytes: number
}

/** Options of {@link Replica.startFailover}. */
export interface StartFailoverOptions {
  /** Default `Latest`. */
  readonly point?: RecoveryPointChoice
  /** `Planned` takes nothing but a replica whose primary was prepared; default `Unplanned`. */
  readonly kind?: FailoverKind
  /** Takes the replica although its primary still replicates into it: the primary is refused from then on. Default false. */
  readonly fencePrimary?: boolean
  readonly signal?: AbortSignal
}

/** Options of {@link Replica.commitFailover}. */
export interface CommitOptions {
  /** Also drops points that are locked; default false. */
  readonly dropLocked?: boolean
  /** Not called where another process has the failover open and commits it. */
  readonly onProgress?: (progress: CommitProgress) => void
  readonly signal?: AbortSignal
}

export class Replica extends ReplicaPoints {
  #failover: Failover | undefined
  /** One commit after the other. */
  #commits: Promise<unknown> = Promise.resolve()
  #settling: Promise<void> | undefined

  /** The machine that was started from the failover; undefined when there is none. */
  machineRun(): RunInfo | undefined {
    return runInfo(this.directory, FAILOVER_RUN)
  }

  /** What a failover to `point` would do, without doing anything. */
  async explainFailover(point: RecoveryPointChoice = 'Latest'): Promise<FailoverOutlook> {
    const points = await this.points()
    const chosen = await this.chooseOf(points, point)
    const listed = points.find(({ number }) => number === chosen.state.number)
    const open = await this.context.store.openCycles()
    const logs = await Promise.all(open.map(({ cycleNumber }) => this.context.store.logsOfCycle(cycleNumber)))
    const receivedBytes = logs.flat().reduce((total, log) => total + log.logSizeBytes, 0)
    const undone = await diffPoints(this.context, chosen.state.number, undefined)
    const pointTimeMs = timeOf(chosen)
    return {
      state: await this.state(),
      point: listed as RecoveryPoint,
      pointTimeMs,
      lossMs: Math.max(0, this.context.clock.nowMs() - pointTimeMs),
      receivedBytes,
      undoneBytes: undone.reduce((total, { changedBytes }) => total + changedBytes, 0),
    }
  }

  /**
   * Makes the replica's disks writable at a point, within about a second. Nothing of the primary is taken from then on, and
   * nothing is given up before {@link commitFailover}.
   * @throws {INVALID_STATE, POINT_NOT_FOUND, POINT_NOT_EXACT, UNDO_DAMAGED, STORE_BUSY}
   * @throws {REPLICA_IMAGE_LOST} when somebody has deleted an image or cut it short
   * @throws {PRIMARY_ALIVE} when a process still replicates into it and is not to be fenced
   * @throws {NOT_PREPARED} as planned, unless the newest state is the last cut of a primary that was prepared
   */
  async startFailover(options: StartFailoverOptions = {}): Promise<Failover> {
    return this.#beginFailover(options, 'startFailover')
  }

  async #beginFailover(options: StartFailoverOptions, trigger: FailoverTrigger): Promise<Failover> {
    const { point = 'Latest', kind = 'Unplanned', fencePrimary = false, signal } = options
    await this.#requireFailover(fencePrimary || kind === 'Planned', trigger)
    if (point === 'Latest') await settleImages(this.context, signal)
    const chosen = await this.choose(kind === 'Planned' ? plannedChoice(point) : point)
    if (kind === 'Planned') requirePlanned(chosen, this.directory)
    await using view = await PointView.open(this.context, { state: chosen.state })
    await this.context.step('failover.before-moving')
    const row = await beginFailover(this.context, kind, { ...chosen, state: view.state }, trigger)
    // What had begun before the primary was refused comes to its end.
    await awaitQuiet(this.context, signal)
    await this.context.step('failover.before-layers')
    const failover = await this.#open(FailoverHolder.take(this.directory))
    if (failover === undefined || !isSame(failover.row, row)) throw await this.#endedByOther()
    await this.context.step('failover.before-started')
    return this.#started(failover)
  }

  /** Whether a planned failover would lose nothing, without beginning it. @throws {NOT_PREPARED} */
  async requirePrepared(): Promise<void> {
    requirePlanned(await this.choose('LatestProcessed'), this.directory)
  }

  /**
   * Whether a failover can begin, without beginning it.
   * @throws {INVALID_STATE}, {REPLICA_IMAGE_LOST}, and {PRIMARY_ALIVE} unless that is fenced
   */
  async requireFailover(fencePrimary = false): Promise<void> {
    await this.#requireFailover(fencePrimary, 'startFailover')
  }

  async #requireFailover(fencePrimary: boolean, trigger: FailoverTrigger): Promise<void> {
    const { machine, state } = await identityOf(this.context)
    this.context.next(state, trigger, machine)
    const { store } = this.context
    const lost = await lostImages(await store.disks(), () => store.disks())
    if (lost.length > 0) throw imageLost(this.directory, lost)
    if (!fencePrimary) await this.#refuseAlive(machine)
  }

  /**
   * Announces that the machine comes home to this replica: of its former primary's disks, with replication reversed. What the
   * active side sends is taken as before, until {@link finalizeFailback}; {@link cancelFailover} takes it back.
   * @throws {INVALID_STATE} unless the state is Replicating
   */
  async failback(): Promise<void> {
    const { machine, state } = await identityOf(this.context)
    await move(this.context, 'failback', state, this.context.next(state, 'failback', machine))
  }

  /**
   * The machine is home: the active side was stopped and has sent its last cut. Its disks are writable here from now on; the
   * images stay as they are until {@link commitFailover}, so {@link cancelFailover} can still take all of it back.
   * @throws {INVALID_STATE} unless the state is FailbackInProgress
   */
  async finalizeFailback(options: Pick<StartFailoverOptions, 'signal'> = {}): Promise<Failover> {
    const { machine, state } = await identityOf(this.context)
    this.context.next(state, 'finalizeFailback', machine)
    return this.#beginFailover({ ...options, kind: 'Planned' }, 'finalizeFailback')
  }

  /**
   * The failover that has begun, opened: taken up where a death left it.
   * @returns undefined when there is none
   * @throws {FAILOVER_IN_USE} while another process has it open
   * @throws {INVALID_STATE} once its reversal has begun: what was written from then on would be missing at the other side
   */
  async failover(): Promise<Failover | undefined> {
    return this.#takeUp({})
  }

  /** @param options - of a commit that is gone on with */
  async #takeUp(options: CommitOptions): Promise<Failover | undefined> {
    if ((await this.#row()) === undefined) return undefined
    const failover = this.#openFailover ?? (await this.#open(FailoverHolder.take(this.directory)))
    return failover && this.#started(failover, options)
  }

  /** The row of the failover, unless it is reversed already. @throws {INVALID_STATE} */
  async #row(): Promise<FailoverRow | undefined> {
    const row = await this.context.recovery.failover()
    if (row === undefined || row.reverseJson === null) return row
    const { machine, state } = await identityOf(this.context)
    throw reversing(machine, state)
  }

  /** @param holder - closed where there is no failover any more */
  async #open(holder: FailoverHolder): Promise<Failover | undefined> {
    try {
      const row = await this.#row()
      if (row === undefined) {
        holder.close()
        return undefined
      }
      const isNew = (await this.state()) === 'RecoveryInProgress'
      // Who began it may have died while it waited for that.
      if (isNew) await awaitQuiet(this.context)
      this.#failover = await Failover.open(this.context, row, isNew, holder)
      return this.#failover
    } catch (error) {
      holder.close()
      throw error
    }
  }

  async #started(failover: Failover, options: CommitOptions = {}): Promise<Failover> {
    await failoverStarted(this.context)
    failover.answerWith(this.#answer)
    const row = await this.context.recovery.failover()
    if (row !== undefined && row.committedMs !== null) await this.#settle(failover, options)
    return failover
  }

  /** What is known of the failover without opening it. */
  async failoverInfo(): Promise<FailoverInfo | undefined> {
    const row = await this.context.recovery.failover()
    if (row === undefined) return undefined
    const { kind, pointNumber, pointTimeMs, startedMs, committedMs } = row
    return { kind, state: await this.state(), pointNumber, pointTimeMs, startedMs, committedMs }
  }

  /**
   * Begins the failover anew at another point; what was written since it began is thrown away, and who serves that is made to stop.
   * @throws {INVALID_STATE, POINT_NOT_FOUND, POINT_NOT_EXACT, UNDO_DAMAGED, FAILOVER_IN_USE}
   */
  async changeRecoveryPoint(point: RecoveryPointChoice): Promise<Failover> {
    const { machine, state } = await identityOf(this.context)
    const to = this.context.next(state, 'changeRecoveryPoint', machine)
    const chosen = await this.choose(point)
    await using view = await PointView.open(this.context, { state: chosen.state })
    const holder = await this.#switchOff()
    try {
      const startedMs = this.context.clock.nowMs()
      const values = { ...rowOf({ ...chosen, state: view.state }), startedMs }
      // Through the state in which a death makes the layers anew.
      await move(this.context, 'changeRecoveryPoint', state, 'RecoveryInProgress', async (transaction) => {
        await transaction.updateTable('failover').set(values).execute()
      })
      await this.context.step('change.before-layers')
    } catch (error) {
      holder.close()
      throw error
    }
    const failover = await this.#open(holder)
    if (failover && (await this.#started(failover)) && (await this.state()) === to) return failover
    throw await this.#endedByOther()
  }

  async #endedByOther(): Promise<SecondsiteError> {
    await this.closeFailover()
    const machine = await this.machine()
    return new SecondsiteError('FAILOVER_NOT_FOUND', {
      message: `the failover of ${machine} was ended or moved by somebody else`,
      details: { machine, path: this.directory },
    })
  }

  /**
   * Ends the failover as if it had never been; the primary replicates on. Who serves its disks is made to stop.
   * @throws {INVALID_STATE, FAILOVER_IN_USE}
   */
  async cancelFailover(): Promise<void> {
    await this.#requireEnd()
    const holder = await this.#switchOff()
    try {
      await cancelFailover(this.context)
    } finally {
      holder.close()
    }
  }

  /**
   * Makes the failover final: the images become what its disks show, all points and what the primary had sent go, and the
   * primary is refused for good. A guest may go on meanwhile, also one that another process serves: that process is asked to do
   * it. Calling it again finishes what was begun.
   * @throws {INVALID_STATE, POINT_LOCKED}
   * @throws {ABORTED} when the signal stopped it: it is committed, and the next call or opening carries it through
   * @throws {POINT_IN_USE} while somebody else reads a point; nothing has changed
   * @throws {FAILOVER_IN_USE} when a process that has it open does not react
   */
  async commitFailover(options: CommitOptions = {}): Promise<void> {
    const { dropLocked = false, signal } = options
    if ((await this.context.recovery.failover())?.isSettled === 1) return
    if (!this.#openFailover && (await askHolder(this.context, { verb: 'commit', dropLocked }, signal))) return
    const commit = this.#commits.catch(() => {}).then(() => this.#commit(options))
    this.#commits = commit
    await commit
  }

  async #commit(options: CommitOptions): Promise<void> {
    // Read only now: a holder may have recorded it and died.
    const row = await this.context.recovery.failover()
    if (row?.isSettled === 1) return
    if (row === undefined || row.committedMs === null) {
      const isOpen = this.#openFailover !== undefined
      await recordCommit(this.context, { dropLocked: options.dropLocked ?? false, isOpen })
    }
    await this.context.step('commit.before-opening')
    await this.#takeUp(options)
  }

  /** Of two who want it one does it. */
  async #settle(failover: Failover, options: CommitOptions): Promise<void> {
    if ((await this.context.recovery.failover())?.isSettled !== 0) return
    this.#settling ??= settleCommit(this.context, failover, options).finally(() => {
      this.#settling = undefined
    })
    await this.#settling
  }

  /** What another process asks of who has the failover open. */
  readonly #answer: HolderAnswer = async (request) => {
    if (request.verb === 'commit') return this.commitFailover({ dropLocked: request.dropLocked })
    await this.#commits.catch(() => {})
    await this.#requireEnd()
    await this.#openFailover?.stopRun({ asks: false })
    await this.closeFailover()
  }

  /** Once it is committed nobody ends it any more. @throws {INVALID_STATE} */
  async #requireEnd(): Promise<void> {
    const { machine, state } = await identityOf(this.context)
    const before = (await this.context.recovery.failover())?.stateBefore
    this.context.next(state, 'cancelFailover', machine, before)
  }

  /**
   * Whether {@link commitFailover} can begin, without beginning it; also where it has begun or is over.
   * @throws {INVALID_STATE, POINT_LOCKED, POINT_IN_USE}
   */
  async requireCommit({ dropLocked = false }: { readonly dropLocked?: boolean } = {}): Promise<void> {
    const row = await this.context.recovery.failover()
    if (row !== undefined && row.committedMs !== null) return
    const isOpen = this.#openFailover !== undefined || isHeld(this.directory)
    await requireCommit(this.context, { dropLocked, isOpen })
  }

  /** Closes views, tests and the failover. A test ends with it; the failover stays. Calling it again does nothing. */
  override async close(): Promise<void> {
    await this.closeWith(() => this.closeFailover())
  }

  /** The failover, unless its holder has closed it. */
  get #openFailover(): Failover | undefined {
    return this.#failover?.isClosed ? undefined : this.#failover
  }

  /**
   * What the machine has written is thrown away, so there is nothing to shut down for.
   * @returns the lock of the failover: nobody opens it until the caller has moved or ended it
   */
  async #switchOff(): Promise<FailoverHolder> {
    if (this.#openFailover) {
      await this.#openFailover.stopRun({ asks: false })
      await this.closeFailover()
    } else await askHolder(this.context, { verb: 'leave' })
    const holder = FailoverHolder.take(this.directory)
    try {
      await stopLeftRun(this.directory, FAILOVER_RUN, this.context.clock, { asks: false })
      return holder
    } catch (error) {
      holder.close()
      throw error
    }
  }

  /** Closes the failover's disks, after its machine has shut down; what began goes on with {@link failover}. */
  async closeFailover(): Promise<void> {
    const failover = this.#failover
    await failover?.close()
    if (this.#failover === failover) this.#failover = undefined
  }

  /** Who has the store replicates into it. */
  async #refuseAlive(machine: string): Promise<void> {
    if (!(await this.context.isReplicatedInto())) return
    throw new SecondsiteError('PRIMARY_ALIVE', {
      message: `a process still replicates ${machine} into ${this.directory}`,
      details: { machine, path: this.directory },
    })
  }
}

/** Whether it is still the failover that began so. */
function isSame(row: FailoverRow, begun: FailoverRow): boolean {
  const { startedMs, pointNumber, untilNs } = begun
  return row.startedMs === startedMs && row.pointNumber === pointNumber && row.untilNs === untilNs
}

/** What differs was recorded; only the reversal itself goes on from here. */
function reversing(machine: string, state: ReplicationState): SecondsiteError {
  return new SecondsiteError('INVALID_STATE', {
    message: `reverse replication of ${machine} has begun: its disks come up again when it was carried through`,
    details: { machine, state, trigger: 'failover', allowedVerbs: ['reverseReplication'] },
  })
}

/** What came after the last cut of a prepared primary, or what it never sent, a planned failover would lose. */
function requirePlanned({ state }: ChosenState, directory: string): void {
  if (state.kind === 'planned') return
  throw new SecondsiteError('NOT_PREPARED', {
    message: `the newest state in ${directory} is ${state.kind}, and not the last one of a prepared primary`,
    details: {
      path: directory,
      pointNumber: state.number,
      pointKind: state.kind,
      cutTimeMs: state.cutTimeMs,
    },
  })
}

/** A planned failover loses nothing: it takes what was sent last. */
function plannedChoice(choice: RecoveryPointChoice): RecoveryPointChoice {
  if (choice === 'Latest' || choice === 'LatestProcessed') return 'LatestProcessed'
  const problem = { path: 'point', value: JSON.stringify(choice), range: 'Latest or LatestProcessed' }
  throw optionOutOfRange(problem, 'a planned failover takes the newest state')
}
