/**
 * Live disks as NBD exports: what QEMU, libvirt, the kernel's nbd client, nbdkit and fio attach to.
 *
 * The server runs in threads of the core; no request of a client ever waits on JavaScript. Every write goes into the log
 * of its disk, as a write from this process does.
 */

import { resolve } from 'node:path'
import { checkWithin, optionOutOfRange } from '../errors.js'
import { native } from '../native/index.js'
import type { WorkerPool } from '../pool/pool.js'

/** The server's side of TLS: files in PEM. */
export interface NbdTls {
  /** The server's certificate, followed by those between it and its authority. */
  readonly certificatePath: string
  readonly keyPath: string
  /** Authority that must have signed the certificates of clients; without it they need none. */
  readonly clientAuthorityPath?: string
  /** Whether clients without TLS are refused; default true. */
  readonly required?: boolean
}

/** How disks are exported. */
export interface NbdOptions {
  /** `unix:PATH`, a socket that only this user may open, or `tcp:HOST:PORT`; port 0 takes a free one. */
  readonly listen: string
  /** Refuses writes; default false. */
  readonly readOnly?: boolean
  readonly tls?: NbdTls
  /**
   * Microseconds that a connection polls for the next request before it sleeps, 0 to 1000, default 0. A guest that waits
   * for each write gets 20 to 50 % more; each busy connection takes up to a core.
   */
  readonly spinMicroseconds?: number
  /** Connections at once, 1 to 1024, default 64. */
  readonly connectionCountMax?: number
}

/** What a server has done so far; all but `connectionCount` only grow. */
export interface NbdCounters {
  readonly connectionCount: number
  readonly acceptedCount: number
  /** Closed at once, being too many. */
  readonly refusedCount: number
  /** Ended for a breach of the protocol or of a limit. */
  readonly breachCount: number
  readonly requestCount: number
  readonly errorCount: number
  readonly flushCount: number
  readonly readBytes: number
  readonly writtenBytes: number
}

/** A disk that can be exported; see {@link TrackedDisk}. */
export interface Exportable {
  readonly name: string
  readonly handle: number
}

const LISTEN = /^(unix:.+|tcp:(\[[0-9a-fA-F:.]+\]|[^:[\]]+):\d{1,5})$/

/** A running export of one or several disks. */
export class NbdExport implements AsyncDisposable {
  /** Where clients find it, as `listen`, with the port filled in. */
  readonly address: string
  readonly #handle: number
  readonly #pool: WorkerPool
  #isClosed = false

  private constructor(handle: number, address: string, pool: WorkerPool) {
    this.#handle = handle
    this.address = address
    this.#pool = pool
  }

  /** @throws {OPTION_OUT_OF_RANGE, NBD_ADDRESS_IN_USE, NBD_LISTEN_FAILED, NBD_TLS_INVALID} */
  static async start(
    disks: readonly Exportable[],
    options: NbdOptions,
    pool: WorkerPool,
  ): Promise<NbdExport> {
    const { readOnly = false, tls, spinMicroseconds = 0, connectionCountMax = 64 } = options
    const exports = disks.map(({ name, handle }) => ({ name, handle, isReadOnly: readOnly, description: '' }))
    const server = {
      listen: listenOf(options.listen),
      exports,
      ...(tls ? { tls: tlsOf(tls) } : {}),
      spinUs: checkWithin('spinMicroseconds', spinMicroseconds, 0, 1000),
      connectionCountMax: checkWithin('connectionCountMax', connectionCountMax, 1, 1024),
    }
    const { handle, address } = (await pool.run('native', { call: 'startNbd', args: [server] })) as Started
    return new NbdExport(handle, address, pool)
  }

  /** The URI of a disk, as clients take it: `nbd+unix:///os.raw?socket=/run/web01.sock`. */
  uri(disk: Exportable | string): string {
    const name = encodeURIComponent(typeof disk === 'string' ? disk : disk.name)
    const [kind = '', ...rest] = this.address.split(':')
    const place = rest.join(':')
    return kind === 'unix' ? `nbd+unix:///${name}?socket=${encodeURI(place)}` : `nbd://${place}/${name}`
  }

  /** Counters, one snapshot; after {@link close} all are 0. */
  counters(): NbdCounters {
    return this.#isClosed ? NO_COUNTERS : native.nbdCounters(this.#handle)
  }

  /** Ends all connections, after what they have begun. Calling it again does nothing. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await this.#pool.run('native', { call: 'stopNbd', args: [this.#handle] })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

interface Started {
  readonly handle: number
  readonly address: string
}

const NO_COUNTERS: NbdCounters = {
  connectionCount: 0,
  acceptedCount: 0,
  refusedCount: 0,
  breachCount: 0,
  requestCount: 0,
  errorCount: 0,
  flushCount: 0,
  readBytes: 0,
  writtenBytes: 0,
}

/** The parts of an address in the form of {@link NbdOptions.listen}; a host in brackets comes without them. */
export function nbdPlaceOf(
  address: string,
): { readonly path: string } | { readonly host: string; readonly port: string } {
  if (address.startsWith('unix:')) return { path: address.slice('unix:'.length) }
  const [, host = '', port = ''] = /^tcp:\[?(.+?)\]?:(\d+)$/.exec(address) ?? []
  return { host, port }
}

function listenOf(listen: string): string {
  if (!LISTEN.test(listen))
    throw optionOutOfRange({ path: 'listen', value: listen, range: 'unix:PATH or tcp:HOST:PORT' })
  return listen.startsWith('unix:') ? `unix:${resolve(listen.slice('unix:'.length))}` : listen
}

function tlsOf({ certificatePath, keyPath, clientAuthorityPath, required = true }: NbdTls) {
  const authority = clientAuthorityPath ? { clientAuthorityPath: resolve(clientAuthorityPath) } : {}
  return {
    certificatePath: resolve(certificatePath),
    keyPath: resolve(keyPath),
    isRequired: required,
    ...authority,
  }
}
