/**
 * What is on disk about the resynchronizations of a machine: the open pass, and per disk how far it is.
 */

import type { Kysely, Transaction } from 'kysely'
import {
  LOG_KINDS,
  type LogKind,
  type NewResync,
  type Resync,
  type ResyncState,
  type StateSchema,
} from './state-schema.js'

/** Bytes that one step of a pass has compared. */
export interface ComparedBytes {
  readonly comparedBytes: number
  readonly equalBytes: number
}

export class ResyncStore {
  readonly #db: Kysely<StateSchema>

  constructor(db: Kysely<StateSchema>) {
    this.#db = db
  }

  /** The pass that is not complete, whatever interrupted it. */
  openResync(machineId: string): Promise<Resync | undefined> {
    const query = this.#db.selectFrom('resyncs').selectAll().where('machineId', '=', machineId)
    return query.where('state', '!=', 'complete').orderBy('startedMs', 'desc').executeTakeFirst()
  }

  /** @throws {INTERNAL} when there is no such pass */
  resync(resyncId: string): Promise<Resync> {
    return this.#db
      .selectFrom('resyncs')
      .selectAll()
      .where('resyncId', '=', resyncId)
      .executeTakeFirstOrThrow()
  }

  /**
   * Records a new pass. What was queued before is superseded: its ranges are candidates of the pass, so the queue and
   * every earlier pass end in the same transaction. Disks that were not copied are candidates as a whole, so the pass is
   * their first copy.
   */
  async addResync(row: NewResync, uncopied: readonly string[] = []): Promise<Resync> {
    const { machineId, resyncId } = row
    await this.#db.transaction().execute(async (transaction) => {
      await transaction
        .deleteFrom('resyncs')
        .where('machineId', '=', machineId)
        .where('state', '!=', 'complete')
        .execute()
      await dropQueue(transaction, machineId)
      await transaction.insertInto('resyncs').values(row).execute()
      for (const diskId of uncopied) {
        const copied = transaction.updateTable('disks').where('diskId', '=', diskId)
        await copied.set((disk) => ({ initialNextOffset: disk.ref('sizeBytes') })).execute()
      }
    })
    return this.resync(resyncId)
  }

  /** The open pass of a machine is worth nothing: the next one begins anew. Its shipments stay until then. */
  async forgetOpen(machineId: string): Promise<void> {
    const query = this.#db.deleteFrom('resyncs').where('machineId', '=', machineId)
    await query.where('state', '!=', 'complete').execute()
  }

  async setResyncState(resyncId: string, state: ResyncState): Promise<void> {
    await this.#db.updateTable('resyncs').set({ state }).where('resyncId', '=', resyncId).execute()
  }

  /** Ends the open pass of a machine; part of the transaction that changes its state. */
  async completeResync(
    transaction: Transaction<StateSchema>,
    machineId: string,
    endedMs: number,
  ): Promise<void> {
    const query = transaction.updateTable('resyncs').set({ state: 'complete', endedMs })
    await query.where('machineId', '=', machineId).where('state', '!=', 'complete').execute()
  }

  /** Where the pass goes on with a disk. */
  async resyncOffset(resyncId: string, diskId: string): Promise<number> {
    const query = this.#db.selectFrom('resyncRanges').select('lengthBytes').where('resyncId', '=', resyncId)
    return (await query.where('diskId', '=', diskId).executeTakeFirst())?.lengthBytes ?? 0
  }

  /** Moves a disk of the pass to `nextOffset` and counts what that took. */
  async advanceResync(
    transaction: Transaction<StateSchema>,
    resyncId: string,
    diskId: string,
    nextOffset: number,
    counted: ComparedBytes,
  ): Promise<void> {
    const range = { resyncId, diskId, offset: 0, lengthBytes: nextOffset, isVerified: 1 }
    await transaction
      .insertInto('resyncRanges')
      .values(range)
      .onConflict((clash) =>
        clash.columns(['resyncId', 'diskId', 'offset']).doUpdateSet({ lengthBytes: nextOffset }),
      )
      .execute()
    await transaction
      .updateTable('resyncs')
      .set((row) => ({
        comparedBytes: row('comparedBytes', '+', counted.comparedBytes),
        equalBytes: row('equalBytes', '+', counted.equalBytes),
      }))
      .where('resyncId', '=', resyncId)
      .execute()
  }
}

/** Forgets every shipment of a machine that the replica has not applied. @param kinds - only of these; default all */
export async function dropQueue(
  transaction: Transaction<StateSchema>,
  machineId: string,
  kinds: readonly LogKind[] = LOG_KINDS,
): Promise<void> {
  const own = transaction.selectFrom('disks').select('diskId').where('machineId', '=', machineId)
  const logs = transaction
    .deleteFrom('logs')
    .where('diskId', 'in', own)
    .where('kind', 'in', [...kinds])
  await logs.where('state', '!=', 'applied').execute()
  const cycles = transaction.deleteFrom('cycles').where('machineId', '=', machineId)
  await cycles
    .where('kind', 'in', [...kinds])
    .where('state', '!=', 'applied')
    .execute()
}
