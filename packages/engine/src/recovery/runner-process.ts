/**
 * Processes that runners start: each the leader of a group of its own, so that a Ctrl-C meant for us does not end a
 * machine, with its output in a file. A process is only ever signalled by its number together with what tells it from
 * a later one of the same number.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { type JsonValue, SecondsiteError } from '../errors.js'
import { identityOf, isSameProcess } from '../process-identity.js'

/** A process by its number and what tells it from a later one. */
export interface StartedProcess {
  readonly processId: number
  readonly identity: string
}

/** A process to be started. */
export interface ProcessCall {
  readonly words: readonly string[]
  readonly directory: string
  /** Beside the variables of this process. */
  readonly environment: Readonly<Record<string, string>>
  /** Goes to the standard input, which is then closed. */
  readonly input?: string
  /** File that output and errors are put behind. */
  readonly logPath: string
  /** Another file for errors; default the same. */
  readonly errorPath?: string
}

/** How a process ended. */
export interface ProcessEnd {
  /** Null when a signal ended it. */
  readonly exitCode: number | null
  readonly endSignal: string | null
}

/** A process that was started here. */
export interface RunningProcess extends StartedProcess {
  readonly ended: Promise<ProcessEnd>
}

const POLL_MS = 50
const OUTPUT_LENGTH_MAX = 4000
/** The XML of a domain has some 10 KiB. */
const STANDARD_OUTPUT_BYTES_MAX = 1024 * 1024

/** Starts a process. @throws {RUNNER_NOT_FOUND} when there is no such program; {RUNNER_FAILED} when it cannot be started */
export async function startProcess(call: ProcessCall): Promise<RunningProcess> {
  const log = openSync(call.logPath, 'a', 0o600)
  const errors = openSync(call.errorPath ?? call.logPath, 'a', 0o600)
  try {
    const child = spawn(call.words[0] ?? '', call.words.slice(1), {
      cwd: call.directory,
      env: { ...process.env, ...call.environment },
      detached: true,
      stdio: [call.input === undefined ? 'ignore' : 'pipe', log, errors],
    })
    const ended = endOf(child)
    await spawned(child, call)
    child.stdin?.on('error', ignore)
    child.stdin?.end(call.input)
    const processId = child.pid ?? 0
    return { processId, identity: identityOf(processId) ?? '', ended }
  } finally {
    closeSync(log)
    closeSync(errors)
  }
}

function ignore(): void {
  // A command that reads nothing closes its input early; that is no fault of it.
}

function endOf(child: ChildProcess): Promise<ProcessEnd> {
  return new Promise((resolve) => {
    child.once('exit', (exitCode, endSignal) => resolve({ exitCode, endSignal }))
  })
}

function spawned(child: ChildProcess, { words }: ProcessCall): Promise<void> {
  const [program = ''] = words
  return new Promise((resolve, reject) => {
    child.once('spawn', () => resolve())
    child.once('error', (cause) => {
      const reason = 'code' in cause ? String(cause.code) : cause.message
      const code = reason === 'ENOENT' ? 'RUNNER_NOT_FOUND' : 'RUNNER_FAILED'
      const message = `${program} cannot be started: ${reason}`
      reject(new SecondsiteError(code, { message, details: { program, reason }, cause }))
    })
  })
}

/** What a command that has ended has left. */
export interface CommandOutput {
  /** Null when a signal ended it. */
  readonly exitCode: number | null
  /** The end of what it wrote, its errors last. */
  readonly output: string
  /** What it wrote to its standard output, the first MiB. */
  readonly standardOutput: string
}

/** A command that is waited for. */
export interface CommandCall extends Omit<ProcessCall, 'logPath'> {
  readonly limitMs: number
  readonly clock: Clock
}

/**
 * Runs a command to its end; what it leaves behind may go on.
 * @throws {RUNNER_NOT_FOUND, RUNNER_FAILED} when it cannot be started, or took longer than its limit: its group is gone then
 */
