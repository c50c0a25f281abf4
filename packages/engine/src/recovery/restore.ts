/**
 * A recovery point as plain files, for whoever wants a disk and not a failover.
 *
 * A file gets its name when all of the machine are whole: what a death leaves is called `*.unfinished`, and begun anew.
 */

import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { open, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { fromSystemError, SecondsiteError, throwIfAborted } from '../errors.js'
import { native } from '../native/index.js'
import { digestDisk } from '../tools/digest.js'
import type { RecoveryContext } from './context.js'
import type { RecoveryDevice } from './device.js'
import { type DiskDigest, digestOfDisks, digestView } from './digest.js'
import { withWork } from './native-work.js'
import type { PointView } from './view.js'

/** A disk that was written out. */
export interface RestoredDisk {
  readonly name: string
  readonly path: string
  readonly sizeBytes: number
}

/** How far it is. */
export interface RestoreProgress {
  readonly disk: string
  /** Bytes of the disk that are looked at, and of them written. */
  readonly doneBytes: number
  readonly copiedBytes: number
  readonly totalBytes: number
}

export interface RestoreOptions {
  /** Folder for the disks, made where it is missing; a file that is there is never overwritten. */
  readonly directory: string
  /** Reads what was written again and compares its digest with that of the point; default false. */
  readonly verify?: boolean
  readonly onProgress?: (progress: RestoreProgress) => void
  readonly signal?: AbortSignal
}

/**
 * Compares what was written out with the digest of the point: the one that is stored, where there is one, so that what has
 * changed in the replica since is found as well.
 * @returns the digest
 * @throws {DIGEST_MISMATCH, UNDO_DAMAGED, DISK_READ_FAILED, ABORTED}; the files stay
 */
export async function verifyRestored(
  context: RecoveryContext,
  view: PointView,
  restored: readonly RestoredDisk[],
  { signal }: RestoreOptions,
): Promise<string> {
  const stored = (await context.recovery.points()).find(
    ({ pointNumber }) => pointNumber === view.state.number,
  )
  const known = view.untilNs === undefined ? stored?.digest : null
  const expected = known ?? (await digestView(context, view, signal ? { signal } : {}))
  const disks: DiskDigest[] = []
  for (const { name, path, sizeBytes } of restored)
    disks.push({ name, sizeBytes, digest: await digestDisk(path, signal ? { signal } : {}) })
  const digest = digestOfDisks(disks)
  if (digest === expected) return digest
  throw new SecondsiteError('DIGEST_MISMATCH', {
    message: `what was restored of point ${view.state.number} has digest ${digest}, not ${expected}`,
    details: { point: view.state.number, digest, expected, path: context.directory },
  })
}

/** @throws {PATH_EXISTS, DISK_FULL, DISK_WRITE_FAILED, ABORTED}; what was begun is removed */
export async function restoreView(
  context: RecoveryContext,
  view: PointView,
  { directory, onProgress, signal }: RestoreOptions,
): Promise<RestoredDisk[]> {
  mkdirSync(directory, { recursive: true })
  const disks = view.disks.map((disk) => ({ disk, path: join(directory, disk.name) }))
  for (const { path } of disks) refuseExisting(path)
  try {
    for (const { disk, path } of disks) {
      throwIfAborted(signal)
      await context.step('restore.before-disk')
      await write(context, disk, unfinished(path), onProgress, signal)
    }
    for (const { path } of disks) {
      await context.step('restore.before-naming')
      await put(path, directory)
    }
  } catch (error) {
    for (const { path } of disks) rmSync(unfinished(path), { force: true })
    throw error
  }
  return disks.map(({ disk: { name, sizeBytes }, path }) => ({ name, path, sizeBytes }))
}

function unfinished(path: string): string {
  return `${path}.unfinished`
}

async function write(
  context: RecoveryContext,
  { name, handle, sizeBytes }: RecoveryDevice,
  path: string,
  onProgress: RestoreOptions['onProgress'],
  signal: AbortSignal | undefined,
): Promise<void> {
  rmSync(path, { force: true })
  const look = (work: number): void => {
    const { doneBytes, copiedBytes } = native.workProgress(work)
    onProgress?.({ disk: name, doneBytes, copiedBytes, totalBytes: sizeBytes })
  }
  await withWork(signal, look, (work) =>
    context.pool.run('native', { call: 'materialize', args: [handle, path, work] }),
  )
}

/** Gives a whole file its name, durably. */
async function put(path: string, directory: string): Promise<void> {
  try {
    await rename(unfinished(path), path)
    const folder = await open(directory)
    await folder.sync().finally(() => folder.close())
  } catch (error) {
    throw fromSystemError(error, { operation: 'rename', path })
  }
}

function refuseExisting(path: string): void {
  if (!existsSync(path)) return
  const message = `${path} is there already`
  throw new SecondsiteError('PATH_EXISTS', { message, details: { path } })
}
