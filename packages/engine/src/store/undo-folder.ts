/** Where a replica keeps what leads away from its images: back by undo (docs/spec/undo.md), forward by kept logs. */

import { join } from 'node:path'

export function undoFolder(directory: string, disk: { readonly name: string }): string {
  return join(directory, 'undo', disk.name)
}

/** Kept logs of all disks, and nothing else. */
export function historyFolder(directory: string): string {
  return join(directory, 'history')
}
