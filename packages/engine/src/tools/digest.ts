/**
 * The digest of a whole disk: BLAKE3 or XXH3-128 of every chunk, and SHA-256 over all of them in order.
 */

import { createHash } from 'node:crypto'
import { resolve } from 'node:path'
import { throwIfAborted } from '../errors.js'
import { type DigestAlgorithm, native } from '../native/index.js'
import { WorkerPool } from '../pool/pool.js'
import { digestListBytes, windowsOf } from '../resync/compare.js'
import { KIB, MIB } from '../units.js'

const WINDOW_BYTES = 256 * MIB
/** Seed of the digests of the tools: a fixed one, as digests of different runs are to be compared. */
export const DIGEST_SEED = '0000000000000000'

/**
 * The digest of a disk, hexadecimal; equal disks have equal ones, whatever holes they have.
 * @throws {DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED, DISK_READ_FAILED, ABORTED}
 */
export async function digestDisk(
  path: string,
  options: {
    readonly digest?: DigestAlgorithm
    readonly chunkBytes?: number
    readonly signal?: AbortSignal
  } = {},
): Promise<string> {
  const { digest = 'blake3', chunkBytes = 64 * KIB, signal } = options
  const disk = resolve(path)
  const { sizeBytes } = native.probeDisk(disk)
  const pool = new WorkerPool({ threadCountMax: 1 })
  const hash = createHash('sha256')
  try {
    for (const window of windowsOf(sizeBytes, WINDOW_BYTES)) {
      throwIfAborted(signal)
      const bytes = digestListBytes([window], chunkBytes)
      const args = [disk, [window.offset, window.lengthBytes], chunkBytes, digest, DIGEST_SEED, bytes]
      hash.update((await pool.run('native', { call: 'digestImage', args })) as Uint8Array)
    }
    return hash.digest('hex')
  } finally {
    await pool.close()
  }
}