export async function runToEnd({ limitMs, clock, ...call }: CommandCall): Promise<CommandOutput> {
  const folder = mkdtempSync(join(tmpdir(), 'secondsite-command-'))
  const [logPath, errorPath] = [join(folder, 'output'), join(folder, 'errors')]
  try {
    const started = await startProcess({ ...call, logPath, errorPath })
    const end = await Promise.race([started.ended, limitOf(started, limitMs, clock)])
    if (end !== undefined) {
      const output = [outputOf(logPath), outputOf(errorPath)].filter((text) => text !== '').join('\n')
      return { exitCode: end.exitCode, output, standardOutput: startOf(logPath) }
    }
    signalProcess(started, 'SIGKILL')
    await started.ended
    throw processFailed(`${call.words[0]} took longer than ${limitMs / 1000} s`, errorPath)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Resolves with nothing once the limit has passed; a process that ends earlier ends the waiting, too. */
async function limitOf({ ended }: RunningProcess, limitMs: number, clock: Clock): Promise<undefined> {
  const stop = new AbortController()
  void ended.then(() => stop.abort())
  // A sleep that was ended has lost the race to the end of the process.
  await clock.sleep(limitMs, stop.signal).catch(() => ended)
  return undefined
}

/** The error of a process that did not do what it was for. */
export function processFailed(
  what: string,
  logPath: string,
  details: Readonly<Record<string, JsonValue>> = {},
): SecondsiteError {
  const output = outputOf(logPath)
  // What comes first is what went wrong; QEMU puts advice behind it.
  const message = output === '' ? what : `${what}: ${output.split('\n')[0]}`
  return new SecondsiteError('RUNNER_FAILED', { message, details: { ...details, output } })
}

/** The end of what a process wrote. */
export function outputOf(logPath: string): string {
  return existsSync(logPath) ? readFileSync(logPath, 'utf8').slice(-OUTPUT_LENGTH_MAX).trim() : ''
}

function startOf(path: string): string {
  const file = openSync(path, 'r')
  try {
    const bytes = Buffer.alloc(STANDARD_OUTPUT_BYTES_MAX)
    return bytes.toString('utf8', 0, readSync(file, bytes))
  } finally {
    closeSync(file)
  }
}

/** How an end is told. */
export function endText({ exitCode, endSignal }: ProcessEnd): string {
  return exitCode === null ? `was ended by ${endSignal}` : `ended with exit code ${exitCode}`
}

/** Whether it runs. */
export function isRunning({ processId, identity }: StartedProcess): boolean {
  return isSameProcess(processId, identity)
}

/** Waits for the end of a process. @returns whether it came within the limit */
export async function awaitEnd(started: StartedProcess, limitMs: number, clock: Clock): Promise<boolean> {
  const deadlineMs = clock.nowMs() + limitMs
  while (isRunning(started)) {
    if (clock.nowMs() >= deadlineMs) return false
    await clock.sleep(POLL_MS)
  }
  return true
}

/** Signals a process with its group, unless it has ended. */
export function signalProcess(started: StartedProcess, signal: NodeJS.Signals): void {
  if (!isRunning(started)) return
  try {
    process.kill(-started.processId, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** Processes with this token in their environment: those that were started for a run, and what they started. */
export function processesOf(token: string): StartedProcess[] {
  const variable = Buffer.from(`SECONDSITE_RUN_TOKEN=${token}\0`)
  return readdirSync('/proc').flatMap((name) => {
    const processId = /^\d+$/.test(name) ? Number(name) : process.pid
    if (processId === process.pid) return []
    const identity = identityOf(processId)
    return identity !== undefined && environmentOf(processId).includes(variable)
      ? [{ processId, identity }]
      : []
  })
}

function environmentOf(processId: number): Buffer {
  try {
    return readFileSync(`/proc/${processId}/environ`)
  } catch {
    // Another user's, or gone.
    return Buffer.alloc(0)
  }
}

/** Ends, by SIGKILL, whatever of a run is left that nobody recorded. */
export function killLeft(token: string): void {
  for (const { processId, identity } of processesOf(token)) {
    if (!isSameProcess(processId, identity)) continue
    try {
      process.kill(processId, 'SIGKILL')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
}
