/** The verbs on change logs. */

import {
  applyLogs,
  exportLog,
  formatBytes,
  type LogEntry,
  type LogReport,
  readEntries,
  SecondsiteError,
  showLog,
  verifyLogs,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'

type Given = Record<string, unknown>

/** `log show FILE [--entries]`. */
export async function logShow(
  { output, isJson }: Invocation,
  args: string[],
  given: Given,
): Promise<ExitCode> {
  const [file = ''] = args
  const report = await showLog(file)
  const wantsEntries = given['entries'] === true && report.isSealed && report.damage.length === 0
  const entries = wantsEntries ? [...readEntries(file)].flat() : []
  if (isJson) output.json(wantsEntries ? { ...report, entries } : report)
  else output.say([headerText(report), damageText(report), entriesText(entries)].filter(Boolean).join('\n'))
  return report.damage.length === 0 ? EXIT.ok : EXIT.different
}

/** `log verify FILE…`. */
export async function logVerify({ output, isJson }: Invocation, files: string[]): Promise<ExitCode> {
  const check = await verifyLogs(files)
  const lines = check.logs.map(({ path, entryCount, error }) => {
    return error === undefined
      ? `${path}: good, ${entryCount} entries`
      : `${path}: ${error.code}: ${error.message}`
  })
  if (check.chainError) lines.push(`chain: ${check.chainError.code}: ${check.chainError.message}`)
  else if (check.isGood && files.length > 1) lines.push(`chain of ${files.length} logs: good`)
  if (isJson) output.json(check)
  else output.say(lines.join('\n'))
  return check.isGood ? EXIT.ok : EXIT.different
}

/** `log apply FILE… IMAGE`. */
export async function logApply({ output, isJson }: Invocation, args: string[]): Promise<ExitCode> {
  const image = args.at(-1)
  const files = args.slice(0, -1)
  if (image === undefined || files.length === 0) {
    throw new SecondsiteError('OPTION_OUT_OF_RANGE', { message: 'name at least one log, and the image last' })
  }
  const report = await applyLogs(files, image)
  const { entryCount, writtenBytes, discardedBytes } = report
  const text = `applied ${entryCount} entries: ${formatBytes(writtenBytes)} written, ${formatBytes(discardedBytes)} zeroed`
  if (isJson) output.json({ image, ...report })
  else output.say(text)
  return EXIT.ok
}

/** `log export FILE OUT --strict`. */
export async function logExport({ output, isJson }: Invocation, args: string[]): Promise<ExitCode> {
  const [file = '', out = ''] = args
  const exported = await exportLog(file, out)
  if (isJson) output.json({ path: out, ...exported })
  else output.say(`${out}: ${exported.entryCount} entries, ${formatBytes(exported.logSizeBytes)}`)
  return EXIT.ok
}

function headerText(report: LogReport): string {
  const { header, statistics } = report
  const rows: string[][] = [
    ['file', report.path],
    ['size', formatBytes(report.logSizeBytes)],
  ]
  if (header !== undefined) {
    rows.push(
      ['format', `MS-HRL ${header.version}, written by "${header.creator}"`],
      ['unique id', header.id],
    )
    rows.push(['previous id', header.previousId], ['disk id', header.diskId || '(not in version 1)'])
    rows.push(['created', timeText(header.createdMs)], ['last modified', timeText(header.modifiedMs)])
  }
  rows.push(['sealed', report.isSealed ? 'yes' : 'no'], ['index', report.hasIndex ? 'yes' : 'no'])
  rows.push(['entries', `${statistics.entryCount}, ${statistics.writeCount} of them writes`])
  rows.push(['written', formatBytes(statistics.writeBytes)], ['zeroed', formatBytes(statistics.zeroBytes)])
  rows.push(['discarded', formatBytes(statistics.discardBytes)])
  if (statistics.entryCount > 0)
    rows.push(['from', timeText(statistics.firstTimeMs)], ['to', timeText(statistics.lastTimeMs)])
  return table(['', ''], rows)
}

function damageText(report: LogReport): string {
  if (report.damage.length === 0) return 'no damage'
  const rows = report.damage.map((one) => [
    one.isTorn ? 'torn tail' : 'DAMAGED',
    one.code,
    String(one.offset),
    one.reason,
  ])
  return table(['kind', 'code', 'offset', 'reason'], rows)
}

function entriesText(entries: readonly LogEntry[]): string {
  if (entries.length === 0) return ''
  const rows = entries.map((entry) => [
    String(entry.sequence),
    new Date(Number(entry.timeNs / 1_000_000n)).toISOString(),
    entry.operation,
    String(entry.offset),
    String(entry.lengthBytes),
  ])
  return table(['sequence', 'time', 'operation', 'offset', 'bytes'], rows)
}

function timeText(timeMs: number): string {
  return new Date(timeMs).toISOString()
}
