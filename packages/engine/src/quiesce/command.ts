/**
 * Runs a command of a hook, in a process group of its own that ends with its limit.
 *
 * Killing the group and not the process alone matters: a shell script that is killed leaves the program it waits for, and
 * that one would freeze what we have thawed already. What is killed is waited for, as a process inside a system call
 * ends only when that call does. Where a command ends well, its children may go on: one of them may be what holds the
 * applications still.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { abortedError, SecondsiteError } from '../errors.js'

/** Characters of a command's output that an error shows, at most: its end. */
const OUTPUT_LENGTH_MAX = 2000

/** Options of {@link runCommand}. */
export interface CommandOptions {
  /** What it is for: `prepare`, `freeze`, `thaw`; also told to the command as SECONDSITE_QUIESCE. */
  readonly purpose: string
  readonly signal?: AbortSignal
  /** Milliseconds after which it is killed; default only `signal` ends it. */
  readonly limitMs?: number
  /** Told the id of the process group, as soon as there is one. */
  readonly onGroup?: (processGroup: number) => void
}

/** How a command ended. */
export interface CommandResult {
  /** Null when a signal ended it. */
  readonly exitCode: number | null
  /** The end of what it wrote. */
  readonly output: string
}

/**
 * Runs a command and waits for its end.
 * @throws {QUIESCE_FREEZE_FAILED} when it cannot be started
 * @throws {QUIESCE_TIMEOUT, ABORTED} when its limit or `signal` ended it
 */
export async function runCommand(words: readonly string[], options: CommandOptions): Promise<CommandResult> {
  const { purpose, signal, limitMs, onGroup } = options
  if (signal?.aborted) throw abortedError(signal.reason)
  // fsfreeze and its like stand where the search path of a user seldom leads.
  const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`
  const env = { ...process.env, PATH, LC_ALL: 'C', SECONDSITE_QUIESCE: purpose }
  const child = spawn(words[0] ?? '', words.slice(1), {
    cwd: '/',
    detached: true,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = tailOf(child)
  if (child.pid !== undefined) onGroup?.(child.pid)
  const stopper = new AbortController()
  const stop = (): void => stopper.abort(signal?.reason)
  signal?.addEventListener('abort', stop, { once: true })
  const late = new SecondsiteError('QUIESCE_TIMEOUT', {
    message: `${purpose}: ${words[0]} took longer than ${limitMs} ms`,
    details: { purpose, program: words[0] ?? '', limitMs: limitMs ?? 0 },
  })
  const timer = limitMs === undefined ? undefined : setTimeout(() => stopper.abort(late), limitMs)
  stopper.signal.addEventListener('abort', () => killGroup(child.pid))
  try {
    const exitCode = await exitOf(child, purpose, words)
    if (stopper.signal.aborted) throw abortedError(stopper.signal.reason)
    return { exitCode, output: output() }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
    // A child that lives on keeps these open; nobody reads them any more.
    child.stdout?.destroy()
    child.stderr?.destroy()
  }
}

/** Ends every process of a group; one that is gone is what was wanted. */
export function killGroup(processGroup: number | undefined): void {
  if (processGroup === undefined) return
  try {
    process.kill(-processGroup, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** The end of its output, as far as it has come. */
function tailOf(child: ChildProcess): () => string {
  let text = ''
  const add = (chunk: Buffer): void => {
    text = (text + chunk.toString('utf8')).slice(-OUTPUT_LENGTH_MAX)
  }
  child.stdout?.on('data', add)
  child.stderr?.on('data', add)
  return () => text.trim()
}

/** Waits for `exit`, not for `close`: a child of the command may hold its output open for ever. */
function exitOf(child: ChildProcess, purpose: string, words: readonly string[]): Promise<number | null> {
  return new Promise((resolve, reject) => {
    // What was written just before the end is read in the same turn, before this.
    child.once('exit', (code) => setImmediate(() => resolve(code)))
    child.once('error', (cause) => {
      const program = words[0] ?? ''
      const reason = (cause as NodeJS.ErrnoException).code ?? cause.message
      const message = `${purpose}: ${program} cannot be started: ${reason}`
      reject(
        new SecondsiteError('QUIESCE_FREEZE_FAILED', {
          message,
          details: { purpose, program, reason },
          cause,
        }),
      )
    })
  })
}
