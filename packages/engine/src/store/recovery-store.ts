/**
 * Points, kept logs and failovers of a replica: the rows, and who may change them when.
 *
 * More than one process looks at a store: the one that applies, and commands that list points or start failovers. What
 * decides is one transaction that writes first, so that each sees what the other has decided: a cycle is marked as applying
 * together with the point whose undo it writes, and a state that is not applied over is marked before it is read.
 */

import { sql, type Transaction } from 'kysely'
import type { Clock } from '../clock.js'
import { SecondsiteError } from '../errors.js'
import {
  type HeldFailoverSettings,
  heldFailoverSettings,
  withFailoverSettings,
} from './failover-settings-column.js'
import type { FailoverRow, KeptLog, Point, TestFailoverRow } from './recovery-schema.js'
import { parseRecoverySettings, type RecoverySettings } from './recovery-settings.js'
import type { Receipt, ReplicaSchema } from './replica-schema.js'
import { HOUR_MS } from '../units.js'
import { refuseFailedOver, type ReplicaStore } from './replica-store.js'
import { withStoredPaths } from './store-paths.js'

type InTransaction = Transaction<ReplicaSchema>

/** Decides whether the present state becomes a point before it is overwritten. */
export type PointRule = (points: readonly Point[], latest: Receipt, settings: RecoverySettings) => boolean

/** The state that the images show. */
export interface LatestState {
  readonly cycle: Receipt
  /** Whether images are being written to: what they show is no state at all. */
  readonly isApplying: boolean
}

export class RecoveryStore {
  readonly #store: ReplicaStore
  readonly #clock: Clock

  constructor(store: ReplicaStore, clock: Clock) {
    this.#store = store
    this.#clock = clock
  }

  get directory(): string {
    return this.#store.directory
  }

  /** What the primary asks for. */
  async settings(): Promise<RecoverySettings> {
    return parseRecoverySettings((await this.#store.identity())?.recoveryJson ?? null)
  }

  /** Kept points, oldest first. */
  points(): Promise<Point[]> {
    return this.#store.db.selectFrom('points').selectAll().orderBy('pointNumber').execute()
  }

  /**
   * The images are about to change: from here on these cycles are applied again after a crash.
   * @returns the newest kept point: what it shows must be saved before it is overwritten; null without one
   * @throws {REPLICA_FAILED_OVER} when the images are not the primary's any more; nothing has changed
   */
  beginApply(cycleNumbers: readonly number[], rule: PointRule): Promise<number | null> {
    return this.#store.exclusively(async (transaction) => {
      const identity = await identityOf(transaction)
      refuseFailedOver(this.directory, identity)
      const latest = await latestOf(transaction)
      const points = await pointsOf(transaction)
      const settings = parseRecoverySettings(identity?.recoveryJson ?? null)
      if (latest && !latest.isApplying) {
        const older = points.filter((point) => point.pointNumber < latest.cycle.cycleNumber)
        const isDue = rule(older, latest.cycle, settings)
        if (isDue) points.splice(older.length, 1, await keepPoint(transaction, latest.cycle, settings))
      }
      const query = transaction.updateTable('cycles').set({ state: 'applying' })
      await query
        .where('cycleNumber', 'in', [...cycleNumbers])
        .where('state', 'in', ['received', 'applying'])
        .execute()
      return points.at(-1)?.pointNumber ?? null
    })
  }

  /** What the images show; undefined before the end of initial replication. */
  latest(): Promise<LatestState | undefined> {
    return this.#store.atomically(latestOf)
  }

