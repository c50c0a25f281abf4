/** The verbs on recovery plans that need no machine: check a file, look at runs, give one up. */

import { writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import {
  abandonPlan,
  formatDuration,
  listPlanRuns,
  type PlanReport,
  planReport,
  readPlan,
  reportHtml,
  reportText,
  SecondsiteError,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'

/** What the verbs on runs are given. */
export interface RunsGiven {
  readonly runs?: string
  readonly html?: string
}

/** Where runs are kept unless told otherwise; no machine's state can have this name, as names have no blank. */
export function runsDirectory({ runs }: RunsGiven): string {
  if (runs !== undefined) return runs
  if (process.getuid?.() === 0) return '/var/lib/secondsite/plan runs'
  return join(process.env['XDG_STATE_HOME'] ?? join(homedir(), '.local/state'), 'secondsite', 'plan runs')
}

/** `plan check FILE`. */
export async function planCheck({ output, isJson }: Invocation, [file = '']: string[]): Promise<ExitCode> {
  const { plan, warnings } = readPlan(file)
  const machineCount = Object.keys(plan.machines).length
  const counts = `${machineCount} machines in ${plan.groups.length} groups`
  const lines = warnings.map(({ line, column, text }) => `${file}:${line}:${column}: warning: ${text}`)
  if (isJson) output.json({ plan, warnings })
  else output.say([...lines, `${file}: plan ${plan.name}, ${counts}: good`].join('\n'))
  return EXIT.ok
}

/** `plan list`. */
export async function planList(
  { output, isJson }: Invocation,
  _args: string[],
  given: RunsGiven,
): Promise<ExitCode> {
  const runs = listPlanRuns({ directory: runsDirectory(given) })
  if (isJson) output.json({ runs })
  else if (runs.length === 0) output.say(`no runs in ${runsDirectory(given)}`)
  else output.say(table(['run', 'state', 'time'], runs.map(runRow)))
  return EXIT.ok
}

function runRow(run: ReturnType<typeof listPlanRuns>[number]): string[] {
  if (!('state' in run)) return [run.runId, run.code, '']
  return [run.runId, run.state, formatDuration(run.lastMs - run.startedMs)]
}

/** `plan report RUN [--html FILE]`. */
export async function planReportVerb(
  { output, isJson }: Invocation,
  [run = '']: string[],
  given: RunsGiven,
): Promise<ExitCode> {
  const report = planReport(run, { directory: runsDirectory(given) })
  if (given.html !== undefined) writePage(given.html, report)
  if (isJson) output.json(report)
  else output.say(given.html ?? reportText(report).trimEnd())
  return EXIT.ok
}

/** A page that was written before may be kept somewhere as evidence, so none is overwritten. */
function writePage(path: string, report: PlanReport): void {
  try {
    writeFileSync(path, reportHtml(report), { flag: 'wx' })
  } catch (error) {
    const reason = error instanceof Error && 'code' in error ? String(error.code) : String(error)
    const code = reason === 'EEXIST' ? 'PATH_EXISTS' : 'IO_FAILED'
    throw new SecondsiteError(code, { message: `cannot write ${path}: ${reason}`, details: { path, reason } })
  }
}

/** `plan abandon RUN`. */
export async function planAbandon(
  { output, isJson }: Invocation,
  [run = '']: string[],
  given: RunsGiven,
): Promise<ExitCode> {
  const report = abandonPlan(run, { directory: runsDirectory(given) })
  if (isJson) output.json(report)
  else output.say(`${report.runId}: Abandoned; nothing was undone`)
  return EXIT.ok
}
