/** What `protect` shows while it runs: a table that is drawn again in its place on a terminal. */

import { cursorTo, clearScreenDown, moveCursor } from 'node:readline'
import { formatBytes, formatDuration, type Measurement, type NbdCounters } from '@secondsite/engine'
import { table } from './output.js'

/** One look at a machine. */
export interface Look {
  readonly atMs: number
  readonly measurement: Measurement
  readonly counters: NbdCounters
}

/** The lines for people; rates are those since the look before. */
export function statusText(now: Look, before: Look): string {
  const { measurement } = now
  const rows = measurement.disks.map((disk, index) => [
    disk.name,
    formatBytes(disk.sizeBytes),
    `${formatBytes(rateOf(disk.writtenBytes, before.measurement.disks[index]?.writtenBytes, now, before))}/s`,
    `${formatBytes(disk.logBytes)}, ${disk.logPercent.toFixed(1)} % of ${disk.thresholdPercent} %`,
    disk.mode === 'map' ? `${formatBytes(disk.changedBytes)} in the map` : '',
  ])
  return [headline(measurement), lines(now, before), table(HEAD, rows)]
    .filter((text) => text !== '')
    .join('\n')
}

const HEAD = ['disk', 'size', 'writes', 'log, threshold', 'to resynchronize']

function headline({ machine, state, health, healthDetails }: Measurement): string {
  const reasons = healthDetails.map(({ text }) => text).join('; ')
  return `${machine}: ${state}, health ${health}${reasons === '' ? '' : ` (${reasons})`}`
}

function lines(now: Look, before: Look): string {
  const { measurement, counters } = now
  const readRate = rateOf(counters.readBytes, before.counters.readBytes, now, before)
  const parts = [
    lossText(measurement),
    `${counters.connectionCount} clients, reads ${formatBytes(readRate)}/s`,
    cycleText(measurement),
    progressText(measurement),
    retryText(measurement, now.atMs),
  ]
  return parts.filter((part) => part !== '').join('\n')
}

function lossText({ lossMs, pendingBytes, rpo }: Measurement): string {
  if (lossMs === null) return 'a failover now is not possible: nothing has been applied yet'
  const p99 = rpo.p99Ms === null ? '' : `, 99 % of the time below ${formatDuration(rpo.p99Ms)}`
  return `a failover now loses ${formatDuration(lossMs)}, ${formatBytes(pendingBytes)}${p99}`
}

function cycleText({ lastCycle }: Measurement): string {
  if (lastCycle === null) return ''
  const { durationMs, rawBytes, sentBytes } = lastCycle
  return `last cycle ${formatBytes(rawBytes)} of log, ${formatBytes(sentBytes)} sent, took ${formatDuration(durationMs)}`
}

function progressText({ progress }: Measurement): string {
  if (progress === null || progress.phase === 'delta') return ''
  const { phase, doneBytes, totalBytes, bytesPerSecond, etaMs } = progress
  const eta = etaMs === null ? '' : `, ${formatDuration(etaMs)} left`
  return `${phase}: ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}, ${formatBytes(bytesPerSecond)}/s${eta}`
}

function retryText({ retry, lastError }: Measurement, nowMs: number): string {
  if (lastError === null) return ''
  const next =
    retry === null
      ? ''
      : `; attempt ${retry.attempt + 1} in ${formatDuration(Math.max(0, retry.atMs - nowMs))}`
  return `${lastError.code}: ${lastError.message}${next}`
}

function rateOf(now: number, before: number | undefined, at: Look, was: Look): number {
  const seconds = (at.atMs - was.atMs) / 1000
  return before === undefined || seconds <= 0 ? 0 : Math.max(0, (now - before) / seconds)
}

/** Draws text in the place of what it drew before. */
export class Painter {
  readonly #stream: NodeJS.WriteStream
  #lineCount = 0

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream
  }

  draw(text: string): void {
    this.clear()
    // Lines longer than the terminal would be wrapped, and then not be found again.
    const width = this.#stream.columns || 80
    const cut = text.split('\n').map((line) => line.slice(0, width - 1))
    this.#stream.write(`${cut.join('\n')}\n`)
    this.#lineCount = cut.length
  }

  clear(): void {
    if (this.#lineCount === 0) return
    moveCursor(this.#stream, 0, -this.#lineCount)
    cursorTo(this.#stream, 0)
    clearScreenDown(this.#stream)
    this.#lineCount = 0
  }
}
