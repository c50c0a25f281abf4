/**
 * The SQLite binding as kysely wants it, with coded errors.
 *
 * Three things of libsql are handled here and nowhere else. It ends the whole process when a boolean is bound, and it
 * rounds integers above 2^53: so parameters are checked before they get there (booleans become 0 and 1), and the schema
 * forbids larger values (every INTEGER column is STRICT and has a CHECK). Its errors become codes that say which disk is
 * full and whether waiting helps. A full disk makes SQLite roll back by itself, so the rollback that follows may find
 * nothing to undo: that is no error, and must not hide the first one. And a statement that has waited in vain for another
 * program is never reset, so a connection is given up after it.
 */

import Database from 'libsql'
import { type ErrorCode, isSecondsiteError, SecondsiteError } from '../errors.js'
import { FileFaultError, permit } from '../native/faults.js'

type Connection = InstanceType<typeof Database>
type Row = Record<string, unknown>

/** How long a statement waits for another program that holds the database, in milliseconds. */
const BUSY_TIMEOUT_MS = 2000

/** What a database is and how its failures are called. */
export interface DatabasePlace {
  /** The file; its folder must exist. */
  readonly path: string
  /** Code for a full disk: STATE_DISK_FULL or REPLICA_DISK_FULL. */
  readonly fullCode: ErrorCode
}

/** A database in the shape of kysely's SqliteDialect. */
export class CodedDatabase {
  readonly #place: DatabasePlace
  #connection: Connection
  #isClosed = false

  /**
   * Opens or creates the file, in WAL mode with a sync at every commit.
   * @throws {STORE_CORRUPT, STORE_BUSY, STATE_DISK_FULL, REPLICA_DISK_FULL, IO_FAILED}
   */
  constructor(place: DatabasePlace) {
    this.#place = place
    this.#connection = connect(place)
  }

