/**
 * The keeper: a process that freezes for the engine, and thaws whatever happens to the engine.
 *
 * It is started before anything is frozen and stands by itself: a session of its own, so that a signal to the engine's
 * process group does not reach it, and deaf to the signals by which a system asks processes to end. It thaws when it is
 * told to, when its limit has passed, and when its input ends, which the kernel sees to when the engine dies; whichever
 * comes first. There is no other way by which a thaw happens, so the one that saves the day is the one used every day.
 *
 * Input: a line of JSON with the settings, then the lines `freeze` and `thaw`. Output: {@link KeeperMessage}, one a line.
 */

import { createInterface } from 'node:readline'
import { abortedError, SecondsiteError, toPlainError } from '../errors.js'
import { SECOND_MS } from '../units.js'
import { hookOf, thawPersistently } from './hooks.js'
import type { KeeperMessage, ThawReason } from './keeper-messages.js'
import type { Quiesce } from './quiesce.js'
import type { QuiesceSettings } from './settings.js'

class Keeper {
  #settings: QuiesceSettings | undefined
  #hook: Quiesce | undefined
  #freezing: Promise<void> | undefined
  #startedMs = 0
  #limit: NodeJS.Timeout | undefined
  readonly #stopper = new AbortController()
  #isEnding = false

  take(line: string): void {
    if (this.#settings === undefined) this.#prepare(JSON.parse(line) as QuiesceSettings)
    else if (line === 'freeze') this.#freeze()
    else if (line === 'thaw') this.#end('asked')
  }

  inputEnded(): void {
    this.#end('alone')
  }

  #prepare(settings: QuiesceSettings): void {
    this.#settings = settings
    this.#hook = hookOf(settings, (processGroup) => tell({ event: 'group', processGroup }))
    tell({ event: 'ready' })
  }

  #freeze(): void {
    if (this.#hook === undefined || this.#settings === undefined || this.#freezing) return
    const limitMs = this.#settings.frozenLimitSeconds * SECOND_MS
    this.#startedMs = performance.now()
    this.#limit = setTimeout(() => this.#end('limit'), limitMs)
    this.#freezing = this.#hook.freeze(this.#stopper.signal).then(
      () => tell({ event: 'frozen' }),
      (error: unknown) => {
        tell({ event: 'failed', error: toPlainError(error) })
        this.#end('failed')
      },
    )
  }

  #end(reason: ThawReason): void {
    if (this.#isEnding) return
    this.#isEnding = true
    clearTimeout(this.#limit)
    void this.#thaw(reason).finally(() => process.exit(0))
  }

  /** A freeze that is still under way is ended first: what it froze after the thaw would stay so. */
  async #thaw(reason: ThawReason): Promise<void> {
    if (this.#hook === undefined || this.#freezing === undefined) return
    this.#stopper.abort(this.#stopReason(reason))
    await this.#freezing
    const thawed = { event: 'thawed', reason } as const
    try {
      const wasFrozen = await thawPersistently(this.#hook)
      tell({ ...thawed, wasFrozen, frozenMs: this.#elapsedMs(), error: null })
    } catch (error) {
      tell({ ...thawed, wasFrozen: false, frozenMs: this.#elapsedMs(), error: toPlainError(error) })
    }
  }

  #stopReason(reason: ThawReason): SecondsiteError {
    const limitSeconds = this.#settings?.frozenLimitSeconds ?? 0
    if (reason !== 'limit') return abortedError()
    return new SecondsiteError('QUIESCE_TIMEOUT', {
      message: `freeze: not complete within ${limitSeconds} s`,
      details: { purpose: 'freeze', limitMs: limitSeconds * SECOND_MS },
    })
  }

  #elapsedMs(): number {
    return Math.round(performance.now() - this.#startedMs)
  }
}

function tell(message: KeeperMessage): void {
  process.stdout.write(`${JSON.stringify(message)}\n`)
}

// Nobody may be there to read any more; the thaw goes on all the same.
process.stdout.on('error', () => {})
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGPIPE'] as const) process.on(signal, () => {})
const keeper = new Keeper()
createInterface(process.stdin)
  .on('line', (line) => keeper.take(line))
  .on('close', () => keeper.inputEnded())
