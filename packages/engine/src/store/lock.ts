/**
 * One process per folder: a `flock` on a file in it, held while the folder is open.
 *
 * The kernel drops the lock with the process, so a crash leaves nothing behind. The file holds the process id of the
 * holder for the message; it is never removed, as a removed lock file could be locked by two.
 */

import fs from 'node:fs'
import { join } from 'node:path'
import { type ErrorCode, fromSystemError, SecondsiteError } from '../errors.js'
import { native } from '../native/index.js'

/** The lock file's name. */
export const LOCK_FILE = 'lock'

/** A folder that is ours until it is closed. */
export interface LockedDirectory {
  readonly path: string
  /** Gives the folder up; calling it again does nothing. */
  close(): void
}

/**
 * Creates `directory` if need be and locks it.
 * @param inUseCode - STATE_IN_USE or STORE_IN_USE
 * @throws {STATE_IN_USE, STORE_IN_USE} with the process id of the holder, in this process too
 * @throws {ACCESS_DENIED, PATH_NOT_FOUND, IO_FAILED}
 */
export function openLocked(directory: string, inUseCode: ErrorCode): LockedDirectory {
  const path = join(directory, LOCK_FILE)
  makeDirectory(directory)
  const lock = native.lockFile(path)
  if (lock === 0) throw inUse(directory, path, inUseCode)
  const close = (): void => native.unlockFile(lock)
  try {
    fs.writeFileSync(path, String(process.pid))
    return { path: directory, close }
  } catch (error) {
    close()
    throw fromSystemError(error, { operation: 'write', path })
  }
}

function makeDirectory(path: string): void {
  try {
    fs.mkdirSync(path, { recursive: true })
  } catch (error) {
    throw fromSystemError(error, { operation: 'create', path })
  }
}

function inUse(directory: string, path: string, code: ErrorCode): SecondsiteError {
  const holder = Number(fs.readFileSync(path, 'utf8')) || 0
  const message = `${directory} is in use by ${holder === 0 ? 'another process' : `process ${holder}`}`
  return new SecondsiteError(code, { message, details: { path: directory, processId: holder } })
}
