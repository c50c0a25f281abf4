/**
 * What one side of a relationship alone has: ranges, bytes and times of what it wrote since the point that both sides share.
 *
 * Ranges come from the tracking of the disks and are exact to 64 KiB. Times come from the logs, so what was folded into the
 * changed map has ranges and no time. The same logs are what is kept of a side whose writes are given up: copies that every
 * reader of `.hrl` can show and export. Of what no log holds any more the present content is kept, as a log of its own.
 */

import { constants, mkdirSync, rmSync } from 'node:fs'
import { copyFile, open, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fromSystemError } from './errors.js'
import { permit } from './native/faults.js'
import type { Native, NativeSealedLog } from './native/index.js'
import type { WorkerPool } from './pool/pool.js'
import { type ByteRange, rangesFrom, toPairs, totalBytes } from './ranges.js'
import type { TrackedDisk } from './track/tracked-disk.js'
import { MIB } from './units.js'

/** What one side alone has. */
export interface SideWrites {
  /** At most: ranges are told in chunks of 64 KiB. */
  readonly bytes: number
  /** Unix milliseconds of the first and the last write that a log knows; null where there is none. */
  readonly firstMs: number | null
  readonly lastMs: number | null
  /** By the name of the disk, ascending. */
  readonly ranges: Readonly<Record<string, readonly ByteRange[]>>
}

/** A side: a machine, or the disks of a failover. */
export interface Side {
  readonly disks: readonly TrackedDisk[]
  /** Ends the open logs of all disks. */
  sealLogs(): Promise<void>
}

/** Bytes of data of one log that is made of content. */
const BATCH_BYTES_MAX = 64 * MIB

/** What a side has written that the other never had. */
export async function writesOf(side: Side, pool: WorkerPool): Promise<SideWrites> {
  const ranges = Object.fromEntries(side.disks.map((disk) => [disk.name, disk.dirty()] as const))
  const bytes = Object.values(ranges).reduce((total, list) => total + totalBytes(list), 0)
  if (bytes === 0) return { bytes, ranges, firstMs: null, lastMs: null }
  await side.sealLogs()
  const times: number[] = []
  for (const disk of side.disks) {
    const logs = disk.unreleasedLogs().filter(({ entryCount }) => entryCount > 0)
    for (const log of new Set([logs[0], logs.at(-1)])) times.push(...(await timesOf(log, pool)))
  }
  if (times.length === 0) return { bytes, ranges, firstMs: null, lastMs: null }
  return { bytes, ranges, firstMs: Math.min(...times), lastMs: Math.max(...times) }
}

async function timesOf(log: NativeSealedLog | undefined, pool: WorkerPool): Promise<number[]> {
  if (log === undefined) return []
  const call = { call: 'inspectLog' as const, args: [log.path] }
  const { statistics } = (await pool.run('native', call)) as ReturnType<Native['inspectLog']>
  return [statistics.firstTimeMs, statistics.lastTimeMs]
}

/**
 * Copies what a side alone has written into a folder, as logs, durably: the writes themselves are given up next.
 * @returns their paths; none where it has written nothing
 */
export async function keepWrites(side: Side, folder: string, pool: WorkerPool): Promise<string[]> {
  if (side.disks.every((disk) => disk.dirty().length === 0)) return []
  await side.sealLogs()
  mkdirSync(folder, { recursive: true })
  const kept: string[] = []
  for (const disk of side.disks) {
    const logs = disk.unreleasedLogs().filter(({ entryCount }) => entryCount > 0)
    for (const log of logs) kept.push(await copyLog(log, folder))
    if (disk.status().changedBytes > 0) kept.push(...(await keepContent(disk, folder, pool)))
  }
  await syncPath(folder)
  await syncPath(dirname(folder))
  return kept
}

/** Copied, not linked: the file of a released log is written over. */
async function copyLog({ path, indexPath }: NativeSealedLog, folder: string): Promise<string> {
  for (const from of [indexPath, path]) {
    const to = join(folder, basename(from))
    const { size: sizeBytes } = await stat(from)
    await told('write', to, sizeBytes, () => copyFile(from, to, constants.COPYFILE_FICLONE))
    await syncPath(to)
  }
  return join(folder, basename(path))
}

function syncPath(path: string): Promise<void> {
  return told('sync', path, 0, async () => {
    const file = await open(path, 'r')
    await file.sync().finally(() => file.close())
  })
}

async function told(
  operation: 'write' | 'sync',
  path: string,
  lengthBytes: number,
  call: () => Promise<void>,
): Promise<void> {
  try {
    permit(path, operation, 0, lengthBytes)
    await call()
  } catch (error) {
    throw fromSystemError(error, { operation, path, fullCode: 'DISK_FULL' })
  }
}

/** What the changed map knows of is in no log: its ranges as they are now. */
async function keepContent(disk: TrackedDisk, folder: string, pool: WorkerPool): Promise<string[]> {
  const kept: string[] = []
  for (let rest = disk.dirty(); rest.length > 0; ) {
    const path = join(folder, `${disk.name}.content-${rest[0]?.offset ?? 0}.hrl`)
    // One that a death has left unfinished.
    rmSync(path, { force: true })
    const args = [disk.handle, toPairs(rest), path, BATCH_BYTES_MAX]
    const call = { call: 'buildTrackedBatch' as const, args }
    const { nextOffset } = (await pool.run('native', call)) as { readonly nextOffset: number }
    kept.push(path)
    rest = rangesFrom(rest, nextOffset)
  }
  return kept
}