  /**
   * Keeps a point from being removed for a while, long enough to pin it. The present state becomes a point for it.
   * @returns the point; undefined when the present state is asked for while images are being written to
   */
  hold(pointNumber: number | 'latest', holdMs: number): Promise<Point | undefined> {
    const heldUntilMs = this.#clock.nowMs() + holdMs
    return this.#store.exclusively(async (transaction) => {
      const latest = await latestOf(transaction)
      if (pointNumber === 'latest' && (latest === undefined || latest.isApplying)) return undefined
      const number = pointNumber === 'latest' ? (latest?.cycle.cycleNumber ?? 0) : pointNumber
      const held = (await pointsOf(transaction)).find((point) => point.pointNumber === number)
      if (held) return setHeld(transaction, held, heldUntilMs)
      const isLatest = latest?.cycle.cycleNumber === number && !latest.isApplying
      if (!isLatest) throw noPoint(this.directory, `point ${number} is not there any more`, { point: number })
      return insertPoint(transaction, latest.cycle, { isTransient: 1, heldUntilMs })
    })
  }

  /**
   * Locks a point, never for shorter than it was. The newest state becomes a point of its own for it.
   * @returns Unix milliseconds until which it is locked
   * @throws {POINT_NOT_FOUND}
   */
  lockPoint(pointNumber: number, untilMs: number): Promise<number> {
    return this.#store.exclusively(async (transaction) => {
      const latest = await latestOf(transaction)
      const isLatest = latest?.cycle.cycleNumber === pointNumber
      const held = (await pointsOf(transaction)).find((point) => point.pointNumber === pointNumber)
      const isListed = held !== undefined && (held.isTransient === 0 || isLatest)
      if (!isListed && !(latest && isLatest && !latest.isApplying))
        throw noPoint(this.directory, `there is no point ${pointNumber}`, { point: pointNumber })
      const lockedUntilMs = Math.max(untilMs, held?.lockedUntilMs ?? 0)
      const values = { lockedUntilMs, isTransient: 0 }
      if (held === undefined && latest) await insertPoint(transaction, latest.cycle, values)
      const query = transaction.updateTable('points').set(values)
      await query.where('pointNumber', '=', pointNumber).execute()
      return lockedUntilMs
    })
  }

  /**
   * Makes a point one that no rule counts, so that it goes with the next expiry, unless somebody is about to read it.
   * @returns the point when it is locked: nothing has changed
   */
  async deletePoint(pointNumber: number): Promise<Point | undefined> {
    const nowMs = this.#clock.nowMs()
    return this.#store.exclusively(async (transaction) => {
      const point = (await pointsOf(transaction)).find((one) => one.pointNumber === pointNumber)
      if (point && (point.lockedUntilMs ?? 0) > nowMs) return point
      const query = transaction.updateTable('points').set({ isTransient: 1 })
      await query.where('pointNumber', '=', pointNumber).execute()
      return undefined
    })
  }

  /**
   * Removes the rows of the points that a rule names, which sees them as they are then; their files go afterwards. Those that
   * somebody is about to pin, and that of a failover, which nobody need have open, are in use.
   * @returns the points that stay, oldest first
   */
  expirePoints(
    rule: (points: readonly Point[], inUse: readonly number[]) => readonly number[],
  ): Promise<Point[]> {
    const nowMs = this.#clock.nowMs()
    return this.#store.exclusively(async (transaction) => {
      const points = await pointsOf(transaction)
      const held = points.filter(({ heldUntilMs }) => heldUntilMs > nowMs)
      const failover = await transaction.selectFrom('failover').select('pointNumber').executeTakeFirst()
      const inUse = [...held, ...(failover ? [failover] : [])].map(({ pointNumber }) => pointNumber)
      const expired = rule(points, inUse)
      if (expired.length > 0)
        await transaction
          .deleteFrom('points')
          .where('pointNumber', 'in', [...expired])
          .execute()
      return points.filter(({ pointNumber }) => !expired.includes(pointNumber))
    })
  }

  /** Removes the rows of points; their files go afterwards. */
  async removePoints(pointNumbers: readonly number[]): Promise<void> {
    if (pointNumbers.length === 0) return
    await this.#store.db
      .deleteFrom('points')
      .where('pointNumber', 'in', [...pointNumbers])
      .execute()
  }

  /**
   * The image of a disk is lost: points show it no more, and those that showed nothing else go, with locks and all; kept logs
   * of it go as well. It counts as whole again once a cut is applied.
   */
  forgetDisk(diskId: string): Promise<void> {
    return this.#store.exclusively(async (transaction) => {
      for (const point of await pointsOf(transaction)) {
        const sizes = Object.entries(sizesOf(point)).filter(([id]) => id !== diskId)
        const sizesJson = JSON.stringify(Object.fromEntries(sizes))
        const { pointNumber } = point
        const changed = transaction.updateTable('points').set({ sizesJson })
        await changed.where('pointNumber', '=', pointNumber).execute()
        const emptied = transaction.deleteFrom('points').where('sizesJson', '=', '{}')
        await emptied.where('pointNumber', '=', pointNumber).execute()
      }
      await transaction.deleteFrom('keptLogs').where('diskId', '=', diskId).execute()
      const disk = transaction.updateTable('disks').where('diskId', '=', diskId)
      await disk.set({ isImageWhole: 0, imageSizeBytes: 0 }).execute()
    })
  }

  async setPoint(
    pointNumber: number,
    values: Partial<Pick<Point, 'digest' | 'lockedUntilMs'>>,
  ): Promise<void> {
    await this.#store.db.updateTable('points').set(values).where('pointNumber', '=', pointNumber).execute()
  }

  /** Logs that were kept after they were applied, in the order of their chain. */
  keptLogs(): Promise<KeptLog[]> {
    const logs = this.#store.db.selectFrom('keptLogs').selectAll().orderBy('cycleNumber')
    // Logs of one disk in one cycle were added in the order of their chain; their ids have none.
    return logs.orderBy(sql`rowid`).execute()
  }

  async addKeptLogs(logs: readonly KeptLog[]): Promise<void> {
    if (logs.length === 0) return
    const query = this.#store.db
      .insertInto('keptLogs')
      .values(logs.map((log) => withStoredPaths(this.#store.directory, log)))
    await query.onConflict((clash) => clash.doNothing()).execute()
  }

  async removeKeptLogs(logIds: readonly string[]): Promise<void> {
    if (logIds.length === 0) return
    await this.#store.db
      .deleteFrom('keptLogs')
      .where('logId', 'in', [...logIds])
      .execute()
  }

  /** What the replica holds for a failover: said by the primary, and set here. */
  async failoverSettings(): Promise<HeldFailoverSettings> {
    return heldFailoverSettings((await this.#store.identity())?.failoverSettingsJson ?? null)
  }

  /** Sets them here; null takes back what was set here. */
  async setFailoverSettings(replica: string | null): Promise<void> {
    await this.#store.exclusively(async (transaction) => {
      const column = (await identityOf(transaction))?.failoverSettingsJson ?? null
      const failoverSettingsJson = withFailoverSettings(column, { replica })
      await transaction.updateTable('identity').set({ failoverSettingsJson }).execute()
    })
  }

  testFailovers(): Promise<TestFailoverRow[]> {
    return this.#store.db.selectFrom('testFailovers').selectAll().orderBy('startedMs').execute()
  }

  async addTestFailover(row: TestFailoverRow): Promise<void> {
    const stored = withStoredPaths(this.#store.directory, row)
    await this.#store.db.insertInto('testFailovers').values(stored).execute()
  }

  async endTestFailover(testId: string): Promise<void> {
    const query = this.#store.db.updateTable('testFailovers').set({ endedMs: this.#clock.nowMs() })
    await query.where('testId', '=', testId).execute()
  }

  /** The failover that has begun; undefined without one. */
  failover(): Promise<FailoverRow | undefined> {
    return this.#store.db.selectFrom('failover').selectAll().executeTakeFirst()
  }

  async setFailover(values: Partial<FailoverRow>): Promise<void> {
    await this.#store.db.updateTable('failover').set(values).execute()
  }
}

/** Unix milliseconds at which the newest test failover of a replica began; null before the first. */
export async function lastTestFailoverMs({ db }: ReplicaStore): Promise<number | null> {
  const query = db.selectFrom('testFailovers').select(({ fn }) => fn.max('startedMs').as('startedMs'))
  return (await query.executeTakeFirst())?.startedMs ?? null
}

/** Bytes of the disks that a point shows, by their ids. */
export function sizesOf({ sizesJson }: Pick<Point, 'sizesJson'>): Readonly<Record<string, number>> {
  return JSON.parse(sizesJson) as Record<string, number>
}

export function noPoint(
  directory: string,
  reason: string,
  details: Record<string, string | number>,
): SecondsiteError {
  return new SecondsiteError('POINT_NOT_FOUND', {
    message: `no such recovery point in ${directory}: ${reason}`,
    details: { path: directory, reason, ...details },
  })
}

async function identityOf(transaction: InTransaction) {
  return transaction.selectFrom('identity').selectAll().executeTakeFirst()
}

function pointsOf(transaction: InTransaction): Promise<Point[]> {
  return transaction.selectFrom('points').selectAll().orderBy('pointNumber').execute()
}

/** Batches of initial replication are no state of the disks, only a delta is; those of a disk that joins change no other. */
async function latestOf(transaction: InTransaction): Promise<LatestState | undefined> {
  const applied = transaction.selectFrom('cycles').selectAll().where('state', '=', 'applied')
  const newest = applied.where('kind', '=', 'delta').orderBy('cycleNumber', 'desc')
  const cycle = await newest.executeTakeFirst()
  const whole = transaction.selectFrom('disks').select('diskId').where('isImageWhole', '=', 1)
  if (cycle === undefined || (await whole.executeTakeFirst()) === undefined) return undefined
  const applying = await transaction
    .selectFrom('cycles')
    .select('cycleNumber')
    .where('state', '=', 'applying')
    .executeTakeFirst()
  return { cycle, isApplying: applying !== undefined }
}

async function insertPoint(
  transaction: InTransaction,
  cycle: Receipt,
  values: Partial<Point>,
): Promise<Point> {
  const shown = await transaction.selectFrom('disks').selectAll().where('isImageWhole', '=', 1).execute()
  const identity = await identityOf(transaction)
  const row = {
    pointNumber: cycle.cycleNumber,
    kind: cycle.pointKind,
    cutTimeMs: cycle.cutTimeMs,
    appliedMs: cycle.appliedMs ?? cycle.cutTimeMs,
    fencingNumber: identity?.fencingNumber ?? 0,
    sizesJson: JSON.stringify(Object.fromEntries(shown.map((disk) => [disk.diskId, disk.sizeBytes]))),
    digest: null,
    groupPointId: cycle.groupPointId,
    lockedUntilMs: null,
    isTransient: 0,
    heldUntilMs: 0,
    ...values,
  }
  await transaction.insertInto('points').values(row).execute()
  return row
}

/** A lock is never made shorter: somebody may have locked the point while it was the newest state. */
function lockOf(
  { cutTimeMs }: Receipt,
  { retention }: RecoverySettings,
  held: Point | undefined,
): Partial<Point> {
  if (retention.lockHours === 0) return {}
  return { lockedUntilMs: Math.max(cutTimeMs + retention.lockHours * HOUR_MS, held?.lockedUntilMs ?? 0) }
}

/** A point that existed for a view alone becomes one that the rules count. */
async function keepPoint(
  transaction: InTransaction,
  cycle: Receipt,
  settings: RecoverySettings,
): Promise<Point> {
  const held = (await pointsOf(transaction)).find((point) => point.pointNumber === cycle.cycleNumber)
  const values = { ...lockOf(cycle, settings, held), isTransient: 0 }
  if (held === undefined) return insertPoint(transaction, cycle, values)
  const query = transaction.updateTable('points').set(values).where('pointNumber', '=', cycle.cycleNumber)
  await query.execute()
  return { ...held, ...values }
}

/** A hold is never made shorter: somebody else may not have pinned the point yet. */
async function setHeld(transaction: InTransaction, point: Point, untilMs: number): Promise<Point> {
  const heldUntilMs = Math.max(untilMs, point.heldUntilMs)
  const query = transaction.updateTable('points').set({ heldUntilMs })
  await query.where('pointNumber', '=', point.pointNumber).execute()
  return { ...point, heldUntilMs }
}
