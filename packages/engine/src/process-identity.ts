/**
 * Whether a process that was seen once still runs: process numbers are used again, so the time of its start and the boot
 * of the system tell it from a later one.
 */

import { readFileSync } from 'node:fs'

/** Field of /proc/PID/stat behind the name in brackets: 22 is the start time, 3 the state, counted from 1. */
const START_FIELD = 22 - 3
const STATE_FIELD = 0

/** What tells the running process of this number from others; `undefined` when there is none. A zombie runs no more. */
export function identityOf(processId: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${processId}/stat`, 'utf8')
    // The name may hold blanks and brackets, so the fields are counted behind the last bracket.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields[STATE_FIELD] === 'Z' || fields[STATE_FIELD] === 'X') return undefined
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    return `${boot}/${fields[START_FIELD]}`
  } catch {
    return undefined
  }
}

/** Whether the process that had this identity still runs. */
export function isSameProcess(processId: number, identity: string): boolean {
  return identity !== '' && identityOf(processId) === identity
}
