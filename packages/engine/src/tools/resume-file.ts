/**
 * How far a synchronization came: a small JSON file beside the replica, replaced atomically.
 *
 * What lies before `nextOffset` is equal and durable. That is only true for the source as it was, so a file made with
 * another source, size or option is ignored: the run then starts again, which is always right.
 */

import {
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { fromSystemError } from '../errors.js'

/** What must be the same for a run to go on. */
export interface ResumeKey {
  readonly source: string
  readonly sizeBytes: number
  readonly sourceModifiedMs: number
  readonly replicaInode: string
  readonly chunkBytes: number
}

/** Where a run goes on, and what it has done. */
export interface ResumePoint {
  readonly nextOffset: number
  readonly differentBytes: number
  readonly writtenBytes: number
}

/** The resume file of a replica. */
export function resumePathOf(replica: string): string {
  return `${replica}.secondsite-sync`
}

/** The key of a run. The time of the source is part of it: a source written to since has to be read again. */
export function resumeKeyOf(
  source: string,
  replica: string,
  rest: Pick<ResumeKey, 'sizeBytes' | 'chunkBytes'>,
): ResumeKey {
  const { dev, ino } = statSync(replica)
  return { source, sourceModifiedMs: statSync(source).mtimeMs, replicaInode: `${dev}:${ino}`, ...rest }
}

/** The point to go on from, or undefined when there is none that fits. */
export function readResumePoint(replica: string, key: ResumeKey): ResumePoint | undefined {
  try {
    const saved = JSON.parse(readFileSync(resumePathOf(replica), 'utf8')) as {
      key?: unknown
      point?: ResumePoint
    }
    if (JSON.stringify(saved.key) !== JSON.stringify(key) || saved.point === undefined) return undefined
    return isPoint(saved.point, key) ? saved.point : undefined
  } catch {
    // Missing, unreadable or no JSON: starting again costs time, never bytes.
    return undefined
  }
}

function isPoint(point: ResumePoint, key: ResumeKey): boolean {
  const counts = [point.nextOffset, point.differentBytes, point.writtenBytes]
  const areCounts = counts.every(
    (count) => Number.isSafeInteger(count) && count >= 0 && count <= key.sizeBytes,
  )
  return areCounts && point.nextOffset % key.chunkBytes === 0
}

/** Replaces the file; it is durable when this returns. */
export function saveResumePoint(replica: string, key: ResumeKey, point: ResumePoint): void {
  const path = resumePathOf(replica)
  try {
    const temporary = `${path}.new`
    writeDurably(temporary, JSON.stringify({ key, point }))
    renameSync(temporary, path)
    syncFolder(dirname(path))
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'DISK_FULL' })
  }
}

/** Forgets the point, when the run has ended. */
export function removeResumePoint(replica: string): void {
  rmSync(resumePathOf(replica), { force: true })
}

function writeDurably(path: string, text: string): void {
  const file = openSync(path, 'w', 0o600)
  try {
    writeSync(file, text)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

function syncFolder(path: string): void {
  const folder = openSync(path, 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
