/**
 * The state directory of a primary side, open: its lock and its database.
 *
 * Whatever must hold together happens in one transaction. A change of state is compared and set: it names the state it
 * starts from, and writes its journal row before the new state takes effect, so no two deciders can both win.
 * `db` is the typed door for queries that have no method here.
 */

import { join } from 'node:path'
import type { Kysely, Transaction } from 'kysely'
import type { Clock } from '../clock.js'
import { SecondsiteError } from '../errors.js'
import type { PointKind, ReplicationState } from '../states.js'
import { type OpenDatabase, openDatabase } from './database.js'
import { type LockedDirectory, openLocked } from './lock.js'
import {
  type Cycle,
  type Disk,
  type JournalEntry,
  type Machine,
  type NewCycle,
  type NewDisk,
  type NewLog,
  type NewMachine,
  type QueuedLog,
  STATE_DATABASE,
  type Statistics,
  type StateSchema,
} from './state-schema.js'

/** The database file in the state directory. */
const STATE_FILE = 'state.db'

/** A change of state, with who asked for it and why. */
export interface StateChange {
  readonly machineId: string
  readonly trigger: string
  readonly from: ReplicationState
  readonly to: ReplicationState
  /** Who asked: a user name, or `engine` for what happens by itself. */
  readonly operator: string
  readonly reason: string
}

/** Further writes of the same transaction. */
export type InTransaction = (transaction: Transaction<StateSchema>) => Promise<void>

/** Options of {@link StateStore.addCycle}. */
export interface AddCycleOptions {
  readonly also?: InTransaction | undefined
  /** Numbers of the cycles whose place it takes. */
  readonly replaces?: readonly number[]
}

/** What is on disk about machines, their disks, logs and cycles. */
export class StateStore implements AsyncDisposable {
  readonly directory: string
  readonly db: Kysely<StateSchema>
  readonly #database: OpenDatabase<StateSchema>
  readonly #lock: LockedDirectory
  readonly #clock: Clock

  private constructor(lock: LockedDirectory, database: OpenDatabase<StateSchema>, clock: Clock) {
    this.directory = lock.path
    this.#lock = lock
    this.#database = database
    this.db = database.db
    this.#clock = clock
  }

  /**
   * Opens the state directory, creating what is missing.
   * @throws {STATE_IN_USE, STORE_VERSION_NEWER, STORE_CORRUPT, STORE_BUSY, STATE_DISK_FULL, ACCESS_DENIED, IO_FAILED}
   */
  static open(directory: string, clock: Clock): StateStore {
    const lock = openLocked(directory, 'STATE_IN_USE')
    try {
      const place = { path: join(directory, STATE_FILE), fullCode: 'STATE_DISK_FULL' as const }
      return new StateStore(lock, openDatabase<StateSchema>(STATE_DATABASE, place), clock)
    } catch (error) {
      lock.close()
      throw error
    }
  }

