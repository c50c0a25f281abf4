/**
 * An ext4 without a kernel: a shadow of a machine's disk is changed by e2fsprogs, and what differs is written to the disk,
 * block by block, as a guest that did the same would have written it.
 */

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

export const BLOCK_BYTES = 4096

/** Anything that can be written to. */
interface Written {
  write(offset: number, data: Uint8Array): Promise<void>
}

export class Ext4Image {
  /** What the disk was made of. */
  readonly path: string
  readonly #shadow: string
  readonly #folder: string

  /** Makes an image of a tree: name to content. */
  constructor(folder: string, sizeBytes: number, files: ReadonlyMap<string, Uint8Array>) {
    this.#folder = folder
    this.path = join(folder, 'ext4.raw')
    this.#shadow = join(folder, 'shadow.raw')
    const tree = join(folder, 'tree')
    mkdirSync(tree)
    for (const [name, content] of files) writeFileSync(join(tree, name), content)
    writeFileSync(this.path, '')
    truncateSync(this.path, sizeBytes)
    execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-b', String(BLOCK_BYTES), '-d', tree, this.path])
    copyFileSync(this.path, this.#shadow)
  }

  /** Writes a new file, into space that is free. */
  async add(disk: Written, name: string, content: Uint8Array): Promise<void> {
    const from = join(this.#folder, 'content')
    writeFileSync(from, content)
    execFileSync('debugfs', ['-w', '-R', `write ${from} ${name}`, this.#shadow], { stdio: 'pipe' })
    await this.#bring(disk)
  }

  /** Overwrites the blocks of a file where they are. */
  async overwrite(disk: Written, name: string, content: (lengthBytes: number) => Uint8Array): Promise<void> {
    const text = execFileSync('debugfs', ['-R', `blocks ${name}`, this.#shadow], {
      encoding: 'utf8',
      stdio: 'pipe',
      maxBuffer: 1 << 26,
    })
    const image = readFileSync(this.#shadow)
    for (const block of text.trim().split(/\s+/).map(Number))
      image.set(content(BLOCK_BYTES), block * BLOCK_BYTES)
    writeFileSync(this.#shadow, image)
    await this.#bring(disk)
  }

  /** The content of a file in some image. */
  static read(image: string, name: string): Buffer {
    return execFileSync('debugfs', ['-R', `cat ${name}`, image], { stdio: 'pipe', maxBuffer: 1 << 28 })
  }

  /** Runs of blocks that differ, each as one write. */
  async #bring(disk: Written): Promise<void> {
    const [wanted, held] = [readFileSync(this.#shadow), readFileSync(this.path)]
    let at = 0
    while (at < wanted.length) {
      let end = at
      while (end < wanted.length && end - at < 1 << 20 && !isSame(wanted, held, end)) end += BLOCK_BYTES
      if (end > at) await disk.write(at, wanted.subarray(at, end))
      at = end === at ? at + BLOCK_BYTES : end
    }
  }
}

function isSame(left: Buffer, right: Buffer, at: number): boolean {
  return left.compare(right, at, at + BLOCK_BYTES, at, at + BLOCK_BYTES) === 0
}
