/**
 * The picture of a run: a bar for each attempt of each step over time, as SVG to stand inside of a page.
 *
 * Time in which no process worked on the run is shaded, so that waiting and crashes are told from work.
 */

import { formatDuration } from '../units.js'
import { escapeHtml } from './escape.js'
import type { PlanReport, ReportStep } from './report.js'

const WIDTH = 960
const LABEL_WIDTH = 300
const ROW_HEIGHT = 20
const AXIS_HEIGHT = 24
const BAR_WIDTH_MIN = 2
const LABEL_LENGTH_MAX = 44

/** How many marks the axis has at most. */
const TICK_COUNT_MAX = 8
/** Distances between two marks, in seconds: what people count in. */
const TICK_SECONDS = [
  0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400,
]

/** The picture of a run; empty when no step was reached. */
export function timelineSvg(report: PlanReport): string {
  const rows = report.steps.filter(({ attempts }) => attempts.length > 0)
  if (rows.length === 0) return ''
  const scale = scaleOf(report)
  const height = AXIS_HEIGHT + rows.length * ROW_HEIGHT + 4
  const parts = [
    ...idle(report, scale, height),
    ...axis(report, scale, height),
    ...rows.flatMap((step, index) => row(step, index, report, scale)),
  ]
  const text = `Timeline of ${report.runId}`
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escapeHtml(text)}">\n${parts.join('\n')}\n</svg>`
}

type Scale = (atMs: number) => number

function scaleOf({ startedMs, lastMs }: PlanReport): Scale {
  const spanMs = Math.max(1, lastMs - startedMs)
  return (atMs) => LABEL_WIDTH + ((atMs - startedMs) / spanMs) * (WIDTH - LABEL_WIDTH - 8)
}

/** Between two sessions nobody worked; a session that was killed ends with what it has written last. */
function idle(report: PlanReport, scale: Scale, height: number): string[] {
  return report.sessions.slice(1).flatMap((session, index) => {
    const endMs = report.sessions[index]?.endedMs ?? lastBefore(report, session.startedMs)
    const x = scale(endMs)
    const width = scale(session.startedMs) - x
    if (width <= 0) return []
    return [`<rect class="idle" x="${round(x)}" y="0" width="${round(width)}" height="${height}"/>`]
  })
}

function lastBefore({ startedMs, steps }: PlanReport, atMs: number): number {
  const times = steps.flatMap(({ attempts }) => attempts.flatMap((one) => [one.startedMs, one.endedMs ?? 0]))
  return Math.max(startedMs, ...times.filter((time) => time <= atMs))
}

function axis({ startedMs, lastMs }: PlanReport, scale: Scale, height: number): string[] {
  const spanSeconds = (lastMs - startedMs) / 1000
  const seconds =
    TICK_SECONDS.find((one) => spanSeconds / one <= TICK_COUNT_MAX) ?? Math.ceil(spanSeconds / TICK_COUNT_MAX)
  const count = Math.floor(spanSeconds / seconds)
  return Array.from({ length: count + 1 }, (_, index) => {
    const x = round(scale(startedMs + index * seconds * 1000))
    const text = index === 0 ? '0' : formatDuration(index * seconds * 1000)
    return `<line class="tick" x1="${x}" y1="14" x2="${x}" y2="${height}"/><text class="tick" x="${x}" y="11">${text}</text>`
  })
}

function row(step: ReportStep, index: number, { startedMs, lastMs }: PlanReport, scale: Scale): string[] {
  const y = AXIS_HEIGHT + index * ROW_HEIGHT
  const label =
    step.title.length > LABEL_LENGTH_MAX ? `${step.title.slice(0, LABEL_LENGTH_MAX - 1)}…` : step.title
  const bars = step.attempts.map((attempt, at) => {
    const isLast = at === step.attempts.length - 1
    const isOpen = isLast && (step.state === 'Running' || step.state === 'Waiting')
    const endMs = attempt.endedMs ?? (isOpen ? lastMs : attempt.startedMs)
    const x = scale(attempt.startedMs)
    const width = Math.max(BAR_WIDTH_MIN, scale(endMs) - x)
    const after = formatDuration(attempt.startedMs - startedMs)
    const title = `${step.id} ${step.title}: after ${after}, ${formatDuration(endMs - attempt.startedMs)}`
    const kind = attempt.error ? 'Failed' : isLast ? step.state : 'Interrupted'
    return `<rect class="bar ${kind} ${step.type}" x="${round(x)}" y="${y + 3}" width="${round(width)}" height="${ROW_HEIGHT - 6}"><title>${escapeHtml(title)}</title></rect>`
  })
  return [`<text x="0" y="${y + 14}">${escapeHtml(label)}</text>`, ...bars]
}

function round(value: number): string {
  return value.toFixed(1)
}
