/**
 * The journal of a run: one file of lines, appended and synced, from which the run is known after any crash.
 *
 * A line is a CRC-32 in hexadecimal, a blank, and an entry as JSON; entries are numbered. A step is journaled as started
 * before it starts, and as ended before anything that follows it starts. So what a crash tears is the last line alone,
 * and a torn last line speaks of nothing that anything was built on: it is cut off. Damage before the last line is no
 * tear, and refused. A file of text was chosen over a database, as it is also the record that auditors are shown.
 *
 * A sync that failed is not tried again: what the kernel has dropped would be taken for durable. The journal is then
 * closed for good, and a new session reads what is really there.
 */

import fs from 'node:fs'
import { dirname } from 'node:path'
import { crc32 } from 'node:zlib'
import { fromSystemError, SecondsiteError } from '../errors.js'
import { FileFaultError, permit } from '../native/faults.js'
import { syncFolder } from '../sync-folder.js'
import {
  type JournalEntry,
  journalEntrySchema,
  JOURNAL_VERSION,
  type NumberedEntry,
} from './journal-entries.js'

/** Largest journal that is read, 256 MiB: a thousand steps with all their output are 10 MiB. */
const JOURNAL_SIZE_BYTES_MAX = 256 * 1024 * 1024

/** The journal of a run, open for writing. */
export class RunJournal {
  readonly path: string
  readonly #file: number
  #sizeBytes: number
  #nextNumber: number
  #isBroken = false

  private constructor(path: string, file: number, sizeBytes: number, nextNumber: number) {
    this.path = path
    this.#file = file
    this.#sizeBytes = sizeBytes
    this.#nextNumber = nextNumber
  }

  /** Creates the journal of a new run; its name is durable when this returns. @throws {PATH_EXISTS} */
  static create(path: string): RunJournal {
    return coded('create', path, () => {
      permit(path, 'open')
      const file = fs.openSync(path, 'wx', 0o600)
      syncFolder(dirname(path))
      return new RunJournal(path, file, 0, 0)
    })
  }

  /** Opens a journal behind what is whole of it, and cuts off a torn last line. */
  static reopen(path: string, content: JournalContent): RunJournal {
    return coded('open', path, () => {
      permit(path, 'open')
      const file = fs.openSync(path, 'r+')
      try {
        fs.ftruncateSync(file, content.wholeBytes)
        fs.fsyncSync(file)
        return new RunJournal(path, file, content.wholeBytes, content.entries.length)
      } catch (error) {
        fs.closeSync(file)
        throw error
      }
    })
  }

  /**
   * Appends an entry; it is durable when this returns.
   * @throws {STATE_DISK_FULL, IO_FAILED} the entry is not there, and the journal takes no more
   */
  append(entry: JournalEntry, atMs: number): NumberedEntry {
    const numbered = { n: this.#nextNumber, atMs, ...entry }
    const bytes = Buffer.from(lineOf(JSON.stringify(numbered)))
    coded('write', this.path, () => this.#write(bytes))
    this.#nextNumber += 1
    this.#sizeBytes += bytes.length
    return numbered
  }

  #write(bytes: Buffer): void {
    if (this.#isBroken) throw Object.assign(new Error('an earlier write failed'), { code: 'EIO' })
    this.#isBroken = true
    try {
      permit(this.path, 'write', this.#sizeBytes, bytes.length)
    } catch (error) {
      // As a disk that becomes full: it takes what still fits.
      if (error instanceof FileFaultError) this.#writeAll(bytes.subarray(0, error.permittedBytes))
      throw error
    }
    this.#writeAll(bytes)
    permit(this.path, 'sync')
    fs.fdatasyncSync(this.#file)
    this.#isBroken = false
  }

  #writeAll(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; )
      done += fs.writeSync(this.#file, bytes, done, bytes.length - done, this.#sizeBytes + done)
  }

  close(): void {
    fs.closeSync(this.#file)
  }
}

function lineOf(json: string): string {
  return `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`
}

/** What is whole of a journal. */
export interface JournalContent {
  readonly entries: readonly NumberedEntry[]
  /** Where the next entry belongs. */
  readonly wholeBytes: number
}

/**
 * Reads a journal, written to at this moment or not.
 * @throws {PLAN_RUN_DAMAGED} with line and offset, when something before the last line does not hold
 * @throws {STORE_VERSION_NEWER, PATH_NOT_FOUND, ACCESS_DENIED, IO_FAILED}
 */
export function readJournal(path: string): JournalContent {
  const bytes = coded('read', path, () => {
    permit(path, 'read')
    if (fs.statSync(path).size > JOURNAL_SIZE_BYTES_MAX)
      throw damaged(path, 1, 0, 'it is larger than 256 MiB')
    return fs.readFileSync(path)
  })
  const entries: NumberedEntry[] = []
  let offset = 0
  while (offset < bytes.length) {
    const end = bytes.indexOf(0x0a, offset)
    const fault = end < 0 ? 'it has no end' : readLine(bytes.toString('utf8', offset, end), entries, path)
    if (fault !== undefined) {
      // Blocks that never reached the disk read as zeros: they are part of the tear as well.
      if (end < 0 || isLast(bytes, end + 1)) return { entries, wholeBytes: offset }
      throw damaged(path, entries.length + 1, offset, fault)
    }
    offset = end + 1
  }
  return { entries, wholeBytes: offset }
}

function isLast(bytes: Buffer, offset: number): boolean {
  return bytes.subarray(offset).every((byte) => byte === 0)
}

/** Adds the entry of a line; a text says what is wrong with the line. */
function readLine(line: string, entries: NumberedEntry[], path: string): string | undefined {
  const json = line.slice(9)
  if (line.slice(0, 9) !== lineOf(json).slice(0, 9)) return 'its checksum is wrong'
  const entry = JSON.parse(json) as NumberedEntry
  if (entry.n !== entries.length) return `it has number ${entry.n} in place of ${entries.length}`
  if (entry.type === 'run' && entry.version > JOURNAL_VERSION) throw tooNew(path, entry.version)
  const result = journalEntrySchema.safeParse(entry)
  if (!result.success) return `its content is none of a journal: ${result.error.issues[0]?.message}`
  entries.push(result.data)
  return undefined
}

function tooNew(path: string, version: number): SecondsiteError {
  return new SecondsiteError('STORE_VERSION_NEWER', {
    message: `${path} is the journal of a run of version ${version}; this program knows up to ${JOURNAL_VERSION}`,
    details: { path, version, knownVersion: JOURNAL_VERSION },
  })
}

function damaged(path: string, line: number, offset: number, reason: string): SecondsiteError {
  return new SecondsiteError('PLAN_RUN_DAMAGED', {
    message: `${path}: line ${line} at offset ${offset}: ${reason}`,
    details: { path, line, offset, reason },
  })
}

function coded<Result>(operation: string, path: string, action: () => Result): Result {
  try {
    return action()
  } catch (error) {
    throw fromSystemError(error, { operation, path, fullCode: 'STATE_DISK_FULL' })
  }
}
