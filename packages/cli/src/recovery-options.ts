/** How recovery points and times are written on the command line. */

import type { RecoveryPointChoice } from '@secondsite/engine'
import { InvalidArgumentError } from 'commander'

const WORDS: Readonly<Record<string, RecoveryPointChoice>> = {
  latest: 'Latest',
  'latest-processed': 'LatestProcessed',
  'latest-application-consistent': 'LatestApplicationConsistent',
}

/** What the help says of a point. */
export const POINT_TEXT =
  'latest, latest-processed, latest-application-consistent, a number of `points`, or a time such as 2026-11-21T10:15:00Z'

/** A point by word, number or time. */
export function point(text: string): RecoveryPointChoice {
  const word = WORDS[text.toLowerCase()]
  if (word !== undefined) return word
  if (/^\d{1,12}$/.test(text)) return { point: Number(text) }
  const timeMs = Date.parse(text)
  if (Number.isFinite(timeMs)) return { timeMs }
  throw new InvalidArgumentError(`It must be ${POINT_TEXT}.`)
}

/** A disk and its path, as `NAME=PATH`. */
export function diskPath(text: string, before: Record<string, string> = {}): Record<string, string> {
  const [, name, path] = /^([^=]+)=(.+)$/.exec(text) ?? []
  if (name === undefined || path === undefined) throw new InvalidArgumentError('It must be NAME=PATH.')
  return { ...before, [name]: path }
}
