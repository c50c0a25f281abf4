/**
 * Engines that several users need at once, each by its state directory, of which one process may open one at a time.
 *
 * The first user opens it, the last one closes it: between the steps of a plan nobody has it, as what the plan starts and
 * stops may be the process that opens it then.
 */

import { resolve } from 'node:path'
import type { Clock } from './clock.js'
import { Engine } from './engine.js'
import type { StepObserver } from './works.js'

interface OpenEngine {
  readonly engine: Promise<Engine>
  userCount: number
}

export class SharedEngines {
  readonly #options: { readonly clock: Clock; readonly step?: StepObserver }
  readonly #open = new Map<string, OpenEngine>()
  /** Those that are being closed: a state directory is free when that is over. */
  readonly #closing = new Map<string, Promise<void>>()

  constructor(options: { readonly clock: Clock; readonly step?: StepObserver }) {
    this.#options = options
  }

  /** Carries `action` out with the engine of a state directory. @throws what `Engine.open` throws, and what closing it does */
  async use<Result>(directory: string, action: (engine: Engine) => Promise<Result>): Promise<Result> {
    const stateDirectory = resolve(directory)
    while (this.#closing.has(stateDirectory)) await this.#closing.get(stateDirectory)
    const shared = this.#open.get(stateDirectory) ?? this.#opened(stateDirectory)
    shared.userCount += 1
    try {
      return await action(await shared.engine)
    } finally {
      shared.userCount -= 1
      if (shared.userCount === 0) await this.#close(stateDirectory, shared)
    }
  }

  #opened(stateDirectory: string): OpenEngine {
    const shared = { engine: Engine.open({ ...this.#options, stateDirectory }), userCount: 0 }
    this.#open.set(stateDirectory, shared)
    return shared
  }

  /** Both maps change in one turn, so that nobody opens what is being closed. */
  async #close(stateDirectory: string, { engine }: OpenEngine): Promise<void> {
    const closed = closeOpened(engine)
    const settled = closed.catch(() => {}).finally(() => this.#closing.delete(stateDirectory))
    this.#open.delete(stateDirectory)
    this.#closing.set(stateDirectory, settled)
    await closed
  }
}

/** One that could not be opened has told its users so. */
async function closeOpened(engine: Promise<Engine>): Promise<void> {
  const opened = await engine.catch(() => undefined)
  await opened?.close()
}
