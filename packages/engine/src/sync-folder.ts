/** The names in a folder. */

import { closeSync, fsyncSync, openSync } from 'node:fs'
import { permit } from './native/faults.js'

/** Makes the names in a folder durable: what was created, renamed or removed there outlives a power loss. */
export function syncFolder(path: string): void {
  permit(path, 'sync')
  const folder = openSync(path, 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
