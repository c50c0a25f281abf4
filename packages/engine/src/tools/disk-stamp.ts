/**
 * Whether a disk was written to between two moments, as far as its file tells.
 *
 * The file system moves mtime and ctime of a file at each write, and ctime also when somebody puts mtime back. A block
 * device has no such times: its node keeps those of its creation, and the counters of the kernel know neither other
 * hosts nor what is written below a mapping. So nothing is claimed about block devices.
 */

import { statSync } from 'node:fs'
import { SecondsiteError } from '../errors.js'

/** A disk at a moment: equal stamps mean that nobody has written in between. */
export interface DiskStamp {
  readonly identity: string
  readonly sizeBytes: number
  /** Nanoseconds, as text: they pass 2^53. */
  readonly modifiedNs: string
  readonly changedNs: string
}

/** The stamp of a file; undefined for a block device, which does not tell. */
export function stampOf(path: string): DiskStamp | undefined {
  const stat = statSync(path, { bigint: true })
  if (!stat.isFile()) return undefined
  return {
    identity: `${stat.dev}:${stat.ino}`,
    sizeBytes: Number(stat.size),
    modifiedNs: stat.mtimeNs.toString(),
    changedNs: stat.ctimeNs.toString(),
  }
}

/** Whether two stamps are one. */
export function isSameStamp(one: DiskStamp | undefined, other: DiskStamp | undefined): boolean {
  return JSON.stringify(one) === JSON.stringify(other)
}

/** @throws {DISK_CHANGED_WHILE_READ} when the disk was written to since `before` */
export function checkUnchanged(path: string, before: DiskStamp | undefined): void {
  if (before === undefined || isSameStamp(before, stampOf(path))) return
  const message = `${path} was written to while it was read: what was compared or copied may be neither its old nor its new content`
  throw new SecondsiteError('DISK_CHANGED_WHILE_READ', { message, details: { path } })
}
