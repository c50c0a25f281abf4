/**
 * What an engine does around cuts that are made while applications are frozen, for all its machines.
 *
 * Such a cut must not wait behind the work of the pool (a verification takes minutes, a freeze has ten seconds): from the
 * first freeze on there is a worker for cuts alone. And each freeze has a mark, for the day on which engine and keeper are
 * killed at once.
 */

import type { EventLog } from './protection/events.js'
import type { WorkerPool } from './pool/pool.js'
import type { FreezeMarks } from './quiesce/freeze-marks.js'
import type { QuiesceSettings } from './quiesce/settings.js'
import { type WhileFrozen, whileFrozen } from './quiesce/while-frozen.js'
import { cutDisks, type TrackedDisk } from './track/tracked-disk.js'

export class FrozenCuts {
  readonly #pool: WorkerPool
  readonly #makePool: () => WorkerPool
  readonly #marks: FreezeMarks
  #own: WorkerPool | undefined
  #frozenCount = 0

  /** @param makePool - makes the pool of one worker that cuts have for themselves */
  constructor(pool: WorkerPool, marks: FreezeMarks, makePool: () => WorkerPool) {
    this.#pool = pool
    this.#marks = marks
    this.#makePool = makePool
  }

  /** Rotates the logs of all disks as one cut. */
  cut(disks: readonly TrackedDisk[]): Promise<void> {
    return cutDisks(disks, this.#frozenCount > 0 && this.#own ? this.#own : this.#pool)
  }

  /** As `whileFrozen` of the hooks, with a mark of the machine and a worker that waits. */
  whileFrozen<Result>(
    machineId: string,
    settings: QuiesceSettings,
    action: () => Promise<Result>,
    signal?: AbortSignal,
  ): Promise<WhileFrozen<Result>> {
    this.#own ??= this.#makePool()
    return this.#marks.during(machineId, settings, () =>
      whileFrozen(settings, () => this.#counted(action), signal),
    )
  }

  /** Thaws what an earlier process may have left frozen, and tells of it. */
  async thawLeft(
    machines: readonly { readonly machineId: string; readonly name: string }[],
    events: EventLog,
  ): Promise<void> {
    for (const { id, method, error } of await this.#marks.thawLeft()) {
      const machine = machines.find(({ machineId }) => machineId === id)
      if (machine === undefined) continue
      if (error === null) await events.raise(machine, 'thawedLate', { method })
      else await events.raise(machine, 'thawFailed', { method, code: error.code, message: error.message })
    }
  }

  async close(): Promise<void> {
    await this.#own?.close()
  }

  async #counted<Result>(action: () => Promise<Result>): Promise<Result> {
    this.#frozenCount += 1
    try {
      return await action()
    } finally {
      this.#frozenCount -= 1
    }
  }
}
