/**
 * How far a synchronization came: a small JSON file beside the replica, replaced atomically.
 *
 * What lies before `nextOffset` is equal and durable, for the source and the replica as they were. So the file also says
 * how both were, and a run goes on only where that still holds; else it starts again, which is always right.
 *
 * A run that was killed has written to the replica after its last note, so a newer time of the replica alone proves
 * nothing. But a run that lives makes a note every `silenceMsMax`: a replica changed later than that after the last note
 * was changed by somebody else. (Both times come from the clock of one file system.) A write of somebody else within that
 * time after a kill cannot be told from the run's own; `verify` would find it.
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
import { type DiskStamp, isSameStamp, stampOf } from './disk-stamp.js'
import { syncFolder } from '../sync-folder.js'

/** What must be the same for a run to go on. */
export interface ResumeKey {
  readonly source: string
  readonly sourceStamp: DiskStamp
  readonly replicaIdentity: string
  readonly chunkBytes: number
}

/** Where a run goes on, and what it has done. */
export interface ResumePoint {
  readonly nextOffset: number
  readonly differentBytes: number
  readonly writtenBytes: number
}

/** Why a run that could have gone on starts again. */
export type StartedOverReason = 'SOURCE_CHANGED' | 'REPLICA_CHANGED' | 'OTHER_RUN'

/** What the file of an earlier run says to this one. */
export interface Resumption {
  readonly point?: ResumePoint
  readonly startedOver?: StartedOverReason
}

/** A note in the file. */
interface Note {
  readonly key: ResumeKey
  readonly point: ResumePoint
  readonly replicaStamp: DiskStamp
  /** Longest time between two notes of that run, doubled; 0 when it stopped in order. */
  readonly silenceMsMax: number
}

/** The resume file of a replica. */
export function resumePathOf(replica: string): string {
  return `${replica}.secondsite-sync`
}

/** The key of a run; undefined where a block device is one of the two, as it does not tell when it was written to. */
export function resumeKeyOf(source: string, replica: string, chunkBytes: number): ResumeKey | undefined {
  const [sourceStamp, replicaStamp] = [stampOf(source), stampOf(replica)]
  if (sourceStamp === undefined || replicaStamp === undefined) return undefined
  return { source, sourceStamp, replicaIdentity: replicaStamp.identity, chunkBytes }
}

/** Where to go on from, or why not; neither when no earlier run has left a note. */
export function readResumption(replica: string, key: ResumeKey): Resumption {
  const found = readNote(replica)
  if (found === undefined) return {}
  const { note, writtenMs } = found
  const startedOver = differenceOf(note, key) ?? replicaDifference(note, writtenMs, replica)
  if (startedOver !== undefined) return { startedOver }
  return isPoint(note.point, key) ? { point: note.point } : { startedOver: 'OTHER_RUN' }
}

function readNote(replica: string): { note: Note; writtenMs: number } | undefined {
  const path = resumePathOf(replica)
  try {
    const note = JSON.parse(readFileSync(path, 'utf8')) as Note
    if (typeof note?.key !== 'object' || typeof note.point !== 'object') return undefined
    return { note, writtenMs: statSync(path).mtimeMs }
  } catch {
    // Missing, unreadable or no JSON: starting again costs time, never bytes.
    return undefined
  }
}

function differenceOf({ key: old }: Note, key: ResumeKey): StartedOverReason | undefined {
  const isOther = old.source !== key.source || old.chunkBytes !== key.chunkBytes
  if (isOther || old.sourceStamp?.identity !== key.sourceStamp.identity) return 'OTHER_RUN'
  if (!isSameStamp(old.sourceStamp, key.sourceStamp)) return 'SOURCE_CHANGED'
  return old.replicaIdentity === key.replicaIdentity ? undefined : 'REPLICA_CHANGED'
}

function replicaDifference(note: Note, writtenMs: number, replica: string): StartedOverReason | undefined {
  const now = stampOf(replica)
  if (now === undefined || note.replicaStamp?.sizeBytes !== now.sizeBytes) return 'REPLICA_CHANGED'
  if (isSameStamp(note.replicaStamp, now)) return undefined
  const changedMs = Number(BigInt(now.changedNs) / 1_000_000n)
  const isOurs = Number.isFinite(note.silenceMsMax) && changedMs - writtenMs <= note.silenceMsMax
  return isOurs && note.silenceMsMax > 0 ? undefined : 'REPLICA_CHANGED'
}

function isPoint(point: ResumePoint, key: ResumeKey): boolean {
  const counts = [point.nextOffset, point.differentBytes, point.writtenBytes]
  const areCounts = counts.every(
    (count) => Number.isSafeInteger(count) && count >= 0 && count <= key.sourceStamp.sizeBytes,
  )
  return (
    areCounts && (point.nextOffset % key.chunkBytes === 0 || point.nextOffset === key.sourceStamp.sizeBytes)
  )
}

/** Replaces the file; it is durable when this returns. The replica must be durable before. */
export function saveResumePoint(
  replica: string,
  key: ResumeKey,
  point: ResumePoint,
  silenceMsMax: number,
): void {
  const path = resumePathOf(replica)
  try {
    const temporary = `${path}.new`
    writeDurably(temporary, JSON.stringify({ key, point, replicaStamp: stampOf(replica), silenceMsMax }))
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