  /** Folds the write-ahead log into the file, so that a closed database is one file, and closes it. */
  close(): void {
    this.#isClosed = true
    if (!this.#connection.open) return
    try {
      this.pragma('wal_checkpoint(TRUNCATE)')
    } catch {
      // A full disk or another reader: what is in the write-ahead log is durable, and the next opener folds it in.
    }
    this.#connection.close()
  }

  prepare(sql: string): CodedStatement {
    const statement = coded(this.#place, () => this.#open().prepare(sql))
    return new CodedStatement(this.#place, statement as unknown as RawStatement, sql, () => this.#renew())
  }

  /**
   * A statement that waited for its lock in vain stays open, and as long as it does SQLite commits nothing on its connection,
   * whatever it answers: so the connection ends with it, and what it had begun is taken back. The next statement opens another.
   */
  #renew(): void {
    this.#connection.close()
  }

  #open(): Connection {
    if (!this.#connection.open && !this.#isClosed) this.#connection = connect(this.#place)
    return this.#connection
  }

  /** Runs a PRAGMA and returns its first value. */
  pragma(text: string): unknown {
    const [row] = this.prepare(`PRAGMA ${text}`).all([])
    return row === undefined ? undefined : Object.values(row as Row)[0]
  }

  /** Runs several statements, none of which returns rows. */
  exec(sql: string): void {
    coded(this.#place, () => this.#open().exec(sql))
  }
}

function connect(place: DatabasePlace): Connection {
  const connection = coded(place, () => new Database(place.path))
  const pragma = (text: string): unknown => coded(place, () => connection.prepare(`PRAGMA ${text}`).all())
  try {
    pragma(`busy_timeout = ${BUSY_TIMEOUT_MS}`)
    pragma('journal_mode = WAL')
    // FULL, not NORMAL: a watermark that a power loss takes back would name a log that is deleted already.
    pragma('synchronous = FULL')
    pragma('foreign_keys = ON')
    return connection
  } catch (error) {
    connection.close()
    throw error
  }
}

interface RawStatement {
  readonly reader: boolean
  all(parameters: readonly unknown[]): unknown[]
  run(parameters: readonly unknown[]): { changes: number; lastInsertRowid: number }
}

class CodedStatement {
  readonly reader: boolean
  readonly #place: DatabasePlace
  readonly #statement: RawStatement
  readonly #isRollback: boolean
  readonly #operation: 'read' | 'write'
  readonly #onBusy: () => void

  constructor(place: DatabasePlace, statement: RawStatement, sql: string, onBusy: () => void) {
    this.#place = place
    this.#onBusy = onBusy
    this.#isRollback = /^\s*rollback\s*;?\s*$/i.test(sql)
    this.#statement = statement
    this.reader = statement.reader
    // Not by `reader`, which says of every statement that it returns rows.
    this.#operation = /^\s*(select|pragma)\b/i.test(sql) ? 'read' : 'write'
  }

  all(parameters: readonly unknown[]): unknown[] {
    return this.#carryOut(() => this.#statement.all(parameters.map(bindable)))
  }

  run(parameters: readonly unknown[]): { changes: number; lastInsertRowid: number } {
    try {
      return this.#carryOut(() => this.#statement.run(parameters.map(bindable)))
    } catch (error) {
      if (!this.#isRollback || !/no transaction is active/.test(String(error))) throw error
      return { changes: 0, lastInsertRowid: 0 }
    }
  }

  #carryOut<Result>(action: () => Result): Result {
    try {
      return coded(this.#place, () => {
        this.#permit()
        return action()
      })
    } catch (error) {
      if (isSecondsiteError(error, 'STORE_BUSY')) this.#onBusy()
      throw error
    }
  }

  /** A statement counts as one byte. Taking back needs no space, and SQLite does it by itself where the disk fails. */
  #permit(): void {
    if (!this.#isRollback) permit(this.#place.path, this.#operation, 0, 1)
  }

  *iterate(parameters: readonly unknown[]): IterableIterator<unknown> {
    yield* this.all(parameters)
  }
}

function bindable(value: unknown): unknown {
  if (typeof value === 'boolean') return value ? 1 : 0
  if (value === null || typeof value === 'string' || value instanceof Uint8Array) return value
  if (typeof value === 'number' && Number.isFinite(value) && Math.abs(value) <= Number.MAX_SAFE_INTEGER)
    return value
  throw new TypeError(
    `a database parameter must be text, a safe number, bytes or null, not ${typeof value} ${String(value)}`,
  )
}

function coded<Result>(place: DatabasePlace, action: () => Result): Result {
  try {
    return action()
  } catch (error) {
    throw codedError(place, error)
  }
}

function codedError(place: DatabasePlace, error: unknown): unknown {
  if (error instanceof TypeError || error instanceof SecondsiteError || !(error instanceof Error))
    return error
  const reason = reasonOf(error)
  const message = `database ${place.path}: ${error.message}`
  return new SecondsiteError(codeOf(reason, place), {
    message,
    details: { path: place.path, reason },
    cause: error,
  })
}

/** A rule fails a statement the way SQLite says that the disk below it failed. */
function reasonOf(error: Error): string {
  if (error instanceof FileFaultError) return error.code === 'ENOSPC' ? 'SQLITE_FULL' : 'SQLITE_IOERR'
  return 'code' in error ? String(error.code) : 'SQLITE_CANTOPEN'
}

function codeOf(reason: string, place: DatabasePlace): ErrorCode {
  if (reason.startsWith('SQLITE_FULL')) return place.fullCode
  if (reason.startsWith('SQLITE_BUSY') || reason.startsWith('SQLITE_LOCKED')) return 'STORE_BUSY'
  if (reason.startsWith('SQLITE_CORRUPT') || reason.startsWith('SQLITE_NOTADB')) return 'STORE_CORRUPT'
  if (reason.startsWith('SQLITE_IOERR') || reason.startsWith('SQLITE_CANTOPEN')) return 'IO_FAILED'
  if (reason.startsWith('SQLITE_READONLY')) return 'ACCESS_DENIED'
  return 'INTERNAL'
}
