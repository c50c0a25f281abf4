/**
 * Rows of what a replica has found out about the writes it was brought, and of what its primary is to be told.
 */

import type { Clock } from '../clock.js'
import type { ErrorDetails } from '../errors.js'
import { DAY_MS, HOUR_MS } from '../units.js'
import type { ChurnRow, NoticeCode, NoticeRow } from './insight-schema.js'
import type { ReplicaStore } from './replica-store.js'

/** Rows of churn are kept as long as a point needs them, and so many days: 89 280 rows with a cut every 30 s. */
const CHURN_KEPT_DAYS = 31
/** Notices kept. */
const NOTICES_KEPT_MAX = 1000
/** The same trouble is told again after this. */
const NOTICE_REPEAT_MS = HOUR_MS

export class InsightStore {
  readonly #store: ReplicaStore
  readonly #clock: Clock

  constructor(store: ReplicaStore, clock: Clock) {
    this.#store = store
    this.#clock = clock
  }

  /** What cuts brought, oldest first. */
  churn(): Promise<ChurnRow[]> {
    return this.#store.db.selectFrom('churn').selectAll().orderBy('cycleNumber').execute()
  }

  /** The newest rows before a cut, the newest first. */
  churnBefore(cycleNumber: number, countMax: number): Promise<ChurnRow[]> {
    const query = this.#store.db.selectFrom('churn').selectAll().where('cycleNumber', '<', cycleNumber)
    return query.orderBy('cycleNumber', 'desc').limit(countMax).execute()
  }

  async hasChurn(cycleNumber: number): Promise<boolean> {
    const query = this.#store.db.selectFrom('churn').select('cycleNumber')
    return (await query.where('cycleNumber', '=', cycleNumber).executeTakeFirst()) !== undefined
  }

  /** The first measurement counts: one after a crash would find the image changed already. */
  async addChurn(row: ChurnRow): Promise<void> {
    const query = this.#store.db.insertInto('churn').values(row)
    await query.onConflict((clash) => clash.doNothing()).execute()
  }

  /** @param oldestPointMs - cut of the oldest point; rows from there on stay */
  async pruneChurn(oldestPointMs: number): Promise<void> {
    const sinceMs = Math.min(oldestPointMs, this.#clock.nowMs() - CHURN_KEPT_DAYS * DAY_MS)
    await this.#store.db.deleteFrom('churn').where('cutTimeMs', '<', sinceMs).execute()
  }

  /** What looked like encryption was none: it counts as usual from now on. @returns how many cuts */
  async dismissSuspicions(): Promise<number> {
    const query = this.#store.db.updateTable('churn').set({ isSuspicious: 0 }).where('isSuspicious', '=', 1)
    return Number((await query.executeTakeFirstOrThrow()).numUpdatedRows)
  }

  /** Remembers something for the primary; the same again within an hour is not told twice. */
  async addNotice(code: NoticeCode, details: ErrorDetails): Promise<void> {
    const timeMs = this.#clock.nowMs()
    const detailsJson = JSON.stringify(details)
    await this.#store.atomically(async (transaction) => {
      const same = transaction.selectFrom('notices').select('noticeId').where('code', '=', code)
      const recent = same
        .where('detailsJson', '=', detailsJson)
        .where('timeMs', '>', timeMs - NOTICE_REPEAT_MS)
      if (await recent.executeTakeFirst()) return
      const { insertId } = await transaction
        .insertInto('notices')
        .values({ timeMs, code, detailsJson })
        .executeTakeFirstOrThrow()
      const oldest = Number(insertId) - NOTICES_KEPT_MAX
      await transaction.deleteFrom('notices').where('noticeId', '<=', oldest).execute()
    })
  }

  /** Newest last. */
  notices(): Promise<NoticeRow[]> {
    return this.#store.db.selectFrom('notices').selectAll().orderBy('noticeId').execute()
  }

  untoldNotices(): Promise<NoticeRow[]> {
    const query = this.#store.db.selectFrom('notices').selectAll().where('isTold', '=', 0)
    return query.orderBy('noticeId').execute()
  }

  async markTold(noticeIds: readonly number[]): Promise<void> {
    if (noticeIds.length === 0) return
    const query = this.#store.db.updateTable('notices').set({ isTold: 1 })
    await query.where('noticeId', 'in', [...noticeIds]).execute()
  }
}