  /** Closes database and lock, in this order; calling it again does nothing. */
  async close(): Promise<void> {
    await this.#database.close()
    this.#lock.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Runs `action` in one transaction: all of it is durable when this resolves, or none of it. */
  atomically<Result>(action: (transaction: Transaction<StateSchema>) => Promise<Result>): Promise<Result> {
    return this.db.transaction().execute(action)
  }

  /** All machines by name. */
  machines(): Promise<Machine[]> {
    return this.db.selectFrom('machines').selectAll().orderBy('name').execute()
  }

  /** @throws {MACHINE_NOT_FOUND} */
  async machine(machineId: string): Promise<Machine> {
    const row = await this.db
      .selectFrom('machines')
      .selectAll()
      .where('machineId', '=', machineId)
      .executeTakeFirst()
    return row ?? notFound(machineId)
  }

  /** The machine of that name, if there is one. */
  machineNamed(name: string): Promise<Machine | undefined> {
    return this.db.selectFrom('machines').selectAll().where('name', '=', name).executeTakeFirst()
  }

  /** The disks of a machine in their order, without those that are being removed. */
  disks(machineId: string): Promise<Disk[]> {
    return this.db
      .selectFrom('disks')
      .selectAll()
      .where('machineId', '=', machineId)
      .where('isLeaving', '=', 0)
      .orderBy('position')
      .execute()
  }

  /**
   * Adds a machine with its disks and journals that.
   * @throws {MACHINE_EXISTS} when the name or one of the disks is protected already
   */
  async addMachine(
    machine: NewMachine,
    disks: readonly NewDisk[],
    operator: string,
    reason: string,
  ): Promise<void> {
    const { machineId, state } = machine
    const change = { machineId, trigger: 'enable', from: 'Disabled', to: state, operator, reason } as const
    await this.atomically(async (transaction) => {
      await refuseTaken(transaction, machine, disks)
      await this.#journal(transaction, change)
      await transaction.insertInto('machines').values(machine).execute()
      if (disks.length > 0)
        await transaction
          .insertInto('disks')
          .values([...disks])
          .execute()
    })
  }

  /** Removes a machine and all that hangs on it; its journal stays, with this as the last entry. */
  async removeMachine(change: StateChange): Promise<void> {
    await this.atomically(async (transaction) => {
      await this.#journal(transaction, change)
      await compareAndSet(transaction, change)
      await transaction.deleteFrom('machines').where('machineId', '=', change.machineId).execute()
    })
  }

  /**
   * Moves a machine from one state to another and writes the journal, in one transaction with `also`.
   * @throws {INVALID_STATE} when the machine is not in `change.from` any more; nothing has changed
   * @throws {STATE_DISK_FULL} when there is no space; nothing has changed
   */
  async transition(change: StateChange, also?: InTransaction): Promise<void> {
    await this.atomically(async (transaction) => {
      await this.#journal(transaction, change)
      await compareAndSet(transaction, change)
      await also?.(transaction)
    })
  }

  /** The journal of a machine, oldest first. */
  journal(machineId: string): Promise<JournalEntry[]> {
    return this.db
      .selectFrom('journal')
      .selectAll()
      .where('machineId', '=', machineId)
      .orderBy('entryId')
      .execute()
  }

  /**
   * Records a shipment: the cycle, its logs and `also` appear together, the cycles it replaces go, and the next one gets
   * the next number.
   */
  async addCycle(cycle: NewCycle, logs: readonly NewLog[], options: AddCycleOptions = {}): Promise<void> {
    const { machineId, cycleNumber } = cycle
    await this.atomically(async (transaction) => {
      await removeCycles(transaction, machineId, options.replaces ?? [])
      await transaction.insertInto('cycles').values(cycle).execute()
      if (logs.length > 0)
        await transaction
          .insertInto('logs')
          .values([...logs])
          .execute()
      const query = transaction.updateTable('machines').set({ nextCycleNumber: cycleNumber + 1 })
      await query.where('machineId', '=', machineId).where('nextCycleNumber', '<=', cycleNumber).execute()
      await options.also?.(transaction)
    })
  }

  /** Sending of a cycle begins: from here on it must not be changed, as the replica may have it. */
  async markShipping(machineId: string, cycleNumber: number): Promise<void> {
    const query = this.db.updateTable('cycles').set({ state: 'shipped' }).where('machineId', '=', machineId)
    await query.where('cycleNumber', '=', cycleNumber).where('state', '=', 'cut').execute()
  }

  /** Cycles that the replica has not applied, oldest first. */
  openCycles(machineId: string): Promise<Cycle[]> {
    const query = this.db.selectFrom('cycles').selectAll().where('machineId', '=', machineId)
    return query.where('state', '!=', 'applied').orderBy('cycleNumber').execute()
  }

  /** The newest shipment that the replica said it has applied; 0 when there is none. */
  async appliedShipment(machineId: string): Promise<number> {
    const query = this.db.selectFrom('cycles').select(({ fn }) => fn.max('cycleNumber').as('number'))
    const row = await query
      .where('machineId', '=', machineId)
      .where('state', '=', 'applied')
      .executeTakeFirst()
    return row?.number ?? 0
  }

  /** Forgets what the replica said it has applied: it has lost it. */
  async forgetApplied(machineId: string): Promise<void> {
    const query = this.db.deleteFrom('cycles').where('machineId', '=', machineId)
    await query.where('state', '=', 'applied').execute()
  }

  /** The logs of a cycle, by the order of their disks. */
  logsOfCycle(machineId: string, cycleNumber: number): Promise<QueuedLog[]> {
    return this.#logs(machineId).where('logs.cycleNumber', '=', cycleNumber).execute()
  }

  /** All logs of a machine that the replica has not applied, oldest first. */
  queuedLogs(machineId: string): Promise<QueuedLog[]> {
    return this.#logs(machineId).where('logs.state', '!=', 'applied').execute()
  }

  /** Logs that the replica's images hold and whose files may still be there. */
  appliedLogs(machineId: string): Promise<QueuedLog[]> {
    return this.#logs(machineId).where('logs.state', '=', 'applied').execute()
  }

  /** The replica holds the cycle in full: its logs count as received. Calling it again changes nothing. */
  async markReceived(machineId: string, cycleNumber: number, sentBytes: number): Promise<void> {
    const nowMs = this.#clock.nowMs()
    await this.atomically(async (transaction) => {
      const query = transaction.updateTable('cycles').where('machineId', '=', machineId)
      const changes = { state: 'received', receivedMs: nowMs, sentBytes } as const
      const open = query.where('cycleNumber', '=', cycleNumber).where('state', 'in', ['cut', 'shipped'])
      const { numUpdatedRows } = await open.set(changes).executeTakeFirstOrThrow()
      if (numUpdatedRows === 0n) return
      await setLogState(transaction, machineId, cycleNumber, 'received')
      await transaction
        .updateTable('machines')
        .set({ lastReceivedMs: nowMs })
        .where('machineId', '=', machineId)
        .execute()
    })
  }

  /**
   * The replica's image holds the cycle; older ones are forgotten. The rows of its logs stay until {@link forgetLogs}:
   * files go first.
   */
  async markApplied(machineId: string, cycleNumber: number): Promise<void> {
    const nowMs = this.#clock.nowMs()
    await this.atomically(async (transaction) => {
      const query = transaction.updateTable('cycles').where('machineId', '=', machineId)
      const open = query.where('cycleNumber', '=', cycleNumber).where('state', '!=', 'applied')
      const { numUpdatedRows } = await open
        .set({ state: 'applied', appliedMs: nowMs })
        .executeTakeFirstOrThrow()
      if (numUpdatedRows === 0n) return
      await setLogState(transaction, machineId, cycleNumber, 'applied')
      const own = transaction.selectFrom('cycles').where('machineId', '=', machineId)
      const { cutTimeMs, pointKind, kind } = await own
        .select(['cutTimeMs', 'pointKind', 'kind'])
        .where('cycleNumber', '=', cycleNumber)
        .executeTakeFirstOrThrow()
      await transaction
        .updateTable('machines')
        .set({ lastAppliedMs: nowMs, ...(kind === 'delta' ? cutApplied(pointKind, cutTimeMs) : {}) })
        .where('machineId', '=', machineId)
        .execute()
      const older = transaction.deleteFrom('cycles').where('machineId', '=', machineId)
      await older.where('cycleNumber', '<', cycleNumber).where('state', '=', 'applied').execute()
    })
  }

  /** Counters of the intervals kept, oldest first. */
  statistics(machineId: string): Promise<Statistics[]> {
    const query = this.db.selectFrom('statistics').selectAll().where('machineId', '=', machineId)
    return query.orderBy('startMs').execute()
  }

  /** Writes the counters of an interval. */
  async saveStatistics(row: Statistics): Promise<void> {
    const { countersJson, rpoJson } = row
    await this.db
      .insertInto('statistics')
      .values(row)
      .onConflict((clash) => clash.columns(['machineId', 'startMs']).doUpdateSet({ countersJson, rpoJson }))
      .execute()
  }

  /** Ends an interval and forgets those that ended before `forgetBeforeMs`. */
  async endStatistics(
    machineId: string,
    startMs: number,
    endMs: number,
    forgetBeforeMs: number,
  ): Promise<void> {
    await this.atomically(async (transaction) => {
      const ended = transaction.updateTable('statistics').set({ endMs }).where('machineId', '=', machineId)
      await ended.where('startMs', '=', startMs).execute()
      const old = transaction.deleteFrom('statistics').where('machineId', '=', machineId)
      await old.where('endMs', '<', forgetBeforeMs).execute()
    })
  }

  /** Removes the rows of logs whose files are gone. */
  async forgetLogs(logIds: readonly string[]): Promise<void> {
    if (logIds.length === 0) return
    await this.db
      .deleteFrom('logs')
      .where('logId', 'in', [...logIds])
      .execute()
  }

  #logs(machineId: string) {
    return this.db
      .selectFrom('logs')
      .innerJoin('disks', 'disks.diskId', 'logs.diskId')
      .selectAll('logs')
      .where('disks.machineId', '=', machineId)
      .orderBy('logs.cycleNumber')
      .orderBy('disks.position')
      .orderBy('logs.firstSequence')
  }

