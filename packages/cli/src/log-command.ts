/** The verbs on change logs. */

import { applyLogs, exportLog, formatBytes, SecondsiteError, verifyLogs } from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'

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
