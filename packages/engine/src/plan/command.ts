/**
 * Runs the command of an action: without a shell, as a process group of its own, with an end in sight.
 *
 * The group is what makes a timeout mean something: a script that is killed leaves what it has started behind, its group
 * does not. At the timeout, or when the run is stopped, the group gets SIGTERM, five seconds later SIGKILL. A command
 * that ends by itself may leave processes behind (a service that it has started); they are let alone, and what they
 * write afterwards is not waited for.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import type { Clock } from '../clock.js'
import { abortedError, SecondsiteError, throwIfAborted } from '../errors.js'
import { SECOND_MS } from '../units.js'
import type { SpawnedProcess } from './run-view.js'
import { identityOf } from '../process-identity.js'

/** Bytes of output that are kept, the last ones. */
export const OUTPUT_BYTES_MAX = 8192

/** Time from SIGTERM to SIGKILL. */
const KILL_GRACE_MS = 5 * SECOND_MS
/** How long output is waited for when the command has ended but something holds its pipes. */
const OUTPUT_GRACE_MS = SECOND_MS
const GROUP_POLL_MS = 20

/** A command that is to run. */
export interface CommandCall {
  readonly command: readonly string[]
  readonly directory: string
  /** Beside the variables of this process. */
  readonly environment: Readonly<Record<string, string>>
  /** Goes to the standard input. */
  readonly input: string
  readonly timeoutMs: number
  readonly clock: Clock
  readonly signal: AbortSignal
  /** Called as soon as the process runs. */
  readonly onSpawn: (process: SpawnedProcess) => void
}

/** What a command that succeeded has left. */
export interface CommandResult {
  readonly exitCode: 0
  /** The last {@link OUTPUT_BYTES_MAX} bytes of output and errors, in the order in which they came. */
  readonly output: string
}

/**
 * Runs a command to its end.
 * @throws {PLAN_ACTION_FAILED} when it cannot be started, or ends with a code that is not 0 or by a signal
 * @throws {PLAN_ACTION_TIMEOUT} when it took too long; its process group is gone
 * @throws {ABORTED} when the signal stopped it; its process group is gone
 */
export async function runCommand(call: CommandCall): Promise<CommandResult> {
  throwIfAborted(call.signal)
  const child = await started(call)
  const output = new OutputTail(child)
  const stopped = stopping(call, child)
  try {
    child.stdin?.on('error', () => {
      // A command that reads nothing closes its input early; that is no fault of it.
    })
    child.stdin?.end(call.input)
    announce(call, child)
    const end = await exited(child)
    const cause = await stopped.settle()
    await output.settled(call.clock)
    if (cause !== undefined)
      throw cause === 'timeout' ? timedOut(call, output) : abortedError(call.signal.reason)
    if (end.exitCode === 0) return { exitCode: 0, output: output.text() }
    throw failed(call, endText(end), { ...end, output: output.text() })
  } catch (error) {
    // Whatever was wrong, a command without an observer must not go on.
    stopped.cancel()
    if (child.exitCode === null && child.signalCode === null) signalGroup(child, 'SIGKILL')
    throw error
  }
}

function announce(call: CommandCall, child: ChildProcess): void {
  const processId = child.pid ?? 0
  call.onSpawn({ processId, identity: identityOf(processId) ?? '' })
}

function started(call: CommandCall): Promise<ChildProcess> {
  const [program = '', ...args] = call.command
  return new Promise((resolve, reject) => {
    const refuse = (error: unknown): void => {
      const reason = error instanceof Error && 'code' in error ? String(error.code) : String(error)
      reject(failed(call, `it cannot be started in ${call.directory}: ${reason}`, { reason }))
    }
    try {
      const environment = { ...process.env, ...call.environment }
      const child = spawn(program, args, {
        cwd: call.directory,
        env: environment,
        detached: true,
        stdio: 'pipe',
      })
      child.once('error', refuse).once('spawn', () => resolve(child))
    } catch (error) {
      refuse(error)
    }
  })
}

