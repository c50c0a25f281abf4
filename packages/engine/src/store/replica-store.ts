/**
 * The folder of a replica, open: its lock and its database.
 *
 * A store belongs to one relationship from its first use on. Another relationship, another disk or another size is
 * refused, never overwritten; a primary with a lower fencing number is refused too. A watermark moves only together
 * with the rows it speaks of.
 */

import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Kysely, sql, type Transaction } from 'kysely'
import type { Clock } from '../clock.js'
import { parseShrinks } from '../disk-shrink.js'
import { SecondsiteError } from '../errors.js'
import type { ReplicationState } from '../states.js'
import { type OpenDatabase, openDatabase } from './database.js'
import { type LockedDirectory, openLocked } from './lock.js'
import {
  type Identity,
  type NewReceipt,
  type NewSpooledLog,
  type Receipt,
  type ReceiptState,
  REPLICA_DATABASE,
  type ReplicaDisk,
  type ReplicaSchema,
  type SpooledLog,
} from './replica-schema.js'
import {
  checkDisks,
  checkOwner,
  type Claim,
  claimedSizeBytes,
  foreign,
  settingsColumn,
  withFreeName,
} from './replica-claim.js'
import { StorePaths, withStoredPaths } from './store-paths.js'

/** States in which the images are not the primary's any more. */
const FAILED_OVER: readonly ReplicationState[] = [
  'RecoveryInProgress',
  'FailedOverWaitingCompletion',
  'FailedOver',
  'FailbackComplete',
  'Disabled',
]

/** What a store knows of a relationship. */
const ADOPTED_ANEW = [
  'failover',
  'points',
  'keptLogs',
  'churn',
  'notices',
  'logs',
  'cycles',
  'disks',
  'identity',
] as const

/** The database file in the store's folder. */
const STORE_FILE = 'store.db'

/** A change of the replica's state. */
export interface ReplicaChange {
  readonly trigger: string
  readonly from: ReplicationState
  readonly to: ReplicationState
  readonly operator: string
  readonly reason: string
}

/** How much of a spooled log is durable. */
export interface SpoolProgress {
  readonly logDurableBytes: number
  readonly indexDurableBytes: number
}

/** The newest shipment on each side of the spool; 0 when there is none. */
export interface Watermarks {
  readonly receivedShipment: number
  readonly appliedShipment: number
}

/** What is on disk about a replica. */
export class ReplicaStore implements AsyncDisposable {
  readonly directory: string
  readonly db: Kysely<ReplicaSchema>
  readonly #database: OpenDatabase<ReplicaSchema>
  readonly #lock: LockedDirectory | undefined
  readonly #clock: Clock

  private constructor(directory: string, lock: LockedDirectory | undefined, clock: Clock) {
    this.directory = resolve(directory)
    this.#lock = lock
    this.#database = openStoreDatabase(this.directory)
    this.db = this.#database.db
    this.#clock = clock
  }

  /** The file by which a folder is known to hold a store. */
  static fileOf(directory: string): string {
    return join(directory, STORE_FILE)
  }

  /**
   * Opens the folder of a replica, creating what is missing.
   * @throws {STORE_IN_USE, STORE_VERSION_NEWER, STORE_CORRUPT, STORE_BUSY, REPLICA_DISK_FULL, ACCESS_DENIED, IO_FAILED}
   */
  static open(directory: string, clock: Clock): ReplicaStore {
    const lock = openLocked(directory, 'STORE_IN_USE')
    try {
      return new ReplicaStore(directory, lock, clock)
    } catch (error) {
      lock.close()
      throw error
    }
  }

  /**
   * Opens the database beside the process that has the folder, which alone writes to spool and images.
   * @throws {REPLICA_NOT_FOUND, STORE_VERSION_NEWER, STORE_CORRUPT, STORE_BUSY, ACCESS_DENIED, IO_FAILED}
   */
  static openBeside(directory: string, clock: Clock): ReplicaStore {
    requireStore(directory)
    return new ReplicaStore(directory, undefined, clock)
  }

