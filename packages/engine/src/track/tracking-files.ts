/**
 * The files that tracking leaves beside a disk, and their end with the protection.
 */

import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fromSystemError } from '../errors.js'

/** Logs by number, spares, batches, and the tracking file itself; damaged logs that were set aside as well. */
const SUFFIX = /^\.(hrt(\.new)?|(\d{10}|spare-\d+|initial-\d+|resync-[0-9a-f]+-\d+)\.hr[lx](\.damaged)?)$/

/** Whether somebody tracks the disk there, or has. */
export function hasTrackingFile(trackingDirectory: string, diskName: string): boolean {
  return existsSync(join(trackingDirectory, `${diskName}.hrt`))
}

/**
 * Removes the tracking file, logs and batches of a disk that is not tracked any more; the disk itself stays.
 * @throws {IO_FAILED, ACCESS_DENIED} with the file; calling it again removes the rest
 */
export function removeTrackingFiles(trackingDirectory: string, diskName: string): void {
  const isTracking = (file: string): boolean =>
    file.startsWith(diskName) && SUFFIX.test(file.slice(diskName.length))
  for (const file of filesOf(trackingDirectory).filter(isTracking)) {
    const path = join(trackingDirectory, file)
    try {
      rmSync(path, { force: true })
    } catch (error) {
      throw fromSystemError(error, { operation: 'remove', path })
    }
  }
}

/** A folder that is gone holds nothing. */
function filesOf(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch (error) {
    const failure = fromSystemError(error, { operation: 'list', path: directory })
    if (failure.code === 'PATH_NOT_FOUND') return []
    throw failure
  }
}
