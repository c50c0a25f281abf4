/**
 * The engine's end of a keeper: starts it, asks it, and does its work where it dies.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { fromPlainError, SecondsiteError, toPlainError } from '../errors.js'
import { SECOND_MS } from '../units.js'
import { killGroup } from './command.js'
import { hookOf, THAW_TRIES_MS, thawPersistently } from './hooks.js'
import type { KeeperMessage, ThawedMessage } from './keeper-messages.js'
import type { QuiesceSettings } from './settings.js'

/** Milliseconds until a keeper must be ready; it takes a tenth of a second on an idle computer. */
const START_LIMIT_MS = 30_000
/** Milliseconds beyond all limits of its own after which a keeper that says nothing is ended. */
const GRACE_MS = 30_000
/** Milliseconds to wait for the end of a command whose keeper is dead. */
const ORPHAN_LIMIT_MS = 10_000

export class KeeperProcess {
  readonly #settings: QuiesceSettings
  readonly #child: ChildProcess
  readonly #exit: Promise<void>
  #ready!: () => void
  readonly #isReady = new Promise<void>((resolve) => {
    this.#ready = resolve
  })
  #frozen!: (error: SecondsiteError | null) => void
  readonly #isFrozen = new Promise<SecondsiteError | null>((resolve) => {
    this.#frozen = resolve
  })
  #processGroup: number | undefined
  #thawed: ThawedMessage | undefined
  #startedMs: number | undefined

  private constructor(settings: QuiesceSettings) {
    this.#settings = settings
    const { NODE_OPTIONS: _, ...env } = process.env
    this.#child = spawn(process.execPath, [fileURLToPath(new URL('./keeper.js', import.meta.url))], {
      cwd: '/',
      detached: true,
      env,
      stdio: ['pipe', 'pipe', 'ignore'],
    })
    // A keeper that is gone shows by its exit.
    this.#child.stdin?.on('error', () => {})
    this.#exit = this.#watch()
  }

  /**
   * Starts a keeper; nothing is frozen yet.
   * @throws {QUIESCE_FREEZE_FAILED} when it cannot be started
   */
  static async start(settings: QuiesceSettings): Promise<KeeperProcess> {
    const keeper = new KeeperProcess(settings)
    keeper.#send(JSON.stringify(settings))
    const isReady = await keeper.#within(keeper.#isReady, START_LIMIT_MS)
    if (isReady) return keeper
    keeper.#child.kill('SIGKILL')
    const reason = 'the process that would thaw did not start'
    throw new SecondsiteError('QUIESCE_FREEZE_FAILED', { message: `freeze: ${reason}`, details: { reason } })
  }

  /** Process id of the keeper; for tests. */
  get processId(): number | undefined {
    return this.#child.pid
  }

  /** Freezes. @returns null when everything is at rest, else why it is not */
  async freeze(): Promise<SecondsiteError | null> {
    this.#startedMs = performance.now()
    this.#send('freeze')
    const limitMs = this.#settings.frozenLimitSeconds * SECOND_MS + GRACE_MS
    let answer: SecondsiteError | null = keeperDied('freeze')
    const isHeard = this.#isFrozen.then((error) => {
      answer = error
    })
    await this.#within(isHeard, limitMs)
    return answer
  }

  /**
   * Asks for the thaw, or hears that it has been; where the keeper has died or says nothing, it is done here.
   * @returns the keeper's last word
   */
  async thaw(): Promise<ThawedMessage> {
    this.#send('thaw')
    await this.#within(this.#exit, THAW_TRIES_MS + GRACE_MS)
    if (this.#thawed) return this.#thawed
    return this.#thawHere()
  }

  /** Lets it go without a freeze. */
  async dismiss(): Promise<void> {
    this.#child.stdin?.end()
    await this.#exit
  }

  async #thawHere(): Promise<ThawedMessage> {
    this.#child.kill('SIGKILL')
    await this.#exit
    await endOrphans(this.#processGroup)
    const frozenMs = () => Math.round(performance.now() - (this.#startedMs ?? performance.now()))
    const lost = { event: 'thawed', reason: 'failed', wasFrozen: false } as const
    try {
      await thawPersistently(hookOf(this.#settings, () => {}))
      return { ...lost, frozenMs: frozenMs(), error: null }
    } catch (error) {
      return { ...lost, frozenMs: frozenMs(), error: toPlainError(error) }
    }
  }

  /** Resolves when it has ended and everything it said has been heard. */
  async #watch(): Promise<void> {
    const { stdout } = this.#child
    if (stdout === null) return
    const lines = createInterface(stdout).on('line', (line) => this.#take(line))
    await Promise.all([
      new Promise<void>((resolve) => lines.once('close', () => resolve())),
      new Promise<void>((resolve) => {
        this.#child.once('exit', () => resolve())
        this.#child.once('error', () => resolve())
      }),
    ])
    this.#frozen(keeperDied('freeze'))
  }

  #take(line: string): void {
    const message = JSON.parse(line) as KeeperMessage
    switch (message.event) {
      case 'ready':
        return this.#ready()
      case 'group':
        this.#processGroup = message.processGroup
        return
      case 'frozen':
        return this.#frozen(null)
      case 'failed':
        return this.#frozen(fromPlainError(message.error))
      case 'thawed':
        this.#thawed = message
        return
    }
  }

  #send(line: string): void {
    this.#child.stdin?.write(`${line}\n`)
  }

  /** Whether `promise` settled before the keeper ended and before the limit. */
  async #within(promise: Promise<unknown>, limitMs: number): Promise<boolean> {
    const timer = new AbortController()
    const late = sleep(limitMs, false, { signal: timer.signal }).catch(() => false)
    const done = promise.then(() => true)
    const ended = this.#exit.then(() => promise === this.#exit)
    try {
      return await Promise.race([done, ended, late])
    } finally {
      timer.abort()
    }
  }
}

/** Ends what a dead keeper's command would still do, and waits until it is gone. */
async function endOrphans(processGroup: number | undefined): Promise<void> {
  if (processGroup === undefined) return
  const endMs = performance.now() + ORPHAN_LIMIT_MS
  killGroup(processGroup)
  while (isAlive(processGroup) && performance.now() < endMs) await sleep(20)
}

function isAlive(processGroup: number): boolean {
  try {
    process.kill(-processGroup, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

function keeperDied(purpose: string): SecondsiteError {
  const reason = 'the process that would thaw has died'
  return new SecondsiteError('QUIESCE_FREEZE_FAILED', {
    message: `${purpose}: ${reason}`,
    details: { reason },
  })
}
