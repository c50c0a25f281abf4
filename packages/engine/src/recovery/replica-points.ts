/**
 * What a replica can show, and what is done with that beside replication: its recovery points are listed, viewed, restored,
 * compared, locked and tested.
 */

import type { ReplicationState } from '../states.js'
import { type AroundOptions, findWrite, readAround, type WritesAround } from './around.js'
import {
  type ChosenState,
  chooseState,
  chooseWrite,
  type KeptSpan,
  type RecoveryPointChoice,
  type StateInTime,
} from './choice.js'
import { type CutChurn, dismissSuspicions, readChurn, readNotices, type ReplicaNotice } from './churn.js'
import { identityOf, type RecoveryContext } from './context.js'
import { type DiskDifference, diffPoints } from './diff.js'
import { type DigestOptions, digestView } from './digest.js'
import {
  type FailoverSettings,
  type FailoverSettingsInput,
  parseFailoverSettings,
} from './failover-settings.js'
import { deletePoint, lockPoint, unlockPoint } from './locks.js'
import { barePoints, keptSpan, listPoints, type RecoveryPoint } from './points.js'
import { type RestoredDisk, type RestoreOptions, restoreView, verifyRestored } from './restore.js'
import { endExpiredTests, endTest, infoOf, type TestFailoverInfo } from './test-life.js'
import { TestFailover } from './test-failover.js'
import { PointView } from './view.js'

/** Options of {@link ReplicaPoints.startTestFailover}. */
export interface TestFailoverOptions {
  /** Default `LatestProcessed`. */
  readonly point?: RecoveryPointChoice
  /** Milliseconds after which it ends by itself; default never. */
  readonly lifetimeMs?: number
  /** The test of a consistency group that it is part of; default none. */
  readonly groupTestId?: string
}

/** The failover settings of a replica, and where they come from. */
export interface HeldSettings {
  /** What holds: what was set here, else what the primary says, else the defaults. */
  readonly settings: FailoverSettings
  readonly source: 'replica' | 'primary' | 'default'
  /** What the primary said last; null for nothing. */
  readonly primary: FailoverSettings | null
}

/** The part of a replica that takes nothing away from its primary. */
export class ReplicaPoints implements AsyncDisposable {
  /** @internal */
  readonly context: RecoveryContext
  readonly #close: () => Promise<void>
  readonly #views = new Set<PointView>()
  readonly #tests = new Map<string, TestFailover>()

  /** Made by `openReplica`. */
  constructor(context: RecoveryContext, close: () => Promise<void>) {
    this.context = context
    this.#close = close
  }

  get directory(): string {
    return this.context.directory
  }

  /** Name of the machine that it is the replica of. @throws {POINT_NOT_FOUND} when nothing was ever replicated */
  async machine(): Promise<string> {
    return (await identityOf(this.context)).machine
  }

  async state(): Promise<ReplicationState> {
    return (await identityOf(this.context)).state
  }

  /** What it can show, oldest first, the newest state last. @param options.deep - checks every byte that leads back */
  points(options: { readonly deep?: boolean } = {}): Promise<RecoveryPoint[]> {
    return listPoints(this.context, options.deep)
  }

  /** How much was changed, and how well that compresses, cut by cut, oldest first. */
  churn(): Promise<CutChurn[]> {
    return readChurn(this.context)
  }

  /**
   * What looked like encryption was none: the marks on points go, and such changes count as usual for this machine.
   * @returns how many cuts had looked so
   */
  dismissSuspicions(): Promise<number> {
    return dismissSuspicions(this.context)
  }

  /** What the replica found of itself and of what it was sent, newest last; its primary has been told. */
  notices(): Promise<ReplicaNotice[]> {
    return readNotices(this.context)
  }

  /** The time of which every write is kept; undefined where there is none. */
  async keptSpan(): Promise<KeptSpan | undefined> {
    return keptSpan(await this.context.recovery.keptLogs(), await barePoints(this.context))
  }

