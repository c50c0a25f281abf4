/**
 * Real files that fail on command: disks, logs, tracking files, spool, images and databases.
 *
 * A rule holds for the whole process, in every worker and in the core's own threads, because that is where the engine's
 * I/O is done. So paths are how a test stays out of the way of another one: give each its own folder. Paths are compared
 * as text after being made absolute; links are not followed. A database fails whole statements, as SQLite itself would
 * report it, each of which counts as one byte; everything else fails the system call.
 */

import { resolve } from 'node:path'
import type { FileFault, FileOperation } from '../native/faults.js'
import { native } from '../native/index.js'

/** Which operations on which files fail, and how. */
export interface FaultRule {
  /** A file, or a folder with everything below it. */
  readonly path: string
  /** Only files whose path ends with this, for example `.hrl`. */
  readonly suffix?: string
  /** Zeroing and discarding count as `write`; creating counts as `open`. */
  readonly operation: FileOperation
  readonly error: FileFault
  /** Reads and writes that touch these bytes alone: a bad sector. */
  readonly range?: { readonly offset: number; readonly lengthBytes: number }
  /** Bytes that pass first; the operation that goes beyond does its first part, as on a disk that becomes full. */
  readonly afterBytes?: number
  /** Operations that pass first. */
  readonly afterCalls?: number
  /** Operations that fail, then none; default all of them. */
  readonly times?: number
}

/** A rule in force. */
export class ArmedFault implements Disposable {
  readonly #number: number
  #strikesAtEnd: number | undefined

  /** @internal */
  constructor(number: number) {
    this.#number = number
  }

  /** Operations it has failed so far. */
  get strikes(): number {
    return this.#strikesAtEnd ?? native.faultStrikes(this.#number)
  }

  /** Takes the rule away; calling it again does nothing. */
  disarm(): void {
    this.#strikesAtEnd ??= native.disarmFault(this.#number)
  }

  [Symbol.dispose](): void {
    this.disarm()
  }
}

/**
 * A file system that fails on command. Its rules end with it.
 *
 * @example
 * using files = new FaultyFileSystem()
 * const full = files.fail({ path: logFolder, suffix: '.hrl', operation: 'write', error: 'ENOSPC' })
 * await web01.disks[0].write(0, block) // the guest does not notice
 * full.disarm()
 */
export class FaultyFileSystem implements Disposable {
  readonly #armed = new Set<ArmedFault>()

  /**
   * Puts a rule into force. Of several rules that concern an operation the first one put into force decides.
   * @throws TypeError when a value makes no sense
   * @throws {OPTION_OUT_OF_RANGE} when the process has 64 rules in force already
   */
  fail(rule: FaultRule): ArmedFault {
    const { path, suffix = '', operation, error, range } = rule
    if (path === '') throw new TypeError('a rule needs a path')
    const armed = new ArmedFault(
      native.armFault({
        path: resolve(path),
        suffix,
        operation,
        error,
        offset: whole(range?.offset, 'range.offset'),
        lengthBytes: whole(range?.lengthBytes, 'range.lengthBytes'),
        afterCalls: whole(rule.afterCalls, 'afterCalls'),
        afterBytes: whole(rule.afterBytes, 'afterBytes'),
        times: whole(rule.times, 'times'),
      }),
    )
    this.#armed.add(armed)
    return armed
  }

  /** Every file works again. */
  heal(): void {
    for (const armed of this.#armed) armed.disarm()
    this.#armed.clear()
  }

  [Symbol.dispose](): void {
    this.heal()
  }
}

/** Zero says "not given" to the core. */
function whole(value: number | undefined, name: string): number {
  if (value === undefined) return 0
  if (Number.isSafeInteger(value) && value >= 0) return value
  throw new TypeError(`${name} is ${value}, must be a whole number from 0`)
}
