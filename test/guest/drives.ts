/**
 * The disks of a guest as QEMU wants them told. Every one is a virtio block device that passes on flushes and discards; a
 * file is opened as a user's QEMU would, with QEMU's image locks.
 */

/** A disk of a guest: an NBD export (`nbd+unix:///NAME?socket=PATH`, `nbd://HOST:PORT/NAME`) or a raw file. */
export type GuestDrive = (NbdDrive | FileDrive) & {
  /** Default false. */
  readonly isReadOnly?: boolean
}

interface NbdDrive {
  readonly nbd: string
  /** How long the guest's requests wait for a server that has gone away; default 0: they fail at once. */
  readonly reconnectDelayS?: number
}

interface FileDrive {
  readonly file: string
}

/** QEMU's arguments for the drive with this index. */
export function driveArguments(drive: GuestDrive, index: number): string[] {
  const name = `disk${index}`
  const isReadOnly = drive.isReadOnly ?? false
  const source = 'nbd' in drive ? nbdNode(drive, isReadOnly) : fileNode(drive, isReadOnly)
  const node = { driver: 'raw', 'node-name': name, 'read-only': isReadOnly, discard: 'unmap', file: source }
  return ['-blockdev', JSON.stringify(node), '-device', `virtio-blk-pci,drive=${name},serial=${name}`]
}

function fileNode({ file }: FileDrive, isReadOnly: boolean): object {
  return { driver: 'file', filename: file, 'read-only': isReadOnly, discard: 'unmap', locking: 'on' }
}

function nbdNode({ nbd, reconnectDelayS }: NbdDrive, isReadOnly: boolean): object {
  const uri = new URL(nbd)
  const name = decodeURIComponent(uri.pathname.slice(1))
  return {
    driver: 'nbd',
    server: nbdServer(uri),
    ...(name === '' ? {} : { export: name }),
    'read-only': isReadOnly,
    discard: 'unmap',
    'reconnect-delay': reconnectDelayS ?? 0,
  }
}

function nbdServer(uri: URL): object {
  if (uri.protocol === 'nbd:') return { type: 'inet', host: uri.hostname, port: uri.port || '10809' }
  const path = uri.searchParams.get('socket')
  if (uri.protocol !== 'nbd+unix:' || path === null) throw new TypeError(`not an NBD address: ${uri.href}`)
  return { type: 'unix', path }
}
