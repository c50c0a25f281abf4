/**
 * One process at a time has the disks of a failover open: who holds the lock of the folder `failover-holder`.
 *
 * What another process wants of them it asks the holder, by a file in that folder: to *leave* them, since what was written is
 * to be thrown away, or to *commit* them while the guest goes on. The holder renames the file as its word that it is at work,
 * carries out one request after the other, and answers by a file, or by leaving. A holder that comes removes what the one before
 * it left; who still waits then asks again. The folder stays when the failover goes, as a lock that is removed could be held by
 * two.
 *
 * Whoever moves a failover or ends it holds the lock while it does, and who opens one reads its row under the lock.
 */

import {
  existsSync,
  type FSWatcher,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  watch,
  writeFileSync,
} from 'node:fs'
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
/** A request that its holder is at work on. */
const TAKEN = 'taken-'
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
  #watcher: FSWatcher | undefined
  #atWork: Promise<void> = Promise.resolve()
  #isClosed = false

  private constructor(folder: string, lock: LockedDirectory) {
    this.#folder = folder
    this.#lock = lock
    for (const name of namesOf(folder, [REQUEST, TAKEN])) tryToRemove(join(folder, name))
  }

  /** @throws {FAILOVER_IN_USE} with the process that has it */
  static take(replica: string): FailoverHolder {
    const folder = folderOf(replica)
    return new FailoverHolder(folder, openLocked(folder, 'FAILOVER_IN_USE'))
  }

  /** From here on it does what others ask; who has asked before has waited for that. Calling it again does nothing. */
  answerWith(answer: HolderAnswer): void {
    if (this.#isClosed) return
    this.#watcher ??= this.#watch(answer)
    this.#takeAll(answer)
  }

  /** Calling it again does nothing. */
  close(): void {
    this.#isClosed = true
    this.#watcher?.close()
    this.#lock.close()
  }

  /** Without a watch, which the system may refuse, nobody can ask; who does is told that the failover is in use. */
  #watch(answer: HolderAnswer): FSWatcher | undefined {
    try {
      const watcher = watch(this.#folder, { persistent: false }, () => this.#takeAll(answer))
      return watcher.on('error', () => {})
    } catch {
      return undefined
    }
  }

  #takeAll(answer: HolderAnswer): void {
    for (const name of namesOf(this.#folder, [REQUEST])) {
      const taken = name.replace(REQUEST, TAKEN)
      if (!tryToRename(join(this.#folder, name), join(this.#folder, taken))) continue
      this.#atWork = this.#atWork.then(() => this.#carryOut(taken, answer))
    }
  }

  /** Who asks sees by the lock that a holder has left, and then goes by the state of the replica. */
  async #carryOut(taken: string, answer: HolderAnswer): Promise<void> {
    const request = readJson(join(this.#folder, taken)) as HolderRequest | undefined
    if (request === undefined || this.#isClosed) return
    const error = await answer(request).then(() => null, toPlainError)
    if (!this.#isClosed) tryToWrite(join(this.#folder, taken.replace(TAKEN, ANSWER)), { error })
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
  const [asked, taken, answer] = [REQUEST, TAKEN, ANSWER].map((what) => join(folder, what + id)) as [
    string,
    string,
    string,
  ]
  try {
    let deadlineMs = clock.nowMs() + TAKE_WAIT_MS
    for (;;) {
      const answered = readJson(answer) as { readonly error: PlainError | null } | undefined
      if (answered?.error) throw fromPlainError(answered.error)
      if (answered) return true
      const busy = holderError(directory)
      if (busy === undefined) return false
      if (existsSync(taken)) deadlineMs = clock.nowMs() + TAKE_WAIT_MS
      else if (clock.nowMs() > deadlineMs) throw busy
      else if (!existsSync(asked) && !existsSync(answer)) write(asked, request)
      throwIfAborted(signal)
      await clock.sleep(LOOK_MS, signal)
    }
  } finally {
    for (const path of [asked, taken, answer]) rmSync(path, { force: true })
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

/** Nothing of a folder that cannot be read: what is said through it must end nobody who serves disks. */
function namesOf(folder: string, kinds: readonly string[]): string[] {
  try {
    const isOne = (name: string): boolean => kinds.some((kind) => name.startsWith(kind))
    return readdirSync(folder).filter((name) => isOne(name) && !name.endsWith(UNFINISHED))
  } catch {
    return []
  }
}

function tryToRename(from: string, to: string): boolean {
  try {
    renameSync(from, to)
    return true
  } catch {
    return false // Who asked has taken it back.
  }
}

function tryToRemove(path: string): void {
  try {
    rmSync(path, { force: true })
  } catch {
    // It stays, and is carried out: who wrote it may have waited for that.
  }
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
