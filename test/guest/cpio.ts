/**
 * Writes a cpio archive of the "newc" kind, the one the Linux kernel unpacks as its first root file system
 * (Documentation/driver-api/early-userspace/buffer-format.rst): for each file a header of hexadecimal numbers, the name
 * and the content, the last two padded to 4 bytes; at the end a file named TRAILER!!!.
 */

const DIRECTORY = 0o040755
const PROGRAM = 0o100755
const LINK = 0o120777

/** A directory has no content, a link the path it points to. */
export type ArchiveEntry =
  | { readonly kind: 'directory'; readonly path: string }
  | { readonly kind: 'file'; readonly path: string; readonly content: Buffer }
  | { readonly kind: 'link'; readonly path: string; readonly target: string }

/** The archive as one buffer. Paths are relative; a directory must come before what it holds. */
export function archive(entries: readonly ArchiveEntry[]): Buffer {
  const parts = entries.map((entry, index) => member(entry.path, index + 1, modeOf(entry), contentOf(entry)))
  return Buffer.concat([...parts, member('TRAILER!!!', 0, 0, Buffer.alloc(0))])
}

function modeOf(entry: ArchiveEntry): number {
  if (entry.kind === 'directory') return DIRECTORY
  return entry.kind === 'link' ? LINK : PROGRAM
}

function contentOf(entry: ArchiveEntry): Buffer {
  if (entry.kind === 'file') return entry.content
  return Buffer.from(entry.kind === 'link' ? entry.target : '')
}

function member(path: string, inode: number, mode: number, content: Buffer): Buffer {
  const name = Buffer.from(`${path}\0`)
  const [uid, gid, linkCount, time, device, checksum] = [0, 0, 1, 0, 0, 0]
  const fields = [inode, mode, uid, gid, linkCount, time, content.length]
  const header = [...fields, device, device, device, device, name.length, checksum]
  const head = Buffer.from(`070701${header.map((field) => field.toString(16).padStart(8, '0')).join('')}`)
  return Buffer.concat([padded(Buffer.concat([head, name])), padded(content)])
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)])
}
