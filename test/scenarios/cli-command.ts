/** The command in a process of its own, and in this one, where a test can act while it works. */

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { runCommand } from '../../packages/cli/dist/command.js'
import type { ErrorText, Output, Step } from '../../packages/cli/dist/output.js'

/** The program. */
export const main = fileURLToPath(new URL('../../packages/cli/dist/main.js', import.meta.url))
/** The golden logs. */
export const vectors = fileURLToPath(new URL('../vectors/hrl', import.meta.url))

/** Runs the command to its end. */
export function run(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

/** Starts the command; its standard error comes line by line. */
export function start(...args: string[]) {
  return spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
}

/** What a command printed in this process. */
export interface Printed {
  readonly exitCode: number
  readonly said: string[]
  readonly objects: Record<string, unknown>[]
  readonly warned: string[]
  readonly failures: ErrorText[]
}

/** Runs the command in this process; `onStep` is called at each step of its progress. */
export async function runHere(args: string[], onStep: (step: Step) => void = () => {}): Promise<Printed> {
  const printed = { said: [], objects: [], warned: [], failures: [] } as Omit<Printed, 'exitCode'>
  const output: Output = {
    say: (text) => void printed.said.push(text),
    json: (value) => void printed.objects.push(value as Record<string, unknown>),
    warn: (text) => void printed.warned.push(text),
    fail: (error) => void printed.failures.push(error),
    progress: (step) => (step ? onStep(step) : undefined),
    settled: () => Promise.resolve(),
    showing: () => output,
  }
  return { ...printed, exitCode: await runCommand(args, output) }
}

/** SHA-256 of a file. */
export function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex')
}