  async #journal(transaction: Transaction<StateSchema>, change: StateChange): Promise<void> {
    const { machineId, operator, reason, trigger, from, to } = change
    const row = {
      machineId,
      operator,
      reason,
      trigger,
      fromState: from,
      toState: to,
      timeMs: this.#clock.nowMs(),
    }
    await transaction.insertInto('journal').values(row).execute()
  }
}

async function compareAndSet(transaction: Transaction<StateSchema>, change: StateChange): Promise<void> {
  const { machineId, from, to, trigger } = change
  const query = transaction.updateTable('machines').set({ state: to }).where('machineId', '=', machineId)
  const { numUpdatedRows } = await query.where('state', '=', from).executeTakeFirstOrThrow()
  if (numUpdatedRows === 1n) return
  throw new SecondsiteError('INVALID_STATE', {
    message: `${trigger}: the machine is not in state ${from} any more`,
    details: { machine: machineId, state: from, trigger },
  })
}

/** @throws {MACHINE_EXISTS} when a machine of that name, or a disk of those paths, is protected already */
export async function refuseTaken(
  transaction: Transaction<StateSchema>,
  machine: { readonly name: string },
  disks: readonly NewDisk[],
): Promise<void> {
  const paths = disks.map((disk) => disk.path)
  const named = transaction.selectFrom('machines').select('name').where('name', '=', machine.name)
  const held = transaction
    .selectFrom('disks')
    .select('path as name')
    .where('path', 'in', paths.length > 0 ? paths : [''])
  const taken = (await named.executeTakeFirst()) ?? (await held.executeTakeFirst())
  if (taken === undefined) return
  throw new SecondsiteError('MACHINE_EXISTS', {
    message: `${taken.name} is protected already`,
    details: { machine: machine.name, reason: taken.name },
  })
}

