// A folder of its own for each example, with a disk in it, removed at the end.
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export function workplace(sizeBytes = 16 * 1024 * 1024) {
  const folder = mkdtempSync(join(tmpdir(), 'secondsite-example-'))
  const disk = join(folder, 'web01.raw')
  writeFileSync(disk, Buffer.alloc(sizeBytes / 2, 'block '))
  truncateSync(disk, sizeBytes)
  const remove = () => rmSync(folder, { recursive: true })
  return {
    disk,
    stateDirectory: join(folder, 'state'),
    replica: { directory: join(folder, 'replica') },
    remove,
  }
}
