/**
 * Folders for what is laid over a point to show a moment. Beside each lies a file that is locked as long as it is needed, so
 * that what the dead left is known, and goes before the next one is made.
 */

import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { native } from '../native/index.js'
import type { RecoveryContext } from './context.js'

const LOCK_SUFFIX = '.lock'

/** A folder of one view. */
export interface ViewFolder {
  readonly path: string
  /** Removes it with all that is in it. Calling it again does nothing. */
  remove(): void
}

export function makeViewFolder({ directory, random }: RecoveryContext): ViewFolder {
  const all = join(directory, 'views')
  mkdirSync(all, { recursive: true })
  removeLeft(all)
  const path = join(all, random.uuid())
  const lock = native.lockFile(path + LOCK_SUFFIX)
  let isThere = true
  const remove = (): void => {
    if (!isThere) return
    isThere = false
    removeLocked(path, lock)
  }
  return { path, remove }
}

function removeLeft(all: string): void {
  for (const name of readdirSync(all)) {
    if (!name.endsWith(LOCK_SUFFIX)) continue
    const lock = native.lockFile(join(all, name))
    if (lock !== 0) removeLocked(join(all, name.slice(0, -LOCK_SUFFIX.length)), lock)
  }
}

function removeLocked(path: string, lock: number): void {
  rmSync(path, { recursive: true, force: true })
  rmSync(path + LOCK_SUFFIX, { force: true })
  native.unlockFile(lock)
}
