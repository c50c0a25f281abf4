/**
 * Where a command prints: results to standard output, everything else to standard error.
 *
 * Progress is a bar, on a terminal only, or with `--progress json` one JSON object a line; then everything on standard
 * error is such a line, errors too. There is no colour: nothing here needs one, so NO_COLOR has nothing to turn off.
 */

import { formatBytes, formatDuration, isSecondsiteError } from '@secondsite/engine'
import { Presets, SingleBar } from 'cli-progress'
import Table from 'cli-table3'

/** What long work tells on its way. */
export interface Step {
  readonly phase: string
  readonly doneBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  readonly etaMs: number | null
}

/** How progress is shown: a bar on a terminal, a JSON object a line, or not at all. */
export type ProgressMode = 'auto' | 'json' | 'none'

/** Every value of {@link ProgressMode}, for the command line. */
export const PROGRESS_MODES: readonly ProgressMode[] = ['auto', 'json', 'none']

export interface Output {
  /** Text for people. */
  say(text: string): void
  /** An object of `--json`, on a line of its own. */
  json(value: unknown): void
  /** Something to know beside the result, to standard error. */
  warn(text: string): void
  /** What the command failed with, to standard error. */
  fail(error: ErrorText): void
  /** Shows progress; `undefined` ends a bar. */
  progress(step: Step | undefined): void
  /** Lets what was written get out, and the rest of the process have its turn. */
  settled(): Promise<void>
  /** The same streams with progress shown this way. */
  showing(mode: ProgressMode): Output
}

/** An error as it is shown. */
export interface ErrorText {
  readonly code: string
  readonly message: string
  readonly details: object
  readonly hint: string
}

function event(value: object): void {
  process.stderr.write(`${jsonText(value)}\n`)
}

/** Prints to the streams of the process. */
export function stdoutOutput(mode: ProgressMode = 'auto'): Output {
  const isLines = mode === 'json'
  const bar = new Bar(mode === 'auto' && process.stderr.isTTY)
  const print = (stream: NodeJS.WriteStream, text: string): void => {
    bar.end()
    stream.write(`${text}\n`)
  }
  return {
    say: (text) => print(process.stdout, text),
    json: (value) => print(process.stdout, jsonText(value)),
    warn: (text) => (isLines ? event({ event: 'note', text }) : print(process.stderr, text)),
    fail: (error) => {
      if (isLines) event({ event: 'error', ...error })
      else
        print(process.stderr, `error ${error.code}: ${error.message}${error.hint && `\nhint: ${error.hint}`}`)
    },
    progress: (step) => {
      if (step === undefined) bar.end()
      else if (isLines) event({ event: 'progress', ...step })
      else bar.show(step)
    },
    settled: () => new Promise((resolve) => setImmediate(resolve)),
    showing: stdoutOutput,
  }
}

/** One line on a terminal, gone when it ends. */
class Bar {
  readonly #isShown: boolean
  #bar: SingleBar | undefined

  constructor(isShown: boolean) {
    this.#isShown = isShown
  }

  show(step: Step): void {
    if (!this.#isShown) return
    this.#bar ??= newBar(step.totalBytes)
    const eta = step.etaMs === null ? '' : `, ${formatDuration(step.etaMs)} left`
    const text = `${formatBytes(step.doneBytes)} of ${formatBytes(step.totalBytes)}, ${formatBytes(step.bytesPerSecond)}/s${eta}`
    this.#bar.update(step.doneBytes, { text })
  }

  end(): void {
    this.#bar?.stop()
    this.#bar = undefined
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

function jsonText(value: unknown): string {
  return JSON.stringify(value, plainNumbers)
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

/** A table of two columns without a head: what a thing is, and its value. */
export function list(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')
}

/** What is shown of an error. */
export function errorText(error: unknown): ErrorText {
  if (!isSecondsiteError(error)) return { code: 'INTERNAL', message: String(error), details: {}, hint: '' }
  const { code, message, details, hint } = error
  return { code, message, details, hint: code === 'ABORTED' ? hintOfStop(details) : hint }
}

/** Only some runs go on where they stopped. */
function hintOfStop(details: object): string {
  const goesOn = 'goesOn' in details && details.goesOn === true
  return goesOn ? 'Run it again: it goes on there.' : 'Run it again: it begins at its start.'
}
