/** Where a replica keeps what leads back from the image of a disk; docs/spec/undo.md has the layout. */

import { join } from 'node:path'

export function undoFolder(directory: string, disk: { readonly name: string }): string {
  return join(directory, 'undo', disk.name)
}
