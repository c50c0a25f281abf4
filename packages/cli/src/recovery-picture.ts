/**
 * Churn over time as a picture: two lines of bars for a terminal, or an SVG that needs nothing but itself. Above stands how
 * much was written in a second, below how much of it is left at the entropy of its bytes; points are marked.
 *
 * Cuts are put together into columns of equal time, so that a month and an hour have the same width.
 */

import { type CutChurn, formatBytes, type RecoveryPoint } from '@secondsite/engine'
import { timeText } from './recovery-command.js'

/** What is drawn. */
export interface Picture {
  readonly machine: string
  readonly cuts: readonly CutChurn[]
  readonly points: readonly RecoveryPoint[]
}

/** What was written in one column. */
interface Column {
  readonly bytesPerSecond: number
  /** 0, all alike, to 1, noise; null where nothing was written. */
  readonly density: number | null
  readonly isSuspicious: boolean
}

const LEVELS = [...' ▁▂▃▄▅▆▇█']
const COLUMNS = 60

/** Two lines of bars, with what they mean. */
export function bars(cuts: readonly CutChurn[]): string {
  const columns = columnsOf(cuts, COLUMNS)
  const most = Math.max(1, ...columns.map(({ bytesPerSecond }) => bytesPerSecond))
  const churn = columns.map(({ bytesPerSecond }) => level(bytesPerSecond / most)).join('')
  const density = columns.map((column) => level(column.density ?? 0)).join('')
  const marks = columns.map(({ isSuspicious }) => (isSuspicious ? '!' : ' ')).join('')
  const [first, last] = [timeText(cuts[0]?.fromMs ?? 0), timeText(cuts.at(-1)?.toMs ?? 0)]
  return [
    `from ${first} to ${last}`,
    `written |${churn}| at most ${formatBytes(Math.round(most))}/s`,
    `density |${density}| full: does not compress`,
    ...(marks.trim() === '' ? [] : [`        |${marks}| ! looks like encryption`]),
  ].join('\n')
}

function level(share: number): string {
  // Whatever is there at all is seen.
  const index = share <= 0 ? 0 : Math.max(1, Math.round(share * (LEVELS.length - 1)))
  return LEVELS[Math.min(index, LEVELS.length - 1)] ?? ' '
}

function columnsOf(cuts: readonly CutChurn[], count: number): Column[] {
  const fromMs = cuts[0]?.fromMs ?? 0
  const widthMs = Math.max(1, (Math.max(...cuts.map(({ toMs }) => toMs)) - fromMs) / count)
  return Array.from({ length: count }, (_, index) =>
    columnOf(cuts, fromMs + index * widthMs, fromMs + (index + 1) * widthMs),
  )
}

/** Of a cut that reaches beyond a column so much is counted as lies in it. */
function columnOf(cuts: readonly CutChurn[], fromMs: number, toMs: number): Column {
  let [writeBytes, entropyBytes] = [0, 0]
  let isSuspicious = false
  for (const cut of cuts) {
    const durationMs = Math.max(1, cut.toMs - cut.fromMs)
    const share =
      Math.max(0, Math.min(toMs, cut.fromMs + durationMs) - Math.max(fromMs, cut.fromMs)) / durationMs
    writeBytes += cut.writeBytes * share
    entropyBytes += cut.entropyBytes * share
    isSuspicious ||= share > 0 && cut.isSuspicious
  }
  const density = writeBytes === 0 ? null : entropyBytes / writeBytes
  return { bytesPerSecond: (writeBytes * 1000) / (toMs - fromMs), density, isSuspicious }
}

const WIDTH = 960
const LEFT = 70
const CHURN_TOP = 50
const CHURN_HEIGHT = 200
const DENSITY_TOP = 290
const DENSITY_HEIGHT = 90
const HEIGHT = 440
const SVG_COLUMNS = 200

/** A picture by itself: no script, no font, no link. */
export function churnSvg({ machine, cuts, points }: Picture): string {
  const body = cuts.length === 0 ? [text(LEFT, 120, 'nothing was measured yet')] : drawing(cuts, points)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    text(LEFT, 24, `${machine}: written over time, and how well it compresses`, 'font-size="16"'),
    ...body,
    '</svg>',
    '',
  ].join('\n')
}

