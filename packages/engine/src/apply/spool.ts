/**
 * The spool: where the logs of a shipment are gathered until they are applied.
 *
 * Frames are written to the offset they have in the source's file, so a log is whole when its bytes are, and resuming is
 * one number a log: the bytes of a prefix of `.hrl` and `.hrx` together that are durable. Frames arrive in order, so what
 * is durable is what was written before the last sync. A file in the spool is never trusted before it was verified.
 */

import { closeSync, mkdirSync, openSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { fromSystemError } from '../errors.js'
import { permit } from '../native/faults.js'
import { syncFolder } from '../sync-folder.js'

/** A log on its way in. */
export interface SpooledLog {
  readonly diskId: string
  readonly logId: string
  readonly previousId: string
  readonly logSizeBytes: number
  readonly indexSizeBytes: number
}

/** The two files of a spooled log. */
export interface SpoolPaths {
  readonly log: string
  readonly index: string
}

export class Spool {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
    mkdirSync(directory, { recursive: true })
  }

  /** Paths of a log; the number of the shipment leads, so that a listing is in order. */
  paths(shipmentNumber: number, logId: string): SpoolPaths {
    const stem = join(this.#directory, `${String(shipmentNumber).padStart(10, '0')}-${logId}`)
    return { log: `${stem}.hrl`, index: `${stem}.hrx` }
  }

  /** Makes the files of a log, empty, where they are not there yet. */
  prepare(paths: SpoolPaths): void {
    for (const path of [paths.log, paths.index]) guarded(path, 'create', () => createFile(path))
  }

  /** Makes what was written to both files durable; the disk is waited for in another thread. */
  async sync(paths: SpoolPaths): Promise<void> {
    await Promise.all([paths.log, paths.index].map(syncFile))
  }

  /** Makes the names of the files durable. */
  syncDirectory(): void {
    guarded(this.#directory, 'sync', () => syncFolder(this.#directory))
  }

  /** Deletes the files of a log; what is not there does not matter. */
  remove(paths: SpoolPaths): void {
    rmSync(paths.log, { force: true })
    rmSync(paths.index, { force: true })
  }
}

function createFile(path: string): void {
  permit(path, 'open')
  closeSync(openSync(path, 'a'))
}

async function syncFile(path: string): Promise<void> {
  try {
    permit(path, 'sync')
    const file = await open(path, 'r+')
    await file.datasync().finally(() => file.close())
  } catch (error) {
    throw fromSystemError(error, { operation: 'sync', path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

function guarded<Result>(path: string, operation: string, call: () => Result): Result {
  try {
    return call()
  } catch (error) {
    throw fromSystemError(error, { operation, path, fullCode: 'REPLICA_DISK_FULL' })
  }
}
