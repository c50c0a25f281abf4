/**
 * One process at a time has the disks of a failover open: who holds the lock of the folder `failover-holder`.
 *
 * What another process wants of them it asks the holder, by a file in that folder: to *leave* them, since what was written is
 * to be thrown away, or to *commit* them while the guest goes on. The holder takes the file away as its word that it is at work,
 * and answers by a file, or by leaving. The folder stays when the failover goes, as a lock that is removed could be held by two.
 */

import { type FSWatcher, readdirSync, readFileSync, renameSync, rmSync, watch, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  fromPlainError,
  fromSystemError,
  isSecondsiteError,
  type PlainError,
  SecondsiteError,
  throwIfAborted,
  toPlainError,
} from '../errors.js'
import { type LockedDirectory, openLocked } from '../store/lock.js'
import { SECOND_MS } from '../units.js'
import type { RecoveryContext } from './context.js'

/** What a holder is asked for. */
export type HolderRequest =
  | { readonly verb: 'leave' }
  | { readonly verb: 'commit'; readonly dropLocked: boolean }

/** Carries a request out. */
export type HolderAnswer = (request: HolderRequest) => Promise<void>

const REQUEST = 'request-'
const ANSWER = 'answer-'
const UNFINISHED = '.new'
/** Time for the holder to take a request. */
const TAKE_WAIT_MS = 30 * SECOND_MS
/** Between two looks at what has become of a request. */
const LOOK_MS = 100

function folderOf(replica: string): string {
  return join(replica, 'failover-holder')
}

/** The holder of a failover, until it is closed. */
export class FailoverHolder {
  readonly #folder: string
  readonly #lock: LockedDirectory
  readonly #answer: HolderAnswer
  readonly #watcher: FSWatcher | undefined

  private constructor(folder: string, lock: LockedDirectory, answer: HolderAnswer) {
    this.#folder = folder
    this.#lock = lock
    this.#answer = answer
    for (const name of requestsIn(folder)) rmSync(join(folder, name), { force: true })
    this.#watcher = this.#watch()
  }

  /** @throws {FAILOVER_IN_USE} with the process that has it */
  static take(replica: string, answer: HolderAnswer): FailoverHolder {
    const folder = folderOf(replica)
    return new FailoverHolder(folder, openLocked(folder, 'FAILOVER_IN_USE'), answer)
  }

  /** Calling it again does nothing. */
  close(): void {
    this.#watcher?.close()
    this.#lock.close()
  }

  /** Without a watch, which the system may refuse, nobody can ask; who does is told that the failover is in use. */
  #watch(): FSWatcher | undefined {
    try {
      const watcher = watch(this.#folder, { persistent: false }, () => {
        for (const name of requestsIn(this.#folder)) void this.#take(name)
      })
      return watcher.on('error', () => {})
    } catch {
      return undefined
    }
  }

  async #take(name: string): Promise<void> {
    const path = join(this.#folder, name)
    const request = readJson(path) as HolderRequest | undefined
    rmSync(path, { force: true })
    if (request === undefined) return
    const error = await this.#answer(request).then(() => null, toPlainError)
    // Who asks sees by the lock that a holder has left.
    tryToWrite(join(this.#folder, name.replace(REQUEST, ANSWER)), { error })
  }
}

/**
 * Asks whoever holds the failover, and waits until that is done.
 * @returns false when nobody holds it, or not any more
 * @throws {FAILOVER_IN_USE} when the holder does not react; and whatever it answers
 */
export async function askHolder(
  { directory, clock, random }: RecoveryContext,
  request: HolderRequest,
  signal?: AbortSignal,
): Promise<boolean> {
  const folder = folderOf(directory)
  if (holderError(directory) === undefined) return false
  const id = random.uuid()
  const [asked, answer] = [join(folder, REQUEST + id), join(folder, ANSWER + id)]
  write(asked, request)
  try {
    const deadlineMs = clock.nowMs() + TAKE_WAIT_MS
    for (;;) {
      const answered = readJson(answer) as { readonly error: PlainError | null } | undefined
      if (answered?.error) throw fromPlainError(answered.error)
      if (answered) return true
      const busy = holderError(directory)
      if (busy === undefined) return false
      if (readJson(asked) !== undefined && clock.nowMs() > deadlineMs) throw busy
      throwIfAborted(signal)
      await clock.sleep(LOOK_MS, signal)
    }
  } finally {
    for (const path of [asked, answer]) rmSync(path, { force: true })
  }
}

/** Whether somebody has the failover open, this process too. */
export function isHeld(replica: string): boolean {
  return holderError(replica) !== undefined
}

/** That somebody holds the failover, this process too; undefined when nobody does. */
function holderError(replica: string): SecondsiteError | undefined {
  try {
    openLocked(folderOf(replica), 'FAILOVER_IN_USE').close()
    return undefined
  } catch (error) {
    if (isSecondsiteError(error, 'FAILOVER_IN_USE')) return error
    throw error
  }
}

function requestsIn(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.startsWith(REQUEST) && !name.endsWith(UNFINISHED))
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined // It is not there, or not for us.
  }
}

function write(path: string, value: object): void {
  try {
    writeFileSync(path + UNFINISHED, JSON.stringify(value))
    renameSync(path + UNFINISHED, path)
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

function tryToWrite(path: string, value: object): void {
  try {
    write(path, value)
  } catch {
    // Who asks goes by the state of the replica once the lock is free.
  }
}