  /**
   * Asks whether a relationship that begins may have the folder: it holds no store, or that of one that has ended.
   * @throws {STORE_FOREIGN}, and as {@link openBeside}; nothing has changed
   */
  static async requireFree(directory: string, machine: string, clock: Clock): Promise<void> {
    if (!existsSync(ReplicaStore.fileOf(directory))) return
    await using store = ReplicaStore.openBeside(directory, clock)
    const identity = await store.identity()
    if (identity === undefined || identity.state === 'Disabled') return
    const reason = `it holds the replica of ${identity.machine}`
    throw foreign(directory, reason, { machine, heldFor: identity.machine })
  }

  /** Whether this process alone writes to spool and images. */
  get isOwner(): boolean {
    return this.#lock !== undefined
  }

  /** Closes database and lock, in this order; calling it again does nothing. */
  async close(): Promise<void> {
    await this.#database.close()
    this.#lock?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Runs `action` in one transaction: all of it is durable when this resolves, or none of it. */
  atomically<Result>(action: (transaction: Transaction<ReplicaSchema>) => Promise<Result>): Promise<Result> {
    return this.db.transaction().execute(action)
  }

  /**
   * The same, and no other process changes anything between what `action` reads and what it writes: the first statement
   * is a write, as one that only follows a read would fail where somebody else has written in between.
   */
  exclusively<Result>(action: (transaction: Transaction<ReplicaSchema>) => Promise<Result>): Promise<Result> {
    return this.atomically(async (transaction) => {
      await transaction.updateTable('identity').set({ onlyRow: 1 }).execute()
      return action(transaction)
    })
  }

  /** Whose replica this is; undefined before the first claim. */
  identity(): Promise<Identity | undefined> {
    return this.db.selectFrom('identity').selectAll().executeTakeFirst()
  }

  /**
   * Takes the store for a relationship, or confirms that it is its own; a higher fencing number, the size of a disk that has
   * grown, and disks that have joined the others are remembered.
   * @throws {STORE_FOREIGN} when it belongs to another relationship or disk, or to a larger one
   * @throws {FENCED} when a primary with a higher fencing number has been here
   * @throws {REPLICA_FAILED_OVER} when its images are not the primary's any more
   */
  claim(claim: Claim): Promise<Identity> {
    return this.exclusively(async (transaction) => {
      const identity = await transaction.selectFrom('identity').selectAll().executeTakeFirst()
      if (identity === undefined) return this.#take(transaction, claim)
      // Who knows that the replica was failed over knows more than that it is fenced.
      if (identity.relationshipId === claim.relationshipId) refuseFailedOver(this.directory, identity)
      checkOwner(this.directory, identity, claim)
      const held = await transaction.selectFrom('disks').selectAll().execute()
      checkDisks(this.directory, held, claim)
      const joining = claim.disks.filter(({ diskId }) => held.every((disk) => disk.diskId !== diskId))
      for (const disk of joining) {
        const row = withStoredPaths(this.directory, withFreeName(disk, held))
        await transaction.insertInto('disks').values(row).execute()
      }
      for (const disk of held) {
        const sizeBytes = claimedSizeBytes(claim, disk)
        const own = transaction.updateTable('disks').where('diskId', '=', disk.diskId)
        if (sizeBytes !== undefined) await own.set({ sizeBytes }).execute()
      }
      const { fencingNumber, recoveryJson } = claim
      const failoverSettingsJson = settingsColumn(identity.failoverSettingsJson, claim)
      const values = { fencingNumber, recoveryJson, failoverSettingsJson }
      await transaction.updateTable('identity').set(values).execute()
      return { ...identity, ...values }
    })
  }

  /**
   * Takes the store for a relationship whose images are there already: those of the primary that it was. What the store knew
   * of an earlier relationship that has ended goes. Calling it again with the same relationship does nothing.
   * @param replacedId - a relationship that ends with this one's beginning
   * @throws {STORE_FOREIGN} when it belongs to another relationship that has not ended
   */
  adopt(claim: Claim, replacedId?: string): Promise<void> {
    return this.atomically(async (transaction) => {
      const identity = await transaction.selectFrom('identity').selectAll().executeTakeFirst()
      if (identity?.relationshipId === claim.relationshipId) return
      const isEnded = identity?.state === 'Disabled' || identity?.relationshipId === replacedId
      if (identity && !isEnded) checkOwner(this.directory, identity, claim)
      for (const table of ADOPTED_ANEW) await transaction.deleteFrom(table).execute()
      // What was set at this site for a failover to it still holds for the next one.
      await this.#take(transaction, claim, identity?.failoverSettingsJson ?? null)
      const here = { state: 'Replicating', isInitialReplicationDone: 1 } as const
      await transaction.updateTable('identity').set(here).execute()
      await transaction.updateTable('disks').set({ isImageCreated: 1 }).execute()
    })
  }

  /** The disks of the replica. */
  disks(): Promise<ReplicaDisk[]> {
    return this.db.selectFrom('disks').selectAll().orderBy('name').execute()
  }

  /** Remembers that the image of a disk exists, and how large its file is at least. */
  async markImage(diskId: string, imageSizeBytes: number): Promise<void> {
    const values = { isImageCreated: 1, imageSizeBytes }
    await this.db.updateTable('disks').set(values).where('diskId', '=', diskId).execute()
  }

  /** A failover has given a disk the size that it had at its point. */
  async setSize(diskId: string, sizeBytes: number): Promise<void> {
    const values = { sizeBytes, imageSizeBytes: sizeBytes }
    await this.db.updateTable('disks').set(values).where('diskId', '=', diskId).execute()
  }

  /** How far the replica is, by the numbers of the shipments. */
  async watermarks(): Promise<Watermarks> {
    const newest = async (states: readonly ReceiptState[]): Promise<number> => {
      const query = this.db.selectFrom('cycles').select(({ fn }) => fn.max('cycleNumber').as('number'))
      const row = await query.where('state', 'in', [...states]).executeTakeFirst()
      return row?.number ?? 0
    }
    return {
      receivedShipment: await newest(['received', 'applying', 'applied']),
      appliedShipment: await newest(['applied']),
    }
  }

  /**
   * Moves the replica from one state to another and writes the journal, in one transaction with `also`.
   * @throws {INVALID_STATE} when the replica is not in `change.from` any more; nothing has changed
   */
  async transition(
    change: ReplicaChange,
    also?: (transaction: Transaction<ReplicaSchema>) => Promise<void>,
  ): Promise<void> {
    const { trigger, from, to, operator, reason } = change
    await this.atomically(async (transaction) => {
      const row = { trigger, operator, reason, fromState: from, toState: to, timeMs: this.#clock.nowMs() }
      await transaction.insertInto('journal').values(row).execute()
      const query = transaction.updateTable('identity').set({ state: to }).where('state', '=', from)
      const { numUpdatedRows } = await query.executeTakeFirstOrThrow()
      if (numUpdatedRows !== 1n) throw notInState(this.directory, change)
      await also?.(transaction)
    })
  }

  /**
   * Begins to receive a cycle. A cycle begun before keeps its rows, and with them its progress, when it is announced
   * with the same logs; announced with others (coalesced meanwhile, say) it begins anew.
   */
  async beginCycle(cycle: NewReceipt, logs: readonly NewSpooledLog[]): Promise<void> {
    await this.exclusively(async (transaction) => {
      refuseFailedOver(
        this.directory,
        await transaction.selectFrom('identity').selectAll().executeTakeFirst(),
      )
      await dropIfDifferent(transaction, cycle.cycleNumber, logs)
      await transaction
        .insertInto('cycles')
        .values(cycle)
        .onConflict((clash) => clash.doNothing())
        .execute()
      if (logs.length === 0) return
      await transaction
        .insertInto('logs')
        .values(logs.map((log) => withStoredPaths(this.directory, log)))
        .onConflict((clash) => clash.doNothing())
        .execute()
    })
  }

  /** Cycles that the images do not hold yet, oldest first. */
  openCycles(): Promise<Receipt[]> {
    return this.db
      .selectFrom('cycles')
      .selectAll()
      .where('state', '!=', 'applied')
      .orderBy('cycleNumber')
      .execute()
  }

  cycle(cycleNumber: number): Promise<Receipt | undefined> {
    const query = this.db.selectFrom('cycles').selectAll().where('cycleNumber', '=', cycleNumber)
    return query.executeTakeFirst()
  }

  /** The logs of a cycle, in the order they were announced: per disk the order of the chain. */
  logsOfCycle(cycleNumber: number): Promise<SpooledLog[]> {
    return this.db
      .selectFrom('logs')
      .selectAll()
      .where('cycleNumber', '=', cycleNumber)
      .orderBy(sql`rowid`)
      .execute()
  }

  /** Logs that the images hold and whose files may still be there. */
  appliedLogs(): Promise<SpooledLog[]> {
    return this.db.selectFrom('logs').selectAll().where('state', '=', 'applied').execute()
  }

  /** Forgets cycles that are not applied, with the rows of their logs. */
  async dropCycles(cycleNumbers: readonly number[]): Promise<void> {
    if (cycleNumbers.length === 0) return
    const query = this.db.deleteFrom('cycles').where('cycleNumber', 'in', [...cycleNumbers])
    await query.where('state', '!=', 'applied').execute()
  }

  /** Logs of which not all bytes are here: where shipping goes on. */
  unfinishedLogs(): Promise<SpooledLog[]> {
    return this.db
      .selectFrom('logs')
      .selectAll()
      .where('state', '=', 'spooling')
      .orderBy('cycleNumber')
      .execute()
  }

  /** Remembers how much of a log is durable; call it after the sync of the spool file, never before. */
  async setProgress(logId: string, progress: SpoolProgress): Promise<void> {
    await this.db.updateTable('logs').set(progress).where('logId', '=', logId).execute()
  }

  /**
   * All logs of the cycle are here and verified: the received watermark of each disk moves to its log.
   * @param isRebase - the chains begin anew, also those of disks that it brings no log for
   */
  async markReceived(cycleNumber: number, isRebase = false): Promise<void> {
    const receivedMs = this.#clock.nowMs()
    await this.atomically(async (transaction) => {
      const query = transaction.updateTable('cycles').set({ state: 'received', receivedMs })
      const open = query.where('cycleNumber', '=', cycleNumber).where('state', '=', 'receiving')
      if ((await open.executeTakeFirstOrThrow()).numUpdatedRows === 0n) return
      if (isRebase) await transaction.updateTable('disks').set({ receivedLogId: null }).execute()
      await moveWatermarks(transaction, cycleNumber, 'receivedLogId', 'received')
    })
  }

  /** The images hold these cycles, durably: the applied watermark of each disk moves to its newest log. */
  async markApplied(cycleNumbers: readonly number[]): Promise<void> {
    const appliedMs = this.#clock.nowMs()
    await this.atomically(async (transaction) => {
      for (const cycleNumber of cycleNumbers) {
        const query = transaction.updateTable('cycles').set({ state: 'applied', appliedMs })
        const open = query.where('cycleNumber', '=', cycleNumber).where('state', '=', 'applying')
        if ((await open.executeTakeFirstOrThrow()).numUpdatedRows === 0n) continue
        await moveWatermarks(transaction, cycleNumber, 'appliedLogId', 'applied')
        await noteDisks(transaction, cycleNumber)
      }
    })
  }

  /** Removes the rows of logs whose files are gone, and the cycles that have none left, but for the newest cut and later. */
  async forgetLogs(logIds: readonly string[]): Promise<void> {
    await this.atomically(async (transaction) => {
      await transaction
        .deleteFrom('logs')
        .where('logId', 'in', [...logIds])
        .execute()
      const newest = transaction
        .selectFrom('cycles')
        .select(({ fn }) => fn.max('cycleNumber').as('number'))
        .where('state', '=', 'applied')
      const delta = await newest.where('kind', '=', 'delta').executeTakeFirstOrThrow()
      // The newest cut says what the images show, also while batches of a disk that joins come after it.
      const number = delta.number ?? (await newest.executeTakeFirstOrThrow()).number
      const older = transaction.deleteFrom('cycles').where('cycleNumber', '<', number ?? 0)
      const held = transaction.selectFrom('logs').select('cycleNumber')
      await older.where('state', '=', 'applied').where('cycleNumber', 'not in', held).execute()
    })
  }

  async #take(
    transaction: Transaction<ReplicaSchema>,
    claim: Claim,
    heldSettings: string | null = null,
  ): Promise<Identity> {
    const { relationshipId, machine, fencingNumber, recoveryJson, disks } = claim
    const createdMs = this.#clock.nowMs()
    const identity = {
      relationshipId,
      machine,
      fencingNumber,
      createdMs,
      recoveryJson,
      failoverSettingsJson: settingsColumn(heldSettings, claim),
      state: 'WaitingForInitialReplication',
    } as const
    await transaction.insertInto('identity').values(identity).execute()
    if (disks.length > 0)
      await transaction
        .insertInto('disks')
        .values(disks.map((disk) => withStoredPaths(this.directory, disk)))
        .execute()
    return { ...identity, onlyRow: 1, isInitialReplicationDone: 0 }
  }
}

function openStoreDatabase(directory: string): OpenDatabase<ReplicaSchema> {
  const place = { path: ReplicaStore.fileOf(directory), fullCode: 'REPLICA_DISK_FULL' as const }
  return openDatabase(REPLICA_DATABASE, place, [new StorePaths(directory)])
}

/** @throws {REPLICA_NOT_FOUND} when the folder holds no store */
export function requireStore(directory: string): void {
  if (existsSync(ReplicaStore.fileOf(directory))) return
  throw new SecondsiteError('REPLICA_NOT_FOUND', {
    message: `no replica store in ${directory}`,
    details: { path: directory },
  })
}

/** @throws {REPLICA_FAILED_OVER} when the images are not the primary's any more */
export function refuseFailedOver(directory: string, identity: Identity | undefined): void {
  if (identity === undefined || !FAILED_OVER.includes(identity.state)) return
  const { machine, state, fencingNumber } = identity
  throw new SecondsiteError('REPLICA_FAILED_OVER', {
    message: `the replica of ${machine} has been failed over; its state is ${state}`,
    details: { machine, state, path: directory, fencingNumber },
  })
}

function notInState(directory: string, change: ReplicaChange): SecondsiteError {
  const { trigger, from } = change
  const message = `${trigger}: the replica in ${directory} is not in state ${from} any more`
  return new SecondsiteError('INVALID_STATE', { message, details: { path: directory, state: from, trigger } })
}

/** A cycle that is still being received and is now announced with other logs loses what it had. */
async function dropIfDifferent(
  transaction: Transaction<ReplicaSchema>,
  cycleNumber: number,
  logs: readonly NewSpooledLog[],
): Promise<void> {
  const held = await transaction
    .selectFrom('logs')
    .selectAll()
    .where('cycleNumber', '=', cycleNumber)
    .execute()
  const isSame = (log: NewSpooledLog): boolean =>
    held.some(
      (row) =>
        row.logId === log.logId &&
        row.logSizeBytes === log.logSizeBytes &&
        row.indexSizeBytes === log.indexSizeBytes,
    )
  if (held.length === logs.length && logs.every(isSame)) return
  const query = transaction.deleteFrom('cycles').where('cycleNumber', '=', cycleNumber)
  await query.where('state', '=', 'receiving').execute()
}

/** What a shipment that the images hold says about the disks: their sizes from it on, and that they show a state again. */
async function noteDisks(transaction: Transaction<ReplicaSchema>, cycleNumber: number): Promise<void> {
  const query = transaction.selectFrom('cycles').selectAll().where('cycleNumber', '=', cycleNumber)
  const { kind, shrinksJson } = await query.executeTakeFirstOrThrow()
  if (kind === 'delta') await transaction.updateTable('disks').set({ isImageWhole: 1 }).execute()
  for (const { diskId, shrinkId: lastShrinkId, toBytes: sizeBytes } of parseShrinks(shrinksJson)) {
    const own = transaction.updateTable('disks').where('diskId', '=', diskId)
    const values = { sizeBytes, imageSizeBytes: sizeBytes, lastShrinkId }
    await own
      .set(values)
      .where('lastShrinkId', 'is not', lastShrinkId)
      .where('sizeBytes', '>', sizeBytes)
      .execute()
  }
}

async function moveWatermarks(
  transaction: Transaction<ReplicaSchema>,
  cycleNumber: number,
  column: 'receivedLogId' | 'appliedLogId',
  state: 'received' | 'applied',
): Promise<void> {
  const logs = await transaction
    .selectFrom('logs')
    .selectAll()
    .where('cycleNumber', '=', cycleNumber)
    .orderBy(sql`rowid`)
    .execute()
  for (const { logId, diskId, kind } of logs) {
    await transaction.updateTable('logs').set({ state }).where('logId', '=', logId).execute()
    // Batches stand beside the chain of the tracked disk: only delta logs continue it.
    if (kind !== 'delta') continue
    await transaction
      .updateTable('disks')
      .set({ [column]: logId })
      .where('diskId', '=', diskId)
      .execute()
  }
}
