/**
 * Freezes by a command of the operator's own, and thaws by its counterpart.
 *
 * Whether the applications were still at rest only the thaw command could tell, and exit codes of commands are not to be
 * trusted with that much: a thaw that ends with 0 counts as one of something frozen.
 */

import { SecondsiteError } from '../errors.js'
import { type CommandOptions, runCommand } from './command.js'
import type { Quiesce } from './quiesce.js'

/** Milliseconds that one run of a thaw command may take; it is tried again after that. */
export const THAW_LIMIT_MS = 10_000

export class CommandQuiesce implements Quiesce {
  readonly #freeze: readonly string[]
  readonly #thaw: readonly string[]
  readonly #onGroup: CommandOptions['onGroup']

  /** @param onGroup - told the process group of each command, so that somebody else can end it */
  constructor(
    { freeze, thaw }: { readonly freeze: readonly string[]; readonly thaw: readonly string[] },
    onGroup?: (processGroup: number) => void,
  ) {
    this.#freeze = freeze
    this.#thaw = thaw
    this.#onGroup = onGroup
  }

  async freeze(signal: AbortSignal): Promise<void> {
    const options = { purpose: 'freeze', signal, ...this.#groups() }
    const { exitCode, output } = await runCommand(this.#freeze, options)
    if (exitCode !== 0) throw commandFailed('QUIESCE_FREEZE_FAILED', 'freeze', this.#freeze, exitCode, output)
  }

  async thaw(): Promise<boolean> {
    const options = { purpose: 'thaw', limitMs: THAW_LIMIT_MS, ...this.#groups() }
    const { exitCode, output } = await runCommand(this.#thaw, options)
    if (exitCode !== 0) throw commandFailed('QUIESCE_THAW_FAILED', 'thaw', this.#thaw, exitCode, output)
    return true
  }

  #groups(): Pick<CommandOptions, 'onGroup'> {
    return this.#onGroup ? { onGroup: this.#onGroup } : {}
  }
}

/** The error of a command that ended with another exit code than 0, or by a signal. */
export function commandFailed(
  code: 'QUIESCE_FREEZE_FAILED' | 'QUIESCE_THAW_FAILED',
  purpose: string,
  words: readonly string[],
  exitCode: number | null,
  output: string,
): SecondsiteError {
  const program = words[0] ?? ''
  const end = exitCode === null ? 'was ended by a signal' : `ended with exit code ${exitCode}`
  const message = `${purpose}: ${program} ${end}${output === '' ? '' : `: ${output}`}`
  return new SecondsiteError(code, { message, details: { purpose, program, exitCode, output } })
}
