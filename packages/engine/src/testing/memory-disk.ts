/**
 * A disk in memory, for tests of what embeds the engine.
 *
 * It is a raw image in a folder of its own in a file system in memory (`/dev/shm`; the folder for temporary files where
 * there is none), because the engine, its core and other programs take a path. Logs and tracking file lie beside it, so
 * they are in memory, too. What is done here happens behind the engine's back: use it for the content before a disk is
 * protected, for a look at the bytes, and for tampering. A guest's writes go through the disk of the machine.
 */

import { accessSync, constants, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SeededRandom } from '../random.js'
import { checkSectorOffset, MIB } from '../units.js'

const MEMORY_FOLDER = '/dev/shm'

/** What {@link MemoryDisk.create} makes. */
export interface MemoryDiskOptions {
  /** A multiple of 512. */
  readonly sizeBytes: number
  /** File name, default `disk.raw`; two disks of one machine need different ones. */
  readonly name?: string
  /** Where the folder is made; default a file system in memory. */
  readonly baseDirectory?: string
}

/**
 * A raw image in memory.
 *
 * @example
 * await using disk = await MemoryDisk.create({ sizeBytes: 16 * 1024 * 1024 })
 * await disk.fillRandom({ seed: 1, lengthBytes: 1024 * 1024 })
 * const web01 = await engine.enable({ name: 'web01', disks: [disk.path], replica })
 */
export class MemoryDisk implements AsyncDisposable {
  /** The image; give this to the engine. */
  readonly path: string
  /** The folder with nothing in it but the image and what the engine puts beside it. */
  readonly directory: string
  readonly #file: FileHandle

  private constructor(directory: string, path: string, file: FileHandle) {
    this.directory = directory
    this.path = path
    this.#file = file
  }

  /** Makes a disk of zeros, which takes no memory until it is written to. */
  static async create(options: MemoryDiskOptions): Promise<MemoryDisk> {
    const { sizeBytes, name = 'disk.raw', baseDirectory = memoryFolder() } = options
    checkSectorOffset(sizeBytes, 'sizeBytes')
    if (sizeBytes === 0 || name === '' || /[/\0]/.test(name))
      throw new TypeError('a memory disk needs a size and a file name')
    const directory = mkdtempSync(join(baseDirectory, 'secondsite-disk-'))
    const path = join(directory, name)
    const file = await open(path, 'wx+')
    await file.truncate(sizeBytes)
    return new MemoryDisk(directory, path, file)
  }

  /** The present size. */
  async sizeBytes(): Promise<number> {
    return (await this.#file.stat()).size
  }

  /** Bytes that are not holes. */
  async allocatedBytes(): Promise<number> {
    return (await this.#file.stat()).blocks * 512
  }

  /** @throws RangeError when the disk ends before */
  async read(offset: number, lengthBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(lengthBytes)
    const { bytesRead } = await this.#file.read(bytes, 0, lengthBytes, offset)
    if (bytesRead < lengthBytes) throw new RangeError(`the disk ends at ${offset + bytesRead}`)
    return bytes
  }

  /** Writes behind the engine's back. @throws RangeError when the disk ends before */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const sizeBytes = await this.sizeBytes()
    if (offset + bytes.length > sizeBytes) throw new RangeError(`the disk ends at ${sizeBytes}`)
    await this.#file.write(bytes, 0, bytes.length, offset)
  }

  /** Fills a range with one byte; default the whole disk. */
  async fill(byte: number, range: { offset?: number; lengthBytes?: number } = {}): Promise<void> {
    await this.#fillWith(range, (lengthBytes) => new Uint8Array(lengthBytes).fill(byte))
  }

  /** Fills a range with random bytes that a seed repeats; default the whole disk. */
  async fillRandom(range: { seed: number; offset?: number; lengthBytes?: number }): Promise<void> {
    const random = new SeededRandom(range.seed)
    await this.#fillWith(range, (lengthBytes) => random.bytes(lengthBytes))
  }

  /** Grows or shrinks the image. */
  async resize(sizeBytes: number): Promise<void> {
    await this.#file.truncate(sizeBytes)
  }

  /** The offset of the first byte in which it differs from another image; -1 when both are equal. */
  async firstDifference(otherPath: string): Promise<number> {
    const other = await open(otherPath)
    try {
      const sizes = [await this.sizeBytes(), (await other.stat()).size] as const
      const at = await firstDifference(this.#file, other, Math.min(...sizes))
      return at === -1 && sizes[0] !== sizes[1] ? Math.min(...sizes) : at
    } finally {
      await other.close()
    }
  }

  /** Removes the image with its folder and everything in it; calling it again does nothing. */
  async remove(): Promise<void> {
    if (!existsSync(this.directory)) return
    await this.#file.close()
    rmSync(this.directory, { recursive: true, force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove()
  }

  async #fillWith(
    range: { offset?: number; lengthBytes?: number },
    make: (lengthBytes: number) => Uint8Array,
  ): Promise<void> {
    const { offset = 0, lengthBytes = (await this.sizeBytes()) - offset } = range
    for (let at = offset; at < offset + lengthBytes; at += MIB) {
      await this.write(at, make(Math.min(MIB, offset + lengthBytes - at)))
    }
  }
}

async function firstDifference(one: FileHandle, other: FileHandle, lengthBytes: number): Promise<number> {
  for (let at = 0; at < lengthBytes; at += MIB) {
    const length = Math.min(MIB, lengthBytes - at)
    const left = (await one.read(Buffer.alloc(length), 0, length, at)).buffer
    const right = (await other.read(Buffer.alloc(length), 0, length, at)).buffer
    if (!left.equals(right)) return at + left.findIndex((byte, index) => byte !== right[index])
  }
  return -1
}

function memoryFolder(): string {
  try {
    accessSync(MEMORY_FOLDER, constants.W_OK)
    return MEMORY_FOLDER
  } catch {
    return tmpdir()
  }
}
