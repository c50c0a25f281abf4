/** How recovery points and times are written on the command line. */

import type { GroupPointChoice, RecoveryPointChoice } from '@secondsite/engine'
import { InvalidArgumentError } from 'commander'

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
  const timeMs = Date.parse(text)
  if (Number.isFinite(timeMs)) return { timeMs }
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

/** A disk and its path, as `NAME=PATH`. */
export function diskPath(text: string, before: Record<string, string> = {}): Record<string, string> {
  const [, name, path] = /^([^=]+)=(.+)$/.exec(text) ?? []
  if (name === undefined || path === undefined) throw new InvalidArgumentError('It must be NAME=PATH.')
  return { ...before, [name]: path }
}
