/** What the verbs share that start a machine from an export: what is said of it, and how long the command lives. */

import { type RunInfo } from '@secondsite/engine'
import { ended } from './recovery-command.js'
import { wrongUse } from './wrong-use.js'

/** Disks that are neither served somewhere nor started from are of no use to anybody. */
export function requirePlace({ nbd, run }: { readonly nbd?: string; readonly run?: boolean }): void {
  if (nbd !== undefined || run === true) return
  const range = '--nbd ADDRESS to serve the disks, --run to start the machine from them, or both'
  throw wrongUse('this needs', 'nbd', range)
}

/** A machine that runs, for people. */
export function runText({ name, method, address, folder, processId }: RunInfo): string {
  const id = processId === null ? '' : `, process ${processId}`
  return `${name} was started (${method}${id})\n  disks at ${address}\n  logs in ${folder}`
}

/**
 * Waits until the command is stopped, the time has come, or one of the promises is there.
 * @returns whether the command was stopped
 */
export async function untilOver(
  signal: AbortSignal,
  others: readonly Promise<void>[],
  endsMs: number | null = null,
): Promise<boolean> {
  const over = new AbortController()
  const stop = (): void => over.abort()
  // Whatever becomes of them, it is over.
  for (const other of others) other.then(stop, stop)
  await ended(AbortSignal.any([signal, over.signal]), endsMs)
  return signal.aborted
}
