/**
 * Freezes file systems of this computer by `fsfreeze` of util-linux: for a machine whose disks are mounted here.
 *
 * The kernel writes everything out and then lets every writer wait, so what is cut is a file system as an unmount would
 * leave it. Several are frozen in the order given and thawed in the opposite one. A file system that holds what we need to
 * make the cut (state, logs) must not be among them: the limit on the frozen time is then what ends the wait.
 */

import { commandFailed, THAW_LIMIT_MS } from './command-quiesce.js'
import { runCommand } from './command.js'
import type { Quiesce } from './quiesce.js'

const FSFREEZE = 'fsfreeze'

export class Fsfreeze implements Quiesce {
  readonly #mounts: readonly string[]
  readonly #onGroup: (processGroup: number) => void

  constructor(mounts: readonly string[], onGroup: (processGroup: number) => void = () => {}) {
    this.#mounts = mounts
    this.#onGroup = onGroup
  }

  async freeze(signal: AbortSignal): Promise<void> {
    for (const mount of this.#mounts) {
      const words = [FSFREEZE, '--freeze', mount]
      const { exitCode, output } = await runCommand(words, {
        purpose: 'freeze',
        signal,
        onGroup: this.#onGroup,
      })
      if (exitCode !== 0) throw commandFailed('QUIESCE_FREEZE_FAILED', 'freeze', words, exitCode, output)
    }
  }

  /** Every mount is thawed, also after one that could not be; then the first failure is thrown. */
  async thaw(): Promise<boolean> {
    let wereAllFrozen = true
    const failures: unknown[] = []
    for (const mount of this.#mounts.toReversed()) {
      try {
        wereAllFrozen = (await this.#thawOne(mount)) && wereAllFrozen
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length > 0) throw failures[0]
    return wereAllFrozen
  }

  async #thawOne(mount: string): Promise<boolean> {
    const words = [FSFREEZE, '--unfreeze', mount]
    const options = { purpose: 'thaw', limitMs: THAW_LIMIT_MS, onGroup: this.#onGroup }
    const { exitCode, output } = await runCommand(words, options)
    if (exitCode === 0) return true
    // EINVAL is the kernel's word for a file system that is not frozen; one that is not mounted any more is not either.
    if (/Invalid argument|No such file or directory/.test(output)) return false
    throw commandFailed('QUIESCE_THAW_FAILED', 'thaw', words, exitCode, output)
  }
}