async function removeCycles(
  transaction: Transaction<StateSchema>,
  machineId: string,
  cycleNumbers: readonly number[],
): Promise<void> {
  if (cycleNumbers.length === 0) return
  const own = transaction.selectFrom('disks').select('diskId').where('machineId', '=', machineId)
  const logs = transaction.deleteFrom('logs').where('cycleNumber', 'in', [...cycleNumbers])
  await logs.where('diskId', 'in', own).execute()
  const cycles = transaction.deleteFrom('cycles').where('machineId', '=', machineId)
  await cycles.where('cycleNumber', 'in', [...cycleNumbers]).execute()
}

async function setLogState(
  transaction: Transaction<StateSchema>,
  machineId: string,
  cycleNumber: number,
  state: 'received' | 'applied',
): Promise<void> {
  const own = transaction.selectFrom('disks').select('diskId').where('machineId', '=', machineId)
  const query = transaction.updateTable('logs').set({ state }).where('cycleNumber', '=', cycleNumber)
  await query.where('diskId', 'in', own).execute()
}

function notFound(machineId: string): never {
  throw new SecondsiteError('MACHINE_NOT_FOUND', {
    message: `no machine ${machineId}`,
    details: { machine: machineId },
  })
}

/** What the images show. Batches of a disk that joins leave the others at the cut where they were. */
function cutApplied(
  kind: PointKind,
  cutTimeMs: number,
): { lastAppliedCutMs: number; lastApplicationConsistentCutMs?: number } {
  const quiesced = kind === 'application-consistent' ? { lastApplicationConsistentCutMs: cutTimeMs } : {}
  return { lastAppliedCutMs: cutTimeMs, ...quiesced }
}
