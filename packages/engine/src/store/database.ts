/**
 * Opens a database of a known kind and brings its schema to the newest version.
 *
 * `application_id` says which kind a file is, `user_version` how many migrations it has had. Each migration runs in a
 * transaction together with its number, so a crash between two leaves a database of one version or the other. A number
 * higher than ours is refused: an older program must not write what it does not understand.
 */

import { Kysely, type KyselyPlugin, SqliteDialect } from 'kysely'
import { SecondsiteError } from '../errors.js'
import { CodedDatabase, type DatabasePlace } from './sqlite.js'

/** A kind of database. */
export interface DatabaseKind {
  /** For messages: "state database". */
  readonly name: string
  /** SQLite application_id, four letters as a number. */
  readonly applicationId: number
  /** SQL of version 1, 2, … in order; a released one never changes. */
  readonly migrations: readonly string[]
}

/** SQL of a column for counts, sizes, offsets and times: what a JavaScript number holds exactly. */
export function wholeNumber(name: string, rest = 'NOT NULL'): string {
  return `"${name}" INTEGER ${rest} CHECK ("${name}" BETWEEN 0 AND ${Number.MAX_SAFE_INTEGER})`
}

/** SQL of a column that is 0 or 1. */
export function flag(name: string, initial: 0 | 1 = 0): string {
  return `"${name}" INTEGER NOT NULL DEFAULT ${initial} CHECK ("${name}" IN (0, 1))`
}

/** SQL of a text column that takes only the given words; `initial` is what rows of an older version get. */
export function oneOf(name: string, words: readonly string[], initial?: string): string {
  const filled = initial === undefined ? '' : ` DEFAULT '${initial}'`
  return `"${name}" TEXT NOT NULL${filled} CHECK ("${name}" IN (${words.map((word) => `'${word}'`).join(', ')}))`
}

/** A database that is open. */
export interface OpenDatabase<Schema> {
  readonly db: Kysely<Schema>
  /** Waits for queries in flight and closes; calling it again does nothing. */
  close(): Promise<void>
}

/**
 * Opens, creates or migrates the database at `place`.
 * @param plugins - applied to every query and what it brings
 * @throws {STORE_VERSION_NEWER, STORE_CORRUPT, STORE_BUSY, STATE_DISK_FULL, REPLICA_DISK_FULL, IO_FAILED}
 */
export function openDatabase<Schema>(
  kind: DatabaseKind,
  place: DatabasePlace,
  plugins: KyselyPlugin[] = [],
): OpenDatabase<Schema> {
  const database = new CodedDatabase(place)
  try {
    migrate(kind, place, database)
  } catch (error) {
    database.close()
    throw error
  }
  const db = new Kysely<Schema>({ dialect: new SqliteDialect({ database }), plugins })
  const close = async (): Promise<void> => {
    await db.destroy()
    // Kysely closes only what it has used.
    database.close()
  }
  return { db, close }
}

function migrate(kind: DatabaseKind, place: DatabasePlace, database: CodedDatabase): void {
  const version = Number(database.pragma('user_version'))
  checkKind(kind, place, version, Number(database.pragma('application_id')))
  kind.migrations.slice(version).forEach((sql, index) => {
    runMigration(kind, database, sql, version + index + 1)
  })
}

function checkKind(kind: DatabaseKind, place: DatabasePlace, version: number, applicationId: number): void {
  const { path } = place
  const isNew = version === 0 && applicationId === 0
  if (!isNew && applicationId !== kind.applicationId) {
    const message = `${path} is not a ${kind.name}`
    throw new SecondsiteError('STORE_CORRUPT', { message, details: { path, reason: message, applicationId } })
  }
  const known = kind.migrations.length
  if (version <= known) return
  throw new SecondsiteError('STORE_VERSION_NEWER', {
    message: `${path} is a ${kind.name} of version ${version}; this program knows up to ${known}`,
    details: { path, version, knownVersion: known },
  })
}

function runMigration(kind: DatabaseKind, database: CodedDatabase, sql: string, version: number): void {
  database.exec('BEGIN IMMEDIATE')
  try {
    database.exec(sql)
    database.exec(`PRAGMA application_id = ${kind.applicationId}`)
    database.exec(`PRAGMA user_version = ${version}`)
    database.exec('COMMIT')
  } catch (error) {
    rollBack(database)
    throw error
  }
}

function rollBack(database: CodedDatabase): void {
  try {
    database.exec('ROLLBACK')
  } catch {
    // SQLite may have rolled back by itself; the first error is the one to tell.
  }
}
