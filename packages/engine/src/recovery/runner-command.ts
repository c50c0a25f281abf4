/**
 * Machines that commands start: whatever brings a machine up here that is neither QEMU nor libvirt.
 *
 * Both commands get the handover as JSON on their standard input and as variables. A `start` that is the machine runs as long as that
 * does; another one ends once the machine runs, and then `stop` alone knows how it is ended.
 */

import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { SecondsiteError } from '../errors.js'
import { SECOND_MS } from '../units.js'
import type { CommandSettings } from './failover-settings.js'
import { environmentOf, type Handover } from './runner-handover.js'
import { awaitEnd, runToEnd, signalProcess, type StartedProcess, startProcess } from './runner-process.js'

const KILL_LIMIT_MS = 10 * SECOND_MS

interface Limits {
  readonly token: string
  readonly limitMs: number
  readonly clock: Clock
}

/** @throws {RUNNER_NOT_FOUND, RUNNER_FAILED} */
export async function startByCommand(
  settings: CommandSettings,
  handover: Handover,
  { token, limitMs, clock, onStarted }: Limits & { readonly onStarted: (started: StartedProcess) => void },
): Promise<void> {
  const environment = { ...environmentOf(handover, token), SECONDSITE_ACTION: 'start' }
  const call = { words: settings.start, directory: '/', environment, input: JSON.stringify(handover) }
  if (settings.isMachine) {
    onStarted(await startProcess({ ...call, logPath: join(handover.run, 'machine.log') }))
    return
  }
  const { exitCode, output } = await runToEnd({ ...call, limitMs, clock })
  if (exitCode !== 0) throw failed('start', settings.start, exitCode, output)
}

/** @throws {RUNNER_STOP_FAILED} with what the command said */
export async function stopByCommand(
  settings: CommandSettings,
  handover: Handover,
  started: StartedProcess | null,
  { token, limitMs, clock, asks }: Limits & { readonly asks: boolean },
): Promise<void> {
  if (settings.stop !== undefined) {
    const environment = {
      ...environmentOf(handover, token),
      SECONDSITE_ACTION: 'stop',
      SECONDSITE_STOP: asks ? 'shutdown' : 'off',
    }
    const input = JSON.stringify(handover)
    const call = { words: settings.stop, directory: '/', environment, input, limitMs, clock }
    const { exitCode, output } = await runToEnd(call)
    if (exitCode !== 0) throw failed('stop', settings.stop, exitCode, output)
  }
  if (started === null) return
  if (settings.stop === undefined) signalProcess(started, asks ? 'SIGTERM' : 'SIGKILL')
  if (await awaitEnd(started, limitMs, clock)) return
  signalProcess(started, 'SIGKILL')
  if (await awaitEnd(started, KILL_LIMIT_MS, clock)) return
  throw failed('stop', settings.start, null, `process ${started.processId} does not end`)
}

function failed(
  action: 'start' | 'stop',
  words: readonly string[],
  exitCode: number | null,
  output: string,
): SecondsiteError {
  const said = output === '' ? `exit code ${exitCode}` : output.split('\n').at(-1)
  return new SecondsiteError(action === 'start' ? 'RUNNER_FAILED' : 'RUNNER_STOP_FAILED', {
    message: `${words[0]}: ${said}`,
    details: { command: [...words], exitCode, output },
  })
}
