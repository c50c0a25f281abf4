/**
 * A real file system for the demo: ext4 made by mke2fs from a directory tree, with a file in it that may be overwritten
 * in place, so that the file system stays whole while the disk changes.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, lstatSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ByteRange } from '@secondsite/engine'
import type { SeededRandom } from '@secondsite/engine/testing'

const MIB = 1024 * 1024
const EXT4_BLOCK_BYTES = 4096
/** Where the tree comes from: the first that is there. */
const TREES = ['/usr/include', '/usr/share/doc', '/usr/share']
const SCRATCH_BYTES = 144 * MIB
const DISK_BYTES = 256 * MIB

/** A disk and the part of it that the demo may write to. */
export interface DemoDisk {
  readonly path: string
  readonly sizeBytes: number
  /** False where e2fsprogs is missing: then the image is generated and nothing can be checked by e2fsck. */
  readonly isExt4: boolean
  /** Ranges that may be overwritten. */
  readonly writable: readonly ByteRange[]
  /** What it was made of, for people. */
  readonly origin: string
}

/** Makes the disk in `folder`. */
export function makeDemoDisk(folder: string, random: SeededRandom): DemoDisk {
  const path = join(folder, 'web01.raw')
  const hasTools = ['mke2fs', 'debugfs', 'e2fsck'].every(
    (tool) => spawnSync(tool, ['-V']).error === undefined,
  )
  return hasTools ? ext4(folder, path, random) : generated(path, random)
}

/** Checks the file system of an image without changing it. @returns what e2fsck says in its last line */
export function checkFileSystem(image: string): { readonly isClean: boolean; readonly summary: string } {
  const { status, stdout } = spawnSync('e2fsck', ['-fn', image], { encoding: 'utf8' })
  return { isClean: status === 0, summary: stdout.trim().split('\n').at(-1) ?? '' }
}

function ext4(folder: string, path: string, random: SeededRandom): DemoDisk {
  const tree = join(folder, 'tree')
  mkdirSync(tree)
  const from = TREES.find((candidate) => existsSync(candidate))
  if (from !== undefined) copySome(from, join(tree, 'files'))
  writeFileSync(join(tree, 'scratch.bin'), random.bytes(SCRATCH_BYTES))
  writeFileSync(path, '')
  truncateSync(path, DISK_BYTES)
  const options = ['-q', '-F', '-t', 'ext4', '-b', String(EXT4_BLOCK_BYTES), '-d', tree, path]
  execFileSync('mke2fs', options, { stdio: 'pipe' })
  const writable = blocksOf(path, '/scratch.bin')
  return {
    path,
    sizeBytes: DISK_BYTES,
    isExt4: true,
    writable,
    origin: `ext4 of ${from ?? 'a generated file'}`,
  }
}

/** At most 40 MiB of a tree: the rest of the room is for the file that is overwritten. */
function copySome(from: string, to: string): void {
  let leftBytes = 40 * MIB
  cpSync(from, to, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (source) => {
      const entry = lstatSync(source)
      if (!entry.isFile()) return entry.isDirectory()
      leftBytes -= entry.size
      return leftBytes > 0
    },
  })
}

/** The ranges of an image that hold a file of its ext4, by debugfs. */
function blocksOf(image: string, file: string): ByteRange[] {
  const text = execFileSync('debugfs', ['-R', `blocks ${file}`, image], {
    encoding: 'utf8',
    stdio: 'pipe',
    maxBuffer: 64 * MIB,
  })
  const ranges: { offset: number; lengthBytes: number }[] = []
  for (const block of text.trim().split(/\s+/).map(Number)) {
    const offset = block * EXT4_BLOCK_BYTES
    const last = ranges.at(-1)
    if (last && last.offset + last.lengthBytes === offset) last.lengthBytes += EXT4_BLOCK_BYTES
    else ranges.push({ offset, lengthBytes: EXT4_BLOCK_BYTES })
  }
  return ranges
}

function generated(path: string, random: SeededRandom): DemoDisk {
  writeFileSync(path, random.bytes(SCRATCH_BYTES))
  truncateSync(path, DISK_BYTES)
  const writable = [{ offset: 0, lengthBytes: SCRATCH_BYTES }]
  return {
    path,
    sizeBytes: DISK_BYTES,
    isExt4: false,
    writable,
    origin: 'a generated image (e2fsprogs is missing)',
  }
}