interface CommandEnd {
  readonly exitCode: number | null
  readonly endSignal: string | null
}

function exited(child: ChildProcess): Promise<CommandEnd> {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null)
      return resolve({ exitCode: child.exitCode, endSignal: child.signalCode })
    child.once('exit', (exitCode, endSignal) => resolve({ exitCode, endSignal }))
  })
}

interface Stopping {
  /** Waits until a stop that has begun is through. @returns why the command was stopped, if it was */
  settle(): Promise<'timeout' | 'abort' | undefined>
  cancel(): void
}

function stopping({ clock, signal, timeoutMs }: CommandCall, child: ChildProcess): Stopping {
  let cause: 'timeout' | 'abort' | undefined
  let work: Promise<void> | undefined
  const stop = (why: 'timeout' | 'abort'): void => {
    cause ??= why
    work ??= endGroup(child, clock)
  }
  const onAbort = (): void => stop('abort')
  const cancelTimer = clock.setTimer(timeoutMs, () => stop('timeout'))
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  const cancel = (): void => {
    cancelTimer()
    signal.removeEventListener('abort', onAbort)
  }
  const settle = async (): Promise<'timeout' | 'abort' | undefined> => {
    cancel()
    await work
    return cause
  }
  return { settle, cancel }
}

/** SIGTERM, and SIGKILL for what is left after the grace. A leader that ends early takes nobody with it, so the group is asked. */
async function endGroup(child: ChildProcess, clock: Clock): Promise<void> {
  signalGroup(child, 'SIGTERM')
  const deadlineMs = clock.nowMs() + KILL_GRACE_MS
  while (isGroupAlive(child) && clock.nowMs() < deadlineMs) await clock.sleep(GROUP_POLL_MS)
  signalGroup(child, 'SIGKILL')
}

function isGroupAlive(child: ChildProcess): boolean {
  return signalGroup(child, 0)
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals | 0): boolean {
  if (child.pid === undefined) return false
  try {
    return process.kill(-child.pid, signal)
  } catch {
    // ESRCH: nobody is left.
    return false
  }
}

/** The end of what a command writes. */
class OutputTail {
  readonly #child: ChildProcess
  readonly #closed: Promise<void>
  #bytes = Buffer.alloc(0)

  constructor(child: ChildProcess) {
    this.#child = child
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (bytes: Buffer) => this.#add(bytes))
    this.#closed = new Promise((resolve) => child.once('close', () => resolve()))
  }

  #add(bytes: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, bytes]).subarray(-OUTPUT_BYTES_MAX)
  }

  /** Waits until the pipes are closed, or as long as one waits for what a background process may still hold. */
  async settled(clock: Clock): Promise<void> {
    const cancel = await new Promise<() => void>((resolve) => {
      const cancelTimer: () => void = clock.setTimer(OUTPUT_GRACE_MS, () => resolve(cancelTimer))
      void this.#closed.then(() => resolve(cancelTimer))
    })
    cancel()
    for (const stream of [this.#child.stdout, this.#child.stderr]) stream?.destroy()
  }

  text(): string {
    return this.#bytes.toString('utf8')
  }
}

function endText({ exitCode, endSignal }: CommandEnd): string {
  return exitCode === null ? `it was ended by ${endSignal}` : `it ended with exit code ${exitCode}`
}

function failed(call: CommandCall, reason: string, details: object): SecondsiteError {
  const [program = ''] = call.command
  return new SecondsiteError('PLAN_ACTION_FAILED', {
    message: `${program}: ${reason}`,
    details: { command: [...call.command], ...details },
  })
}

function timedOut(call: CommandCall, output: OutputTail): SecondsiteError {
  const [program = ''] = call.command
  const timeoutSeconds = call.timeoutMs / SECOND_MS
  return new SecondsiteError('PLAN_ACTION_TIMEOUT', {
    message: `${program}: it was ended with all it had started after ${timeoutSeconds} s`,
    details: { command: [...call.command], timeoutSeconds, output: output.text() },
  })
}
