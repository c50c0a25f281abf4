/**
 * Where a command prints: results to standard output, everything else to standard error; bars on a terminal only.
 */

import { formatBytes, formatDuration, isSecondsiteError } from '@secondsite/engine'
import { Presets, SingleBar } from 'cli-progress'
import Table from 'cli-table3'

/** What long work tells on its way. */
export interface Step {
  readonly doneBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  readonly etaMs: number | null
}

export interface Output {
  /** Text for people. */
  say(text: string): void
  /** The one object of `--json`. */
  json(value: unknown): void
  /** A hint or an error, to standard error. */
  warn(text: string): void
  /** Shows progress, on a terminal only; `undefined` ends it. */
  progress(step: Step | undefined): void
}

/** Prints to the streams of the process. */
export function stdoutOutput(): Output {
  let bar: SingleBar | undefined
  const end = (): void => {
    bar?.stop()
    bar = undefined
  }
  return {
    say: (text) => {
      end()
      process.stdout.write(`${text}\n`)
    },
    json: (value) => {
      end()
      process.stdout.write(`${JSON.stringify(value, plainNumbers)}\n`)
    },
    warn: (text) => {
      end()
      process.stderr.write(`${text}\n`)
    },
    progress: (step) => {
      if (step === undefined || !process.stderr.isTTY) return end()
      bar ??= newBar(step.totalBytes)
      const eta = step.etaMs === null ? '' : `, ${formatDuration(step.etaMs)} left`
      const text = `${formatBytes(step.doneBytes)} of ${formatBytes(step.totalBytes)}, ${formatBytes(step.bytesPerSecond)}/s${eta}`
      bar.update(step.doneBytes, { text })
    },
  }
}

function newBar(totalBytes: number): SingleBar {
  const options = {
    format: '{bar} {percentage} %  {text}',
    stream: process.stderr,
    hideCursor: true,
    clearOnComplete: true,
  }
  const bar = new SingleBar(options, Presets.shades_classic)
  bar.start(totalBytes, 0, { text: '' })
  return bar
}

/** Nanoseconds are bigints; as text they keep every digit. */
function plainNumbers(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? value.toString() : value
}

/** A table for people. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const made = new Table({ head: [...head], style: { head: [], border: [] } })
  made.push(...rows.map((row) => [...row]))
  return made.toString()
}

/** An error as the object of `--json`. */
export function errorObject(error: unknown): { error: object } {
  if (!isSecondsiteError(error))
    return { error: { code: 'INTERNAL', message: String(error), details: {}, hint: '' } }
  const { code, message, details, hint } = error
  return { error: { code, message, details, hint } }
}
