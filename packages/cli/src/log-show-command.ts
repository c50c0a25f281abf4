/**
 * `log show FILE [--entries]`: what a log is, what is wrong with it, and its entries.
 *
 * Entries are printed as they are read, in memory that does not grow with the log; with `--json` the report is the first
 * line, each entry a line of its own, and the last line says how many there were and what stopped the list, if anything.
 */

import {
  formatBytes,
  isSecondsiteError,
  type LogEntry,
  type LogReport,
  readEntries,
  SecondsiteError,
  showLog,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.js'
import { type ErrorText, errorText, list, type Output, table } from './output.js'

/** Damage of a file that makes it no log of ours to show anything of. */
const NO_LOG = ['LOG_NOT_HRL', 'LOG_VERSION_UNSUPPORTED']

/** @throws {LOG_NOT_HRL, LOG_VERSION_UNSUPPORTED, PATH_NOT_FOUND, LOG_READ_FAILED} when there is nothing to show */
export async function logShow(
  { output, isJson, signal }: Invocation,
  args: string[],
  given: Record<string, unknown>,
): Promise<ExitCode> {
  const [file = ''] = args
  const report = await showLog(file)
  refuseNoLog(report)
  if (isJson) output.json(report)
  else output.say([headerText(report), damageText(report)].join('\n'))
  const stopped = given['entries'] === true ? await printEntries(output, isJson, file, signal) : undefined
  if (stopped !== undefined && exitCodeOf(stopped.code) !== EXIT.different) return exitCodeOf(stopped.code)
  return report.damage.length === 0 && stopped === undefined ? EXIT.ok : EXIT.different
}

function isKnown(code: string): code is 'LOG_NOT_HRL' | 'LOG_VERSION_UNSUPPORTED' {
  return NO_LOG.includes(code)
}

function refuseNoLog({ header, damage: [first], path }: LogReport): void {
  if (header || first === undefined) return
  const { code, offset, reason } = first
  if (!isKnown(code)) return
  const message = `${path} at offset ${offset}: ${reason}`
  throw new SecondsiteError(code, { message, details: { path, offset, reason } })
}

/** @returns what ended the list before the log's end, if anything did */
async function printEntries(
  output: Output,
  isJson: boolean,
  file: string,
  signal: AbortSignal,
): Promise<ErrorText | undefined> {
  let count = 0
  let stopped: ErrorText | undefined
  if (!isJson) output.say(`\n${ENTRY_HEAD}`)
  try {
    for (const entries of readEntries(file)) {
      if (signal.aborted) throw new SecondsiteError('ABORTED', { message: `stopped after ${count} entries` })
      count += entries.length
      for (const entry of entries) {
        if (isJson) output.json(entry)
        else output.say(entryText(entry))
      }
      await output.settled()
    }
  } catch (error) {
    if (!isSecondsiteError(error)) throw error
    stopped = errorText(error)
  }
  if (isJson) output.json({ entryCount: count, ...(stopped ? { error: stopped } : {}) })
  else output.say(stopped ? `${count} entries; then ${stopped.code}: ${stopped.message}` : `${count} entries`)
  return stopped
}

function headerText(report: LogReport): string {
  const { header, statistics } = report
  const rows: [string, string][] = [
    ['file', report.path],
    ['size', formatBytes(report.logSizeBytes)],
  ]
  if (header) {
    rows.push(
      ['format', `MS-HRL ${header.version}, written by "${header.creator}"`],
      ['unique id', header.id],
      ['previous id', header.previousId],
      ['disk id', header.diskId || '(not in version 1)'],
      ['created', timeText(header.createdMs)],
      ['last modified', timeText(header.modifiedMs)],
    )
  }
  rows.push(
    ['sealed', report.isSealed ? 'yes' : 'no'],
    ['index', report.hasIndex ? 'yes' : 'no'],
    ['entries', `${statistics.entryCount}, ${statistics.writeCount} of them writes`],
    ['written', formatBytes(statistics.writeBytes)],
    ['zeroed', formatBytes(statistics.zeroBytes)],
    ['discarded', formatBytes(statistics.discardBytes)],
  )
  if (statistics.entryCount > 0)
    rows.push(['from', timeText(statistics.firstTimeMs)], ['to', timeText(statistics.lastTimeMs)])
  return list(rows)
}

function damageText(report: LogReport): string {
  if (report.damage.length === 0) return 'no damage'
  const rows = report.damage.map((one) => [
    one.isTorn ? 'torn tail' : 'DAMAGED',
    one.code,
    one.path === report.path ? 'log' : 'index',
    String(one.offset),
    one.reason,
  ])
  return table(['kind', 'code', 'file', 'offset', 'reason'], rows)
}

const ENTRY_WIDTHS = [12, 24, 12, 16, 12]
const ENTRY_HEAD = columns(['sequence', 'time', 'operation', 'offset', 'bytes'])

function entryText(entry: LogEntry): string {
  const time = new Date(Number(entry.timeNs / 1_000_000n)).toISOString()
  return columns([entry.sequence, time, entry.operation, entry.offset, entry.lengthBytes])
}

function columns(cells: readonly (string | number)[]): string {
  return cells.map((cell, index) => String(cell).padStart(ENTRY_WIDTHS[index] ?? 0)).join('  ')
}

/** A damaged header may hold any number. */
function timeText(timeMs: number): string {
  const time = new Date(timeMs)
  return Number.isNaN(time.getTime()) ? `${timeMs} ms after 1970` : time.toISOString()
}
