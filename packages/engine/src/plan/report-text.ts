/**
 * Forecasts and reports as tables of text, for terminals and mails.
 */

import { formatBytes, formatDuration, SECOND_MS } from '../units.js'
import type { PlanForecast, StepForecast } from './forecast.js'
import type { PointChoice } from './plan.js'
import type { PlanReport, ReportMachine, ReportStep } from './report.js'
import type { PlanPoint } from './targets.js'

/** What stands where nothing is known. */
const NOTHING = '-'

/** What a dry run found, for people. */
export function forecastText(forecast: PlanForecast): string {
  const { plan, kind, machines, stages, warnings, lossSeconds, lossBytes, copyBytes, estimatedMs } = forecast
  const rows = machines.map(({ name, choice, forecast: one, error }) => [
    name,
    choiceText(choice),
    error ? `${error.code}: ${error.message}` : pointText(one?.point ?? null),
    lossText(one?.lossSeconds ?? null, one?.lossBytes ?? null),
    one ? formatBytes(one.copyBytes) : NOTHING,
    durationText(one?.estimatedMs ?? null),
  ])
  const notes = machines.flatMap(({ name, forecast: one }) =>
    (one?.notes ?? []).map((note) => `  ${name}: ${note}`),
  )
  const loss = `loses ${lossText(lossSeconds, lossBytes)}, copies ${formatBytes(copyBytes)}, failovers take ${durationText(estimatedMs)}`
  return lines([
    `Dry run of plan ${plan} as ${kind}: nothing was changed.`,
    ...warnings.map(({ line, text }) => `warning: line ${line}: ${text}`),
    '',
    ...columns(['machine', 'choice', 'point', 'loss', 'to copy', 'time'], rows),
    ...notes,
    '',
    loss,
    '',
    ...columns(['step', 'group', 'what'], stages.flatMap(stageRows)),
  ])
}

function stageRows(stage: readonly StepForecast[], index: number): string[][] {
  return stage.map(({ step, error }, at) => [
    at === 0 ? String(index + 1) : '',
    at === 0 ? step.groupName : '',
    error ? `${step.title}  (${error.code}: ${error.message})` : step.title,
  ])
}

/** What a run has brought, for people. */
export function reportText(report: PlanReport): string {
  const { runId, plan, kind, state, startedMs, lastMs, waitedMs } = report
  const waited = waitedMs > 0 ? `, of it ${formatDuration(waitedMs)} waiting for somebody` : ''
  const waiting = report.steps.filter((step) => step.state === 'Waiting')
  return lines([
    `Run ${runId}: plan ${plan} as ${kind}, ${state}`,
    `started ${timeText(startedMs)}, ${formatDuration(lastMs - startedMs)}${waited}`,
    `recovery time ${durationText(report.recoveryTimeMs)}, loss ${lossText(report.lossSeconds, null)}`,
    '',
    ...columns(
      ['machine', 'outcome', 'recovery time', 'point', 'loss', 'protected'],
      report.machines.map(machineRow),
    ),
    '',
    ...columns(['step', 'group', 'what', 'state', 'tries', 'time', 'remark'], report.steps.map(stepRow)),
    ...waiting.flatMap(({ text }) => ['', 'Waiting for somebody:', ...indented(text ?? '')]),
  ])
}

function machineRow(machine: ReportMachine): string[] {
  const { name, outcome, recoveryTimeMs, point, lossSeconds, lossBytes } = machine
  const loss = lossText(lossSeconds, lossBytes)
  return [name, outcome, durationText(recoveryTimeMs), pointText(point), loss, protectedText(machine)]
}

/** Whether a machine is protected where it is now, for people. */
export function protectedText({ isProtected }: Pick<ReportMachine, 'isProtected'>): string {
  if (isProtected === null) return NOTHING
  return isProtected ? 'yes' : 'no'
}

function stepRow(step: ReportStep): string[] {
  const { id, groupName, title, state, attempts, workedMs } = step
  return [
    id,
    groupName,
    title,
    state,
    String(attempts.length),
    durationText(attempts.length > 0 ? workedMs : null),
    remarkOf(step),
  ]
}

/** Why a step is as it is, on one line. */
export function remarkOf({ error, reason, decidedBy, state }: ReportStep): string {
  if (error !== null && state !== 'Done') return `${error.code}: ${error.message.split('\n')[0] ?? ''}`
  if (reason !== null) return reason
  return decidedBy === null ? '' : `by ${decidedBy}`
}

/** A choice of a point, for people. */
export function choiceText(choice: PointChoice): string {
  if (typeof choice === 'string') return choice
  return choice.time ?? `sequence ${choice.sequence}`
}

/** A point, for people. */
export function pointText(point: PlanPoint | null): string {
  return point === null ? NOTHING : `${point.sequence} of ${timeText(point.timeMs)}, ${point.kind}`
}

/** A time in UTC, for people. */
export function timeText(timeMs: number): string {
  return `${new Date(timeMs).toISOString().slice(0, 19).replace('T', ' ')} UTC`
}

/** A duration that may not be known, for people. */
export function durationText(durationMs: number | null): string {
  return durationMs === null ? NOTHING : formatDuration(durationMs)
}

/** What is lost, as far as it is known, for people. */
export function lossText(lossSeconds: number | null, lossBytes: number | null): string {
  const parts = [
    lossSeconds === null ? [] : [formatDuration(lossSeconds * SECOND_MS)],
    lossBytes === null ? [] : [formatBytes(lossBytes)],
  ].flat()
  return parts.length === 0 ? NOTHING : parts.join(', ')
}

/** Columns as wide as what is in them; nothing behind the last. */
function columns(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [head, ...rows.map((row) => row.map(plainText))]
  const widths = head.map((_, index) => Math.max(...all.map((row) => [...(row[index] ?? '')].length)))
  return all.map((row) =>
    row
      .map((cell, index) => cell.padEnd(widths[index] ?? 0))
      .join('  ')
      .trimEnd(),
  )
}

/** Texts of plans and programs must not steer a terminal. */
function plainText(text: string): string {
  return text.replaceAll(/\p{Cc}+/gu, ' ')
}

function indented(text: string): string[] {
  return text.split('\n').map((line) => `  ${line}`)
}

function lines(parts: readonly string[]): string {
  return `${parts.map(plainText).join('\n').trimEnd()}\n`
}