  /**
   * What was written around a time, with every write kept: how much in each interval, and the writes nearest to it, each of
   * which names the state right behind it. Without kept writes it says so, and gives the points.
   *
   * @example
   * const { moments } = await replica.around(Date.parse('2026-11-21T10:15:00Z'))
   * const last = moments.findLast(({ isBefore }) => isBefore)
   * if (last) await replica.restore({ sequence: last.sequence, disk: last.disk }, { directory: './before' })
   * @param time - Unix milliseconds, or nanoseconds as bigint
   * @throws {OPTION_OUT_OF_RANGE, LOG_CORRUPT}
   */
  async around(time: number | bigint, options: AroundOptions = {}): Promise<WritesAround> {
    const points = await this.points()
    return readAround(this.context, points, time, options)
  }

  /**
   * Opens a point for reading, while replication goes on; it stays as long as the view is open.
   * @throws {POINT_NOT_FOUND, POINT_NOT_EXACT, UNDO_DAMAGED}
   */
  async openView(point: RecoveryPointChoice = 'LatestProcessed'): Promise<PointView> {
    const view = await PointView.open(this.context, await this.choose(point))
    this.#views.add(view)
    return view
  }

  /**
   * Writes the disks of a point into a folder.
   * @throws as {@link openView}, and {PATH_EXISTS, DISK_FULL, ABORTED}; {DIGEST_MISMATCH} where it is verified
   */
  async restore(point: RecoveryPointChoice, options: RestoreOptions): Promise<RestoredDisk[]> {
    await using view = await PointView.open(this.context, await this.choose(point))
    const restored = await restoreView(this.context, view, options)
    if (options.verify) await verifyRestored(this.context, view, restored, options)
    return restored
  }

  /**
   * The digest of a point over all its disks: stored with the point, and computed where it is not. The first one reads the
   * disks, later ones what was changed between the points.
   * @throws as {@link openView}, and {REPLICA_DISK_FULL, ABORTED}
   */
  async digestPoint(point: RecoveryPointChoice, options: DigestOptions = {}): Promise<string> {
    await using view = await PointView.open(this.context, await this.choose(point))
    const { number } = view.state
    const isPoint = view.untilNs === undefined
    const row = (await this.context.recovery.points()).find(({ pointNumber }) => pointNumber === number)
    if (isPoint && row?.digest) return row.digest
    const digest = await digestView(this.context, view, options)
    if (isPoint) await this.context.recovery.setPoint(number, { digest })
    return digest
  }

  /** What was overwritten after one point and until another, by default the newest state. */
  async diff(
    from: RecoveryPointChoice,
    to: RecoveryPointChoice = 'LatestProcessed',
  ): Promise<DiskDifference[]> {
    const [older, newer] = [await this.choose(from), await this.choose(to)]
    const end = newer.state.isLatest ? undefined : newer.state.number
    return diffPoints(this.context, older.state.number, end)
  }

  /**
   * Nothing removes the point before that time, Unix milliseconds; a lock is never made shorter.
   * @returns until when it is locked
   * @throws {POINT_NOT_FOUND, OPTION_OUT_OF_RANGE}
   */
  lockPoint(number: number, untilMs: number): Promise<number> {
    return lockPoint(this.context, number, untilMs)
  }

  /** The rules hold for the point again. @throws {POINT_NOT_FOUND} */
  unlockPoint(number: number): Promise<void> {
    return unlockPoint(this.context, number)
  }

  /** Lets go of a point before the rules do. @throws {POINT_NOT_FOUND, POINT_LOCKED, POINT_IN_USE, OPTION_OUT_OF_RANGE} */
  deletePoint(number: number): Promise<void> {
    return deletePoint(this.context, number)
  }

  /**
   * Starts disks over a point that may be written to, beside replication; any number at once.
   * @throws {INVALID_STATE} once the replica is failed over
   * @throws {POINT_NOT_FOUND, POINT_NOT_EXACT, UNDO_DAMAGED}
   */
  async startTestFailover(options: TestFailoverOptions = {}): Promise<TestFailover> {
    const { point = 'LatestProcessed', lifetimeMs = null, groupTestId = null } = options
    const { machine, state } = await identityOf(this.context)
    this.context.next(state, 'startTestFailover', machine)
    const test = await TestFailover.start(this.context, await this.choose(point), {
      lifetimeMs,
      groupTestId,
    })
    this.#tests.set(test.id, test)
    return test
  }

