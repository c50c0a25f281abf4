/** What a verb says that was not confirmed: it has shown what it would do, and nothing is changed. */

import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'

/** Says what `--yes` would do. */
export function unconfirmed({ output, isJson }: Invocation, text: string): ExitCode {
  if (isJson) output.json({ done: false, note: text })
  else output.say(text)
  return EXIT.refused
}
