/**
 * A raw file behind somebody else's NBD server: what the harness is tried on, and what our own export is compared with.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, rmSync, watch } from 'node:fs'
import { basename, dirname } from 'node:path'
import { within } from './channel.js'

export type ForeignServer = 'nbdkit' | 'qemu-nbd'

/** A running server; its address stays the same when it is started again. */
export class ForeignExport {
  #process: ChildProcess | undefined

  /** @param socketPath - of the socket to serve on; its folder must be there */
  constructor(
    private readonly server: ForeignServer,
    private readonly diskPath: string,
    private readonly socketPath: string,
  ) {}

  get uri(): string {
    return `nbd+unix:///?socket=${this.socketPath}`
  }

  /** Resolves when it listens, which both servers say by writing their process id. */
  async start(): Promise<void> {
    const pidPath = `${this.socketPath}.pid`
    for (const path of [pidPath, this.socketPath]) rmSync(path, { force: true })
    const folder = watch(dirname(pidPath))
    const child = spawn(this.server, this.#options(pidPath), { stdio: ['ignore', 'inherit', 'inherit'] })
    this.#process = child
    const written = new Promise<void>((resolve) => {
      folder.on('change', (_, name) => name === basename(pidPath) && existsSync(pidPath) && resolve())
    })
    const ended = once(child, 'exit').then(() => {
      throw new Error(`${this.server} ended before it served ${this.diskPath}`)
    })
    ended.catch(() => undefined)
    await within(Promise.race([written, ended]), 10_000, () => `${this.server} serves ${this.diskPath}`)
    folder.close()
  }

  /** Ends the server with SIGKILL and waits for its end. */
  async kill(): Promise<void> {
    const child = this.#process
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill('SIGKILL')
    await ended
  }

  #options(pidPath: string): string[] {
    if (this.server === 'nbdkit') return ['-f', '-U', this.socketPath, '-P', pidPath, 'file', this.diskPath]
    const server = ['--persistent', '--shared=0', `--socket=${this.socketPath}`, `--pid-file=${pidPath}`]
    return [...server, '--format=raw', '--discard=unmap', this.diskPath]
  }
}
