/**
 * Disks as somebody names them, checked before anything is done with them.
 */

import { basename, dirname, resolve } from 'node:path'
import { SecondsiteError, optionOutOfRange } from '../errors.js'
import { native } from '../native/index.js'

/** A disk to be protected: a path, or a path with a folder of its own for logs and tracking file. */
export type DiskInput = string | { readonly path: string; readonly trackingDirectory?: string }

/** A disk that is there and may be protected; paths are absolute. */
export interface CheckedDisk {
  readonly name: string
  readonly path: string
  readonly trackingDirectory: string
  readonly sizeBytes: number
}

/** Logs, batches and images are named after the disk; a file system takes 255 bytes. */
const DISK_NAME_BYTES_MAX = 200

/**
 * Looks at a disk that is to be protected beside others of its machine.
 * @throws {OPTION_OUT_OF_RANGE, DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED, DISK_SAME}
 */
export function checkDisk(input: DiskInput, otherPaths: readonly string[]): CheckedDisk {
  const given = typeof input === 'string' ? { path: input } : input
  const path = resolve(given.path)
  const name = basename(path)
  const { sizeBytes } = native.probeDisk(path)
  if (Buffer.byteLength(name) > DISK_NAME_BYTES_MAX)
    throw optionOutOfRange({
      path: 'disks',
      value: name,
      range: `file names of at most ${DISK_NAME_BYTES_MAX} bytes`,
    })
  for (const other of otherPaths) refuseTwice(other, path)
  const trackingDirectory = resolve(
    ('trackingDirectory' in given && given.trackingDirectory) || dirname(path),
  )
  return { name, path, trackingDirectory, sizeBytes }
}

/** Bytes of a disk as it is now. @throws {DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED} */
export function diskSizeBytes(path: string): number {
  return native.probeDisk(path).sizeBytes
}

function refuseTwice(other: string, path: string): void {
  if (native.isSameDisk(other, path)) {
    const message = `${other} and ${path} are the same disk`
    throw new SecondsiteError('DISK_SAME', { message, details: { path, other } })
  }
  if (basename(other) === basename(path))
    throw optionOutOfRange({ path: 'disks', value: basename(path), range: 'file names that differ' })
}
