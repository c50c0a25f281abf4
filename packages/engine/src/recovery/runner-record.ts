/**
 * The folder of a run, `runs/ID` in the replica's folder: who holds it, what was started, and how it is stopped.
 *
 * A run is recorded before anything is started, and again with the id of what was. Whoever finds the record of a process
 * that is gone can stop the machine and clean up. A machine that was started but not recorded any more is found by its
 * token, which every process of ours has in its environment.
 */

import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fromSystemError, SecondsiteError } from '../errors.js'
import type { StartedProcess } from './runner-process.js'
import type { RunKind } from './runner-handover.js'
import type { RunnerSettings } from './failover-settings.js'

/** What is recorded of a run. */
export interface RunRecord {
  readonly version: 1
  readonly runId: string
  /** Names this run and no other; see {@link environmentOf}. */
  readonly token: string
  readonly kind: RunKind
  /** Name under which the machine was started. */
  readonly name: string
  readonly startedMs: number
  /** Where its disks are exported. */
  readonly address: string
  /** Where its sockets are: the folder itself, or a short one where that path is too long for a socket. */
  readonly socketDirectory: string
  /** With the settings it was started by it is stopped. */
  readonly runner: RunnerSettings
  readonly stopLimitSeconds: number
  /** The machine as a process of ours; null where it is none, or before it was started. */
  readonly process: StartedProcess | null
  /** Id of the machine in libvirt; null where it is not there. */
  readonly domainId: string | null
}

/** Run of the failover itself; tests are named by their ids. */
export const FAILOVER_RUN = 'failover'

const RECORD_FILE = 'run.json'
/** Bytes of a socket's path, at most: Linux has 108 with the zero behind it. */
const SOCKET_PATH_BYTES_MAX = 107
/** The longest name of a socket in the folder of a run. */
const LONGEST_SOCKET = 'serial.sock'

/** The folder of a run, whether it is there or not. */
export function runFolder(replicaDirectory: string, runId: string): string {
  return join(replicaDirectory, 'runs', runId)
}

/** Makes the folder, for this user alone. @returns where its sockets go */
export function makeRunFolder(folder: string): string {
  try {
    mkdirSync(folder, { recursive: true })
    chmodSync(folder, 0o700)
    const isShort = Buffer.byteLength(join(folder, LONGEST_SOCKET)) <= SOCKET_PATH_BYTES_MAX
    return isShort ? folder : mkdtempSync(join(tmpdir(), 'secondsite-run-'))
  } catch (error) {
    throw fromSystemError(error, { operation: 'create', path: folder, fullCode: 'REPLICA_DISK_FULL' })
  }
}

/**
 * The record; undefined when nothing was started.
 * @throws {RUNNER_STOP_FAILED} when it is damaged or of a newer version: what was started is then not known here
 */
export function readRecord(folder: string): RunRecord | undefined {
  const path = join(folder, RECORD_FILE)
  if (!existsSync(path)) return undefined
  const record = parsed(textOf(path))
  if (record !== undefined) return record
  throw new SecondsiteError('RUNNER_STOP_FAILED', {
    message: `${path} is damaged, or of a newer version: end its machine by hand, then remove ${folder}`,
    details: { path, reason: 'the record cannot be read' },
  })
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw fromSystemError(error, { operation: 'read', path })
  }
}

function parsed(text: string): RunRecord | undefined {
  try {
    const record = JSON.parse(text) as RunRecord | null
    const isKnown = record?.version === 1 && typeof record.token === 'string' && record.token !== ''
    return isKnown && typeof record.runner === 'object' ? record : undefined
  } catch {
    return undefined
  }
}

/** Writes it whole and durably, or leaves what was there. */
export function writeRecord(folder: string, record: RunRecord): void {
  const path = join(folder, RECORD_FILE)
  try {
    writeFileSync(`${path}.new`, JSON.stringify(record), { flush: true, mode: 0o600 })
    renameSync(`${path}.new`, path)
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

/** Removes the folder, and the sockets where they stand elsewhere. */
export function removeRunFolder(folder: string, socketDirectory: string = folder): void {
  rmSync(socketDirectory, { recursive: true, force: true })
  rmSync(folder, { recursive: true, force: true })
}