function drawing(cuts: readonly CutChurn[], points: readonly RecoveryPoint[]): string[] {
  const columns = columnsOf(cuts, SVG_COLUMNS)
  const most = Math.max(1, ...columns.map(({ bytesPerSecond }) => bytesPerSecond))
  const [fromMs, toMs] = [cuts[0]?.fromMs ?? 0, Math.max(...cuts.map((cut) => cut.toMs))]
  const at = (timeMs: number): number =>
    LEFT + ((timeMs - fromMs) / Math.max(1, toMs - fromMs)) * (WIDTH - LEFT - 20)
  const width = (WIDTH - LEFT - 20) / SVG_COLUMNS
  const rects = columns.flatMap((column, index) => {
    const x = LEFT + index * width
    const high = (column.bytesPerSecond / most) * CHURN_HEIGHT
    const dense = (column.density ?? 0) * DENSITY_HEIGHT
    const color = column.isSuspicious ? '#c0392b' : '#2f6f9f'
    return [
      rect(x, CHURN_TOP + CHURN_HEIGHT - high, width, high, color),
      rect(
        x,
        DENSITY_TOP + DENSITY_HEIGHT - dense,
        width,
        dense,
        column.isSuspicious ? '#c0392b' : '#b7862c',
      ),
    ]
  })
  const marks = points
    .filter(({ cutTimeMs }) => cutTimeMs >= fromMs && cutTimeMs <= toMs)
    .map((point) => markOf(point, at(point.cutTimeMs)))
  return [
    ...rects,
    ...marks,
    text(4, CHURN_TOP + 10, `${formatBytes(Math.round(most))}/s`),
    text(4, CHURN_TOP + CHURN_HEIGHT, '0'),
    text(4, DENSITY_TOP + 10, 'noise'),
    text(4, DENSITY_TOP + DENSITY_HEIGHT, 'all alike'),
    text(LEFT, HEIGHT - 40, timeText(fromMs)),
    text(WIDTH - 20, HEIGHT - 40, timeText(toMs), 'text-anchor="end"'),
    text(
      LEFT,
      HEIGHT - 16,
      'dotted: recovery points; red: looks like encryption; solid red: last point before it',
    ),
  ]
}

function markOf({ number, suspicion }: RecoveryPoint, x: number): string {
  const style =
    suspicion === 'last-before' ? 'stroke="#c0392b" stroke-width="2"' : 'stroke="#555" stroke-dasharray="2 3"'
  const line = `<line x1="${fixed(x)}" y1="${CHURN_TOP - 10}" x2="${fixed(x)}" y2="${DENSITY_TOP + DENSITY_HEIGHT}" ${style}>`
  return `${line}<title>point ${number}</title></line>`
}

function rect(x: number, y: number, width: number, height: number, color: string): string {
  if (height < 0.05) return ''
  return `<rect x="${fixed(x)}" y="${fixed(y)}" width="${fixed(width)}" height="${fixed(height)}" fill="${color}"/>`
}

function text(x: number, y: number, content: string, style = ''): string {
  return `<text x="${x}" y="${y}" ${style}>${escaped(content)}</text>`
}

/** The picture on a page, with the numbers of each point below. */
export function churnPage(picture: Picture): string {
  const { machine, points } = picture
  const rows = points.map(({ number, cutTimeMs, kind, churn, suspicion }) => {
    const cells = [
      String(number),
      timeText(cutTimeMs),
      kind,
      churn ? formatBytes(churn.writeBytes) : '',
      churn ? formatBytes(churn.entropyBytes) : '',
      churn ? formatBytes(churn.turnedBytes) : '',
      suspicion ?? '',
    ]
    return `<tr>${cells.map((cell) => `<td>${escaped(cell)}</td>`).join('')}</tr>`
  })
  const heads = [
    'point',
    'time',
    'kind',
    'written since the one before',
    'at its entropy',
    'turned into noise',
    'encryption',
  ]
  return [
    '<!doctype html>',
    `<html lang="en"><head><meta charset="utf-8"><title>${escaped(machine)}: recovery points</title>`,
    '<style>body{font:14px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}</style>',
    '</head><body>',
    churnSvg(picture),
    `<table><tr>${heads.map((head) => `<th>${head}</th>`).join('')}</tr>`,
    ...rows,
    '</table></body></html>',
    '',
  ].join('\n')
}

function fixed(value: number): string {
  return value.toFixed(2)
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

function escaped(content: string): string {
  return content.replace(/[&<>"']/g, (character) => ENTITIES[character] ?? '')
}