  /** Test failovers of this replica, those that have ended as well, oldest first. */
  async testFailovers(): Promise<TestFailoverInfo[]> {
    return (await this.context.recovery.testFailovers()).map((row) => infoOf(this.context, row))
  }

  /**
   * Ends a test failover, with the machine that runs on it, and throws away what it wrote: one of this process, of another
   * one, which is asked to, or one that a process which died has left.
   * @throws {TEST_FAILOVER_NOT_FOUND}
   * @throws {TEST_FAILOVER_IN_USE} when the process that holds it does not end it
   * @throws {RUNNER_STOP_FAILED} when its machine does not end
   */
  async stopTestFailover(id: string): Promise<void> {
    const open = this.#tests.get(id)
    this.#tests.delete(id)
    await (open?.info.isHeld ? open.stop() : endTest(this.context, id))
  }

  /** Ends the test failovers whose lifetime has passed and whose process has died; opening a replica does it. @returns their ids */
  endExpiredTests(): Promise<string[]> {
    return endExpiredTests(this.context)
  }

  /**
   * What a failover needs besides disks; readable with the folder of the replica alone.
   * @throws {FAILOVER_SETTINGS_INVALID} when a newer primary has said what this version does not know
   */
  async failoverSettings(): Promise<HeldSettings> {
    const { primary, replica } = await this.context.recovery.failoverSettings()
    const read = (json: string | null): FailoverSettings | null =>
      json === null ? null : parseFailoverSettings(JSON.parse(json), `the replica in ${this.directory}`)
    const [said, own] = [read(primary), read(replica)]
    const source = own ? 'replica' : said ? 'primary' : 'default'
    return { settings: own ?? said ?? parseFailoverSettings({}), source, primary: said }
  }

  /**
   * Sets the failover settings here, above what the primary says; null takes them back.
   * @throws {FAILOVER_SETTINGS_INVALID} with every setting that is wrong; nothing has changed
   * @throws {POINT_NOT_FOUND} when nothing was ever replicated
   */
  async setFailoverSettings(settings: FailoverSettingsInput | null): Promise<HeldSettings> {
    await identityOf(this.context)
    const json = settings === null ? null : JSON.stringify(parseFailoverSettings(settings))
    await this.context.recovery.setFailoverSettings(json)
    return this.failoverSettings()
  }

  /** The state that a choice comes to. @throws {POINT_NOT_FOUND, POINT_NOT_EXACT} */
  protected async choose(choice: RecoveryPointChoice): Promise<ChosenState> {
    return this.chooseOf(await barePoints(this.context), choice)
  }

  /** The same among points that are listed already. */
  protected async chooseOf(
    points: readonly StateInTime[],
    choice: RecoveryPointChoice,
  ): Promise<ChosenState> {
    const span = keptSpan(await this.context.recovery.keptLogs(), points)
    const spans = span ? [span] : []
    if (typeof choice === 'string' || !('sequence' in choice))
      return chooseState(points, spans, choice, this.directory)
    return chooseWrite(points, spans, await findWrite(this.context, choice), this.directory)
  }

  /** Closes views and tests. A test ends with it. Calling it again does nothing. */
  async close(): Promise<void> {
    await this.closeWith(async () => {})
  }

  /** @param more - closed between the tests and the store */
  protected async closeWith(more: () => Promise<void>): Promise<void> {
    for (const view of this.#views) await view.close()
    const stopped = await Promise.allSettled([...this.#tests.values()].map((test) => test.stop()))
    this.#tests.clear()
    try {
      await more()
    } finally {
      await this.#close()
    }
    const failure = stopped.find((one) => one.status === 'rejected')
    if (failure) throw failure.reason
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
