/**
 * The report of a run as one page: no script, nothing from elsewhere, so it can be mailed, kept and printed as it is.
 */

import { formatDuration } from '../units.js'
import { escapeHtml } from './escape.js'
import type { PlanReport, ReportMachine, ReportSession, ReportStep } from './report.js'
import {
  choiceText,
  durationText,
  lossText,
  pointText,
  protectedText,
  remarkOf,
  timeText,
} from './report-text.js'
import { timelineSvg } from './timeline.js'

const STYLE = `
  body { font: 14px/1.45 system-ui, sans-serif; color: #1c1e21; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; }
  table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top; }
  th { border-bottom: 1px solid #888; font-weight: 600; } td { border-bottom: 1px solid #ddd; }
  .figures { display: flex; flex-wrap: wrap; gap: 2rem; margin: 1rem 0; } .figures div { min-width: 8rem; }
  .figures b { display: block; font-size: 1.4rem; } .state { font-weight: 600; }
  .Completed, .Done, .Recovered { color: #1a6e3c; } .CompletedWithErrors, .Failed, .Blocked, .NotRecovered { color: #a3211b; }
  .WaitingForInput, .Waiting, .Interrupted, .Aborted, .Abandoned, .Skipped, .InProgress, .Running, .Open { color: #8a5a00; } .Pending { color: #666; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .5rem; margin: .25rem 0; font-size: 12px; }
  svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; } svg .tick { stroke: #ddd; fill: #666; } svg text.tick { stroke: none; text-anchor: middle; }
  svg .idle { fill: #f0f0f0; } svg .bar { fill: #8a5a00; } svg .bar.Done { fill: #3b8f5c; } svg .bar.manual { fill: #b9a36a; } svg .bar.Failed { fill: #c0392b; }
  @media print { body { margin: 0; max-width: none; font-size: 11px; } tr, svg, pre { break-inside: avoid; } h2 { break-after: avoid; }
    * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
  @page { margin: 1.5cm; }`

/** The report of a run as a whole HTML document. */
export function reportHtml(report: PlanReport): string {
  const { runId, description } = report
  const said = description === null ? '' : `<p>${escapeHtml(description)}</p>`
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeHtml(runId)}</title>
<style>${STYLE}
</style>
</head>
<body>
${heading(report)}
${said}
${figures(report)}
<h2>Machines</h2>
${table(['machine', 'outcome', 'recovery time', 'choice', 'point', 'loss', 'copied', 'protected'], report.machines.map(machineCells))}
<h2>Timeline</h2>
${timelineSvg(report)}
<h2>Steps</h2>
${table(
  ['step', 'group', 'what', 'state', 'tries', 'started', 'time', 'remark'],
  report.steps.map((step) => stepCells(step, report)),
)}
<h2>Who worked on it</h2>
${table(['from', 'until', 'operator', 'process'], report.sessions.map(sessionCells))}
${outputs(report)}
</body>
</html>
`
}

function heading({ plan, kind, state, runId, startedMs }: PlanReport): string {
  const what = `Recovery plan ${escapeHtml(plan)}, ${kind}: <span class="state ${state}">${state}</span>`
  return `<h1>${what}</h1>\n<p>Run ${escapeHtml(runId)}, started ${timeText(startedMs)}</p>`
}

function figures({ recoveryTimeMs, lossSeconds, startedMs, lastMs, waitedMs }: PlanReport): string {
  const values: [string, string][] = [
    ['recovery time (RTO)', durationText(recoveryTimeMs)],
    ['largest loss (RPO)', lossText(lossSeconds, null)],
    ['time of the run', formatDuration(lastMs - startedMs)],
    ['of it waiting for somebody', formatDuration(waitedMs)],
  ]
  const boxes = values.map(([name, value]) => `<div>${name}<b>${escapeHtml(value)}</b></div>`)
  return `<div class="figures">${boxes.join('')}</div>`
}

function cells(row: readonly string[], tag: string): string {
  return row.map((cell) => `<${tag}>${cell}</${tag}>`).join('')
}

/** Cells hold HTML: each is escaped where it is made. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const body = rows.map((row) => `<tr>${cells(row, 'td')}</tr>`)
  return `<table>\n<thead><tr>${cells(head, 'th')}</tr></thead>\n<tbody>\n${body.join('\n')}\n</tbody>\n</table>`
}

function stateCell(state: string): string {
  return `<span class="state ${state}">${state}</span>`
}

function machineCells(machine: ReportMachine): string[] {
  const { name, outcome, recoveryTimeMs, choice, point, lossSeconds, lossBytes, copyBytes } = machine
  return [
    escapeHtml(name),
    stateCell(outcome),
    durationText(recoveryTimeMs),
    escapeHtml(choiceText(choice)),
    escapeHtml(pointText(point)),
    lossText(lossSeconds, lossBytes),
    lossText(null, copyBytes),
    protectedText(machine),
  ]
}

function stepCells(step: ReportStep, { startedMs }: PlanReport): string[] {
  const { id, groupName, title, state, attempts, workedMs } = step
  const [first] = attempts
  return [
    escapeHtml(id),
    escapeHtml(groupName),
    escapeHtml(title),
    stateCell(state),
    String(attempts.length),
    first === undefined ? '' : `+${formatDuration(first.startedMs - startedMs)}`,
    first === undefined ? '' : formatDuration(workedMs),
    escapeHtml(remarkOf(step)),
  ]
}

function sessionCells({ startedMs, endedMs, operator, processId }: ReportSession): string[] {
  const end = endedMs === null ? 'no end is written down' : timeText(endedMs)
  return [timeText(startedMs), end, escapeHtml(operator), String(processId)]
}

/** What actions have written and answered, and instructions, at the end of the page. */
function outputs({ steps }: PlanReport): string {
  const parts = steps.flatMap((step) => {
    const text = step.text ?? outputOf(step)
    return text === ''
      ? []
      : [`<h3>${escapeHtml(`${step.id} ${step.title}`)}</h3>\n<pre>${escapeHtml(text)}</pre>`]
  })
  return parts.length === 0 ? '' : `<h2>Output and instructions</h2>\n${parts.join('\n')}`
}

function outputOf({ result, error }: ReportStep): string {
  const holder = error?.details ?? (typeof result === 'object' && result !== null ? result : {})
  const { output, answer } = holder as { readonly output?: unknown; readonly answer?: unknown }
  const said = [output, answer].filter((one) => typeof one === 'string' && one.trim() !== '')
  return said.join('\n')
}
