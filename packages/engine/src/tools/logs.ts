/** Tools for log files: look at them, check them, apply them to an image, export them for other readers. */

import { existsSync } from 'node:fs'
import { SecondsiteError, toPlainError, type PlainError } from '../errors.js'
import { native } from '../native/index.js'
import { WorkerPool } from '../pool/pool.js'

/** What a log is, with everything that is wrong with it. */
export type LogReport = ReturnType<typeof native.inspectLog>
type LogEntries = ReturnType<typeof native.nextLogEntries>
/** An entry of a log. */
export type LogEntry = LogEntries[number]
type ApplyReport = ReturnType<typeof native.applyLogs>
type ExportReport = ReturnType<typeof native.exportStrictLog>

/** What a check of logs found. */
export interface LogCheck {
  readonly isGood: boolean
  readonly logs: readonly {
    readonly path: string
    readonly entryCount: number
    readonly error?: PlainError
  }[]
  /** What is wrong with the order of the logs; absent when they form one chain. */
  readonly chainError?: PlainError
}

/** Says what a log is; damage is part of the answer. @throws {PATH_NOT_FOUND} and {LOG_READ_FAILED} */
export async function showLog(path: string): Promise<LogReport> {
  checkExists(path)
  return (await call('inspectLog', [path])) as LogReport
}

/**
 * Yields the entries of a log in order, in batches of at most 4096, however long it is. A log that is open or damaged
 * yields what can be read of it.
 * @throws {LOG_TORN_TAIL, LOG_CORRUPT, LOG_INDEX_MISMATCH} and the other codes of damage at the end: what stopped the
 * list, or made it leave the index, with its offset
 */
export function* readEntries(path: string): Generator<LogEntries> {
  checkExists(path)
  const handle = native.openLogEntries(path)
  try {
    for (;;) {
      const entries = native.nextLogEntries(handle)
      if (entries.length === 0) return
      yield entries
    }
  } finally {
    native.closeLogEntries(handle)
  }
}

/** Checks each log completely, then that they form one chain in the order given. Damage is part of the answer. */
export async function verifyLogs(paths: readonly string[]): Promise<LogCheck> {
  for (const path of paths) checkExists(path)
  const logs = []
  for (const path of paths) logs.push(await checkLog(path))
  const areGood = logs.every((log) => log.error === undefined)
  const chainError =
    areGood && paths.length > 1 ? await failureOf(call('verifyLogChain', [paths])) : undefined
  const isGood = areGood && chainError === undefined
  return { isGood, logs, ...(chainError === undefined ? {} : { chainError }) }
}

/**
 * Writes the entries of logs to an image, in order. All logs and their chain are checked before the first byte is
 * written, so a bad log leaves the image as it was.
 */
export async function applyLogs(paths: readonly string[], image: string): Promise<ApplyReport> {
  for (const path of paths) checkExists(path)
  const { sizeBytes } = native.probeDisk(image)
  for (const path of paths) await call('verifyLog', [path, sizeBytes])
  if (paths.length > 1) await call('verifyLogChain', [paths])
  return (await call('applyLogs', [image, paths, true])) as ApplyReport
}

/** Writes a sealed log as strict [MS-HRL] for other readers. @throws {PATH_EXISTS} when there is something at `output` */
export async function exportLog(path: string, output: string): Promise<ExportReport> {
  checkExists(path)
  if (existsSync(output)) {
    const message = `there is something at ${output} already`
    throw new SecondsiteError('PATH_EXISTS', { message, details: { path: output } })
  }
  return (await call('exportStrictLog', [path, output])) as ExportReport
}

async function checkLog(path: string) {
  try {
    const { entryCount } = (await call('verifyLog', [path, 0])) as { entryCount: number }
    return { path, entryCount }
  } catch (error) {
    return { path, entryCount: 0, error: toPlainError(error) }
  }
}

async function failureOf(work: Promise<unknown>): Promise<PlainError | undefined> {
  try {
    await work
    return undefined
  } catch (error) {
    return toPlainError(error)
  }
}

async function call(name: keyof typeof native, args: readonly unknown[]): Promise<unknown> {
  const pool = new WorkerPool({ threadCountMax: 1 })
  try {
    return await pool.run('native', { call: name, args })
  } finally {
    await pool.close()
  }
}

function checkExists(path: string): void {
  if (existsSync(path)) return
  throw new SecondsiteError('PATH_NOT_FOUND', { message: `there is no log at ${path}`, details: { path } })
}
