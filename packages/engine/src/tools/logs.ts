/** Tools for log files: look at them, check them, apply them to an image, export them for other readers. */

import { existsSync } from 'node:fs'
import { SecondsiteError, toPlainError, type PlainError } from '../errors.js'
import { native } from '../native/index.js'
import { WorkerPool } from '../pool/pool.js'

/** What a log is, with everything that is wrong with it. */
export type LogReport = ReturnType<typeof native.inspectLog>
type LogEntries = ReturnType<typeof native.readLogEntries>
/** An entry of a log. */
export type LogEntry = LogEntries[number]
type ApplyReport = ReturnType<typeof native.applyLogs>
type ExportReport = ReturnType<typeof native.exportStrictLog>

const ENTRY_BATCH_COUNT = 4096

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

/** Yields the entries of a sealed log, in order, in batches. @throws {LOG_NOT_SEALED} and the codes of damage */
export function* readEntries(path: string): Generator<LogEntries> {
  checkExists(path)
  for (let first = 0; ; first += ENTRY_BATCH_COUNT) {
    const entries = native.readLogEntries(path, first, ENTRY_BATCH_COUNT)
    if (entries.length > 0) yield entries
    if (entries.length < ENTRY_BATCH_COUNT) return
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

/** Writes a sealed log as strict [MS-HRL] for other readers. @throws {OPTION_OUT_OF_RANGE} when `output` exists */
export async function exportLog(path: string, output: string): Promise<ExportReport> {
  checkExists(path)
  if (existsSync(output)) {
    const details = { option: 'output', path: output }
    throw new SecondsiteError('OPTION_OUT_OF_RANGE', { message: `${output} exists already`, details })
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
