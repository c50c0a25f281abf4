/**
 * Digests of recovery points: one for all disks, by which a restored point is proven to be the point.
 *
 * A digest is that of {@link digestDisk}: BLAKE3 of every 64 KiB, SHA-256 over all of them in order; those of the disks, with
 * their names and sizes, make the digest of the point. It is computed when somebody asks for it, never at a cut: that would
 * read all disks with every cycle. The digests of the chunks are kept beside the replica, so that the next point that is asked
 * for costs what was changed between the two, not the size of the disks.
 *
 * Tables are read and written in windows: 16 bytes of table for 64 KiB of disk, and never more than a window of it in memory.
 */

import { createHash, type Hash } from 'node:crypto'
import { closeSync, fsyncSync, mkdirSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { fromSystemError, isSecondsiteError, throwIfAborted } from '../errors.js'
import { type ByteRange, mergeRanges, toPairs } from '../ranges.js'
import { undoFolder } from '../store/undo-folder.js'
import { KIB, MIB } from '../units.js'
import type { RecoveryContext } from './context.js'
import type { RecoveryDevice } from './device.js'
import { changedRanges } from './diff.js'
import type { PointView } from './view.js'

const CHUNK_BYTES = 64 * KIB
/** Disk that is looked at in one call: 64 KiB of table. */
const WINDOW_BYTES = 256 * MIB
const DIGEST_BYTES = 16
const HEADER_BYTES = 512
/** As `digestDisk` has it: digests of different runs are to be compared. */
const SEED = '0000000000000000'

/** Options of {@link Replica.digestPoint}. */
export interface DigestOptions {
  readonly onProgress?: (progress: DigestProgress) => void
  readonly signal?: AbortSignal
}

/** How far it is. */
export interface DigestProgress {
  readonly disk: string
  readonly doneBytes: number
  /** Bytes of them that had to be read. */
  readonly readBytes: number
  readonly totalBytes: number
}

/** Digest and size of a disk. */
export interface DiskDigest {
  readonly name: string
  readonly sizeBytes: number
  readonly digest: string
}

/** The digest over all disks of a machine. */
export function digestOfDisks(disks: readonly DiskDigest[]): string {
  const lines = disks.map(({ name, sizeBytes, digest }) => `${digest} ${sizeBytes} ${name}\n`)
  return createHash('sha256').update(lines.toSorted().join('')).digest('hex')
}

/**
 * The digest of what a view shows; tables of an earlier point are used where there are any.
 * @throws {UNDO_DAMAGED, DISK_READ_FAILED, REPLICA_DISK_FULL, ABORTED}
 */
export async function digestView(
  context: RecoveryContext,
  view: PointView,
  options: DigestOptions = {},
): Promise<string> {
  const disks: DiskDigest[] = []
  for (const device of view.disks) {
    const { name, sizeBytes } = device
    // A time between two points is nobody's next start.
    const digest =
      view.untilNs === undefined
        ? await tabled(context, device, view.state.number, options)
        : (await streamed(device, undefined, undefined, options)).digest
    disks.push({ name, sizeBytes, digest })
  }
  return digestOfDisks(disks)
}

/** What a table is of. */
interface TableHeader {
  readonly point: number
  readonly sizeBytes: number
  /** SHA-256 over the table, which is the digest of the disk. */
  readonly digest: string
}

async function tabled(
  context: RecoveryContext,
  device: RecoveryDevice,
  point: number,
  options: DigestOptions,
): Promise<string> {
  const directory = join(context.directory, 'digests')
  const path = join(directory, `${device.name}.digests`)
  mkdirSync(directory, { recursive: true })
  const unfinished = `${path}.${context.random.uuid()}`
  try {
    using out = new TableFile(unfinished, 'w')
    const known = await earlier(context, device, path, point)
    // A table that is not what it says it is (a disk that rots, a file that was cut) costs a whole pass, nothing else.
    const digest =
      (known && (await byTable(device, path, known, out, options))) ??
      (await streamed(device, undefined, out, options)).digest
    out.writeHeader({ point, sizeBytes: device.sizeBytes, digest })
    renameSync(unfinished, path)
    return digest
  } finally {
    rmSync(unfinished, { force: true })
  }
}

/** @returns undefined when the table is damaged */
async function byTable(
  device: RecoveryDevice,
  path: string,
  earlier: Earlier,
  out: TableFile,
  options: DigestOptions,
): Promise<string | undefined> {
  using table = new TableFile(path, 'r')
  const { digest, tableDigest } = await streamed(device, { table, ...earlier }, out, options)
  return tableDigest === earlier.header.digest ? digest : undefined
}

interface Earlier {
  readonly header: TableHeader
  /** Chunks that may differ from the table, whole, ascending. */
  readonly changed: readonly ByteRange[]
}

/** The table of an earlier pass, when what was changed since is known: its point must be there still. */
async function earlier(
  context: RecoveryContext,
  device: RecoveryDevice,
  path: string,
  point: number,
): Promise<Earlier | undefined> {
  const header = TableFile.headerOf(path)
  const points = (await context.recovery.points()).map(({ pointNumber }) => pointNumber)
  if (header === undefined || header.sizeBytes !== device.sizeBytes || !points.includes(header.point))
    return undefined
  if (header.point === point) return { header, changed: [] }
  const disk = (await context.store.disks()).find(({ diskId }) => diskId === device.diskId)
  if (disk === undefined) return undefined
  const [from, to] = [Math.min(point, header.point), Math.max(point, header.point)]
  try {
    const ranges = await changedRanges(context, undoFolder(context.directory, disk), from, to)
    return { header, changed: wholeChunks(ranges, device.sizeBytes) }
  } catch (error) {
    // What leads to the other point is damaged; this one may be whole.
    if (isSecondsiteError(error, 'UNDO_DAMAGED')) return undefined
    throw error
  }
}

function wholeChunks(ranges: readonly ByteRange[], sizeBytes: number): ByteRange[] {
  return mergeRanges(
    ranges.map(({ offset, lengthBytes }) => {
      const start = Math.floor(offset / CHUNK_BYTES) * CHUNK_BYTES
      const end = Math.min(sizeBytes, Math.ceil((offset + lengthBytes) / CHUNK_BYTES) * CHUNK_BYTES)
      return { offset: start, lengthBytes: end - start }
    }),
  )
}

/** What going over a disk has brought. */
interface Pass {
  /** Digest of the disk; worth nothing where the table that was used is damaged. */
  readonly digest: string
  /** Digest of the table that was used, which says whether it was whole. */
  readonly tableDigest: string
}

/** Goes over a disk: chunks that a table knows are taken from it, others read. */
async function streamed(
  device: RecoveryDevice,
  from: (Earlier & { readonly table: TableFile }) | undefined,
  out: TableFile | undefined,
  { onProgress, signal }: DigestOptions,
): Promise<Pass> {
  const [hash, check] = [createHash('sha256'), createHash('sha256')]
  let readBytes = 0
  for (let offset = 0; offset < device.sizeBytes; offset += WINDOW_BYTES) {
    throwIfAborted(signal)
    const window = { offset, lengthBytes: Math.min(WINDOW_BYTES, device.sizeBytes - offset) }
    const changed = from ? clipped(from.changed, window) : [window]
    const digests = known(from?.table, window, check)
    await readChunks(device, window, changed, digests)
    hash.update(digests)
    out?.write(tableOffset(offset), digests)
    readBytes += changed.reduce((total, { lengthBytes }) => total + lengthBytes, 0)
    const doneBytes = offset + window.lengthBytes
    onProgress?.({ disk: device.name, doneBytes, readBytes, totalBytes: device.sizeBytes })
  }
  return { digest: hash.digest('hex'), tableDigest: check.digest('hex') }
}

function known(table: TableFile | undefined, window: ByteRange, check: Hash): Uint8Array {
  const digests = new Uint8Array(Math.ceil(window.lengthBytes / CHUNK_BYTES) * DIGEST_BYTES)
  if (table) check.update(table.read(tableOffset(window.offset), digests))
  return digests
}

function clipped(ranges: readonly ByteRange[], { offset, lengthBytes }: ByteRange): ByteRange[] {
  return ranges.flatMap((range) => {
    const start = Math.max(range.offset, offset)
    const end = Math.min(range.offset + range.lengthBytes, offset + lengthBytes)
    return end > start ? [{ offset: start, lengthBytes: end - start }] : []
  })
}

async function readChunks(
  device: RecoveryDevice,
  window: ByteRange,
  changed: readonly ByteRange[],
  digests: Uint8Array,
): Promise<void> {
  if (changed.length === 0) return
  const counts = changed.map(({ lengthBytes }) => Math.ceil(lengthBytes / CHUNK_BYTES))
  const bytes = counts.reduce((total, count) => total + count, 0) * DIGEST_BYTES
  const fresh = (await device.run(
    'digestOfDevice',
    toPairs(changed),
    CHUNK_BYTES,
    'blake3',
    SEED,
    bytes,
  )) as Uint8Array
  let at = 0
  for (const [index, { offset }] of changed.entries()) {
    const length = (counts[index] ?? 0) * DIGEST_BYTES
    digests.set(fresh.subarray(at, at + length), ((offset - window.offset) / CHUNK_BYTES) * DIGEST_BYTES)
    at += length
  }
}

function tableOffset(diskOffset: number): number {
  return HEADER_BYTES + (diskOffset / CHUNK_BYTES) * DIGEST_BYTES
}

/** A table on disk: a header as JSON in 512 bytes, then the digests. */
class TableFile implements Disposable {
  readonly #path: string
  readonly #file: number

  constructor(path: string, flags: 'r' | 'w') {
    this.#path = path
    this.#file = this.#guarded(() => openSync(path, flags))
  }

  /** The header of a table; undefined where there is none that can be read. */
  static headerOf(path: string): TableHeader | undefined {
    try {
      using table = new TableFile(path, 'r')
      const bytes = table.read(0, new Uint8Array(HEADER_BYTES))
      return JSON.parse(Buffer.from(bytes).toString('utf8').trim()) as TableHeader
    } catch {
      rmSync(path, { force: true }) // It is made anew.
      return undefined
    }
  }

  /** Fills a buffer; what lies behind the end stays zero. */
  read(offset: number, bytes: Uint8Array): Uint8Array {
    return this.#guarded(() => {
      let filled = 0
      for (;;) {
        const count = readSync(this.#file, bytes, filled, bytes.length - filled, offset + filled)
        filled += count
        if (count === 0 || filled === bytes.length) return bytes
      }
    })
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#guarded(() => {
      let written = 0
      while (written < bytes.length)
        written += writeSync(this.#file, bytes, written, bytes.length - written, offset + written)
    })
  }

  /** Makes the table whole and durable. */
  writeHeader(header: TableHeader): void {
    this.write(0, Buffer.from(JSON.stringify(header).padEnd(HEADER_BYTES)))
    this.#guarded(() => fsyncSync(this.#file))
  }

  [Symbol.dispose](): void {
    closeSync(this.#file)
  }

  #guarded<Result>(call: () => Result): Result {
    try {
      return call()
    } catch (error) {
      throw fromSystemError(error, {
        operation: 'use',
        path: this.#path,
        fullCode: 'REPLICA_DISK_FULL',
      })
    }
  }
}
