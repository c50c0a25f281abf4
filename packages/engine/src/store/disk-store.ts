/**
 * What is on disk about the disks of a machine that come and go while it is protected.
 *
 * A disk that comes has its row before it has a tracking file, and one that goes keeps its row until its files are gone;
 * so whatever a crash leaves, the row says what is still to be done.
 */

import type { Kysely } from 'kysely'
import { type Disk, type NewDisk, type StateSchema } from './state-schema.js'
import { refuseTaken } from './state-store.js'

export class DiskStore {
  readonly #db: Kysely<StateSchema>

  constructor(db: Kysely<StateSchema>) {
    this.#db = db
  }

  /**
   * Adds a disk behind the others of its machine.
   * @throws {MACHINE_EXISTS} when it is protected already
   */
  async add(disk: Omit<NewDisk, 'position'>): Promise<void> {
    await this.#db.transaction().execute(async (transaction) => {
      await refuseTaken(transaction, { name: '' }, [{ ...disk, position: 0 }])
      const own = transaction.selectFrom('disks').where('machineId', '=', disk.machineId)
      const last = await own.select(({ fn }) => fn.max('position').as('position')).executeTakeFirst()
      const position = (last?.position ?? -1) + 1
      await transaction
        .insertInto('disks')
        .values({ ...disk, position })
        .execute()
    })
  }

  /** The disks of a machine whose first copy is not behind them, in their order. */
  uncopied(machineId: string): Promise<Disk[]> {
    const query = this.#db.selectFrom('disks').selectAll().where('machineId', '=', machineId)
    return query.where('isInitialDone', '=', 0).where('isLeaving', '=', 0).orderBy('position').execute()
  }

  /** A cut that follows everything queued is applied: what was copied to its end is copied. @returns those disks */
  async markCopied(machineId: string): Promise<Disk[]> {
    const copied = this.#db.updateTable('disks').set({ isInitialDone: 1 }).where('machineId', '=', machineId)
    const open = copied.where('isInitialDone', '=', 0).whereRef('initialNextOffset', '>=', 'sizeBytes')
    return open.returningAll().execute()
  }

  /** The disk is no part of its machine from here on; what is queued of it is forgotten. */
  async leave(diskId: string): Promise<void> {
    await this.#db.transaction().execute(async (transaction) => {
      await transaction.deleteFrom('logs').where('diskId', '=', diskId).execute()
      await transaction.deleteFrom('resyncRanges').where('diskId', '=', diskId).execute()
      await transaction.updateTable('disks').set({ isLeaving: 1 }).where('diskId', '=', diskId).execute()
    })
  }

  /** Disks that are being removed from a machine. */
  leaving(machineId: string): Promise<Disk[]> {
    const query = this.#db.selectFrom('disks').selectAll().where('machineId', '=', machineId)
    return query.where('isLeaving', '=', 1).execute()
  }

  /** Forgets a disk whose files are gone. */
  async forget(diskId: string): Promise<void> {
    await this.#db.deleteFrom('disks').where('diskId', '=', diskId).execute()
  }
}
