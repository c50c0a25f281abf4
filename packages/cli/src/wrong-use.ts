/** Options that make no sense together: what a parser that looks at one at a time cannot see. */

import { SecondsiteError } from '@secondsite/engine'

/**
 * The error of a command that was given too little, or what does not go together.
 * @param what - what is wrong, up to `range`: "this needs"
 * @param path - the option that the others are about
 */
export function wrongUse(
  what: string,
  path: string,
  range: string,
  value: string | number | null = null,
): SecondsiteError {
  return new SecondsiteError('OPTION_OUT_OF_RANGE', {
    message: `${what} ${range}`,
    details: { problems: [{ path, value, range }] },
  })
}
