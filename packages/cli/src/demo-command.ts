/** The verb demo: runs it and prints its table. */

import { formatBytes, formatDuration } from '@secondsite/engine'
import type { Invocation } from './command.js'
import { type DemoStep, runDemo } from './demo/demo.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'

/** `demo [--keep]`. */
export async function demo(
  { output, isJson, signal }: Invocation,
  _args: string[],
  given: Record<string, unknown>,
): Promise<ExitCode> {
  const say = isJson ? () => {} : output.say
  const keep = given['keep'] === true
  const report = await runDemo({ say, onProgress: (step) => output.progress(step) }, { keep, signal })
  output.progress(undefined)
  if (isJson) output.json(report)
  else output.say(`\n${tableOf(report.steps)}\n${report.isGood ? 'all checks passed' : 'A CHECK FAILED'}`)
  if (keep) output.warn(`kept: ${report.folder}`)
  return report.isGood ? EXIT.ok : EXIT.failed
}

function tableOf(steps: readonly DemoStep[]): string {
  const rows = steps.map((step) => [
    step.name,
    formatBytes(step.writtenBytes),
    formatBytes(step.loggedBytes),
    formatBytes(step.sentBytes),
    formatBytes(step.comparedBytes),
    formatDuration(step.durationMs),
  ])
  return table(['step', 'written', 'logged', 'sent', 'compared', 'time'], rows)
}
