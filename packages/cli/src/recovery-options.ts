/** How recovery points and times are written on the command line. */

import { type GroupPointChoice, type RecoveryPointChoice } from '@secondsite/engine'
import { wrongUse } from './wrong-use.js'
import { type Command, InvalidArgumentError } from 'commander'

const WORDS: Readonly<Record<string, RecoveryPointChoice>> = {
  latest: 'Latest',
  'latest-processed': 'LatestProcessed',
  'latest-application-consistent': 'LatestApplicationConsistent',
  'latest-multi-vm-processed': 'LatestMultiVmProcessed',
  'latest-multi-vm-application-consistent': 'LatestMultiVmApplicationConsistent',
}

/** What the help says of a point. */
export const POINT_TEXT =
  'latest, latest-processed, latest-application-consistent, latest-multi-vm-processed, latest-multi-vm-application-consistent, ' +
  'a number of `points`, or a time such as 2026-11-21T10:15:00Z'

/** A point by word, number or time. */
export function point(text: string): RecoveryPointChoice {
  const word = WORDS[text.toLowerCase()]
  if (word !== undefined) return word
  if (/^\d{1,12}$/.test(text)) return { point: Number(text) }
  const timeNs = nanoseconds(text)
  if (timeNs !== undefined) return { timeNs }
  throw new InvalidArgumentError(`It must be ${POINT_TEXT}.`)
}

/** What the help says of a point that several machines share. */
export const GROUP_POINT_TEXT =
  'latest-multi-vm-processed, latest-multi-vm-application-consistent, an id of `group points`, or a time such as 2026-11-21T10:15:00Z'

/** A common point by word, id or time. */
export function groupPoint(text: string): GroupPointChoice {
  const word = WORDS[text.toLowerCase()]
  if (word === 'LatestMultiVmProcessed' || word === 'LatestMultiVmApplicationConsistent') return word
  if (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)) return { groupPointId: text.toLowerCase() }
  const timeMs = Date.parse(text)
  if (word === undefined && Number.isFinite(timeMs)) return { timeMs }
  throw new InvalidArgumentError(`It must be ${GROUP_POINT_TEXT}.`)
}

/** What the help says of a time. */
const TIME_TEXT = 'a time such as 2026-11-21T10:15:00Z or 2026-11-21T10:15:00.123456789Z, or Unix nanoseconds'

/** Unix nanoseconds of a time as it is written, with up to nine digits behind the second. */
export function time(text: string): bigint {
  const timeNs = /^\d{16,20}$/.test(text) ? BigInt(text) : nanoseconds(text)
  if (timeNs !== undefined && timeNs >= 0n) return timeNs
  throw new InvalidArgumentError(`It must be ${TIME_TEXT}.`)
}

/** Dates of JavaScript end with milliseconds, and what is behind them would be lost. */
function nanoseconds(text: string): bigint | undefined {
  const [, head = text, fraction = '', zone = ''] =
    /^(.*:\d{2})\.(\d{1,9})(Z|[+-]\d{2}:?\d{2})?$/i.exec(text) ?? []
  const timeMs = Date.parse(`${head}${zone}`)
  if (!Number.isFinite(timeMs) || /\.\d/.test(head)) return undefined
  return BigInt(timeMs) * 1_000_000n + BigInt(fraction.padEnd(9, '0'))
}

/** A time as {@link time} reads it, to the nanosecond. */
export function timeNsText(timeNs: bigint): string {
  const seconds = new Date(Number(timeNs / 1_000_000n)).toISOString().slice(0, 19)
  return `${seconds}.${String(timeNs % 1_000_000_000n).padStart(9, '0')}Z`
}

/** A write by its sequence number, with its disk in front where the machine has several: as `points --around` prints it. */
export function write(text: string): RecoveryPointChoice {
  const [, disk, number] = /^(?:(.+):)?(\d{1,16})$/.exec(text) ?? []
  const sequence = Number(number)
  if (number === undefined || !Number.isSafeInteger(sequence))
    throw new InvalidArgumentError('It must be a sequence number, or DISK:NUMBER.')
  return disk === undefined ? { sequence } : { sequence, disk }
}

/** The three ways to say which state is meant, for verbs that take one. */
export function addPointOptions(command: Command): Command {
  return command
    .option('--point <point>', POINT_TEXT, point)
    .option('--at <time>', `exactly then, where every write is kept: ${TIME_TEXT}`, time)
    .option(
      '--sequence <write>',
      'right behind this write: NUMBER or DISK:NUMBER of `points --around`',
      write,
    )
}

/** What {@link addPointOptions} leaves in the options of a verb. */
export interface PointGiven {
  readonly point?: RecoveryPointChoice
  readonly at?: bigint
  readonly sequence?: RecoveryPointChoice
}

/**
 * The state that is meant.
 * @throws {OPTION_OUT_OF_RANGE} when more than one is given, or none and there is no default
 */
export function pointChoice(
  { point, at, sequence }: PointGiven,
  initial?: RecoveryPointChoice,
): RecoveryPointChoice {
  const given = [point, at === undefined ? undefined : { timeNs: at }, sequence].filter(
    (one) => one !== undefined,
  )
  const [choice = initial] = given
  if (choice !== undefined && given.length < 2) return choice
  const range = 'one of --point, --at and --sequence'
  throw wrongUse('which state is meant?', 'point', range, given.length)
}

/** A disk and its path, as `NAME=PATH`. */
export function diskPath(text: string, before: Record<string, string> = {}): Record<string, string> {
  const [, name, path] = /^([^=]+)=(.+)$/.exec(text) ?? []
  if (name === undefined || path === undefined) throw new InvalidArgumentError('It must be NAME=PATH.')
  return { ...before, [name]: path }
}
