/**
 * Marks of freezes that are under way: a small file for each, so that what two killed processes have left frozen is found
 * and thawed when the engine is opened the next time.
 *
 * A mark is there before the keeper freezes and goes after the thaw. It need not survive a loss of power, which no freeze
 * survives either, so nothing is synced. A mark that cannot be written costs no cut.
 */

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { asSecondsiteError, type SecondsiteError } from '../errors.js'
import { hookOf, thawPersistently } from './hooks.js'
import { type QuiesceSettings, quiesceSchema } from './settings.js'
import type { WhileFrozen } from './while-frozen.js'

/** Milliseconds for which an opening engine tries to thaw what it finds; the mark stays when that fails. */
const THAW_TRIES_MS = 5000

/** What was found frozen, and what came of it. */
export interface LeftFrozen {
  /** Id of the machine. */
  readonly id: string
  readonly method: QuiesceSettings['method']
  /** Null when it is thawed now. */
  readonly error: SecondsiteError | null
}

export class FreezeMarks {
  readonly #directory: string

  /** @param directory - made when it is needed */
  constructor(directory: string) {
    this.#directory = directory
  }

  /** Carries `action` out with a mark, which stays when it could not thaw. @param id - letters, digits and dashes */
  async during<Result>(
    id: string,
    settings: QuiesceSettings,
    action: () => Promise<WhileFrozen<Result>>,
  ): Promise<WhileFrozen<Result>> {
    this.#write(id, settings)
    let isThawed = true
    try {
      const frozen = await action()
      isThawed = frozen.report.isThawed
      return frozen
    } finally {
      if (isThawed) this.#remove(id)
    }
  }

  /** Thaws what the marks name, all at once. A second thaw of something harms nobody. */
  async thawLeft(): Promise<LeftFrozen[]> {
    return Promise.all(this.#marks().map(({ id, settings }) => this.#thaw(id, settings)))
  }

  async #thaw(id: string, settings: QuiesceSettings): Promise<LeftFrozen> {
    const { method } = settings
    try {
      await thawPersistently(
        hookOf(settings, () => {}),
        THAW_TRIES_MS,
      )
      this.#remove(id)
      return { id, method, error: null }
    } catch (error) {
      return { id, method, error: asSecondsiteError(error) }
    }
  }

  #marks(): { id: string; settings: QuiesceSettings }[] {
    return this.#names().flatMap((name) => {
      const settings = readMark(join(this.#directory, name))
      return settings === undefined ? [] : [{ id: name, settings }]
    })
  }

  #names(): string[] {
    try {
      return readdirSync(this.#directory)
    } catch {
      return [] // Nothing was ever frozen from here.
    }
  }

  #write(id: string, settings: QuiesceSettings): void {
    try {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
      writeFileSync(join(this.#directory, id), JSON.stringify(settings), { mode: 0o600 })
    } catch {
      // A full disk is no reason to do without the cut: the keeper thaws, as ever.
    }
  }

  #remove(id: string): void {
    try {
      rmSync(join(this.#directory, id), { force: true })
    } catch {
      // A mark that stays means a thaw too many at the next opening.
    }
  }
}

/** What a mark says; undefined for one that was being written, as nothing had been frozen then. */
function readMark(path: string): QuiesceSettings | undefined {
  try {
    return quiesceSchema.safeParse(JSON.parse(readFileSync(path, 'utf8'))).data
  } catch {
    return undefined
  }
}
