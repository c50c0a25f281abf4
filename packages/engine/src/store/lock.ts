/**
 * One process per folder: a `flock` on a file in it, held while the folder is open.
 *
 * The kernel drops the lock with the process, so a crash leaves nothing behind. The file holds the process id of the
 * holder for the message; it is never removed, as a removed lock file could be locked by two.
 */

import fs from 'node:fs'
import { join } from 'node:path'
import fsExt from 'fs-ext'
import { type ErrorCode, fromSystemError, SecondsiteError } from '../errors.js'

/** The lock file's name. */
const LOCK_FILE = 'lock'

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
  const descriptor = openLockFile(directory, path)
  try {
    // Only the synchronous call: the asynchronous ones of fs-ext abort the process in a worker.
    fsExt.flockSync(descriptor, 'exnb')
    fs.ftruncateSync(descriptor)
    fs.writeSync(descriptor, String(process.pid), 0)
  } catch (error) {
    fs.closeSync(descriptor)
    throw isHeld(error)
      ? inUse(directory, path, inUseCode)
      : fromSystemError(error, { operation: 'lock', path })
  }
  let isOpen = true
  const close = (): void => {
    if (isOpen) fs.closeSync(descriptor)
    isOpen = false
  }
  return { path: directory, close }
}

function openLockFile(directory: string, path: string): number {
  try {
    fs.mkdirSync(directory, { recursive: true })
    return fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o644)
  } catch (error) {
    throw fromSystemError(error, { operation: 'open', path })
  }
}

function isHeld(error: unknown): boolean {
  return (
    error instanceof Error && 'code' in error && (error.code === 'EAGAIN' || error.code === 'EWOULDBLOCK')
  )
}

function inUse(directory: string, path: string, code: ErrorCode): SecondsiteError {
  const holder = Number(fs.readFileSync(path, 'utf8')) || 0
  const message = `${directory} is in use by ${holder === 0 ? 'another process' : `process ${holder}`}`
  return new SecondsiteError(code, { message, details: { path: directory, processId: holder } })
}
