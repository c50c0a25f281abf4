/**
 * A process that protects a machine while a guest runs on its disks (`protect-child.mjs`): what is killed when the death of
 * the protecting process is tried.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { within } from './channel.js'

const child = fileURLToPath(new URL('protect-child.mjs', import.meta.url))
/** Runs the command behind the first two words with a file system of a given size over a folder, that it alone sees. */
const WITH_SMALL_FOLDER = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'

interface Message {
  readonly ready?: { readonly recovery: readonly string[]; readonly uris: readonly string[] }
  readonly copied?: true
  readonly cycles?: number
  readonly resync?: string
  readonly stopped?: { readonly state: string }
}

export interface ProtectOptions {
  /** Where state, replica and socket are. */
  readonly folder: string
  /** Protected by the first process that starts in the folder; the others go on with what it began. */
  readonly disks: readonly string[]
  /** An empty folder for the logs, on a file system of its own of this size; default beside the disks. */
  readonly logs?: { readonly directory: string; readonly sizeBytes: number }
  /** Whether cycles wait for {@link ProtectProcess.go}; default false. */
  readonly isHeld?: boolean
}

export class ProtectProcess {
  readonly #messages: Message[] = []

  private constructor(private readonly process: ChildProcess) {
    process.on('message', (message) => this.#messages.push(message as Message))
  }

  static start({ folder, disks, logs, isHeld = false }: ProtectOptions): ProtectProcess {
    const task = JSON.stringify({ folder, disks, logDirectory: logs?.directory, isHeld })
    const node = [process.execPath, child, task]
    const small = ['unshare', '--mount', '--map-root-user', 'sh', '-c', WITH_SMALL_FOLDER, 'sh']
    const words = logs ? [...small, `${logs.sizeBytes}`, logs.directory, ...node] : node
    return new ProtectProcess(
      spawn(words[0] ?? '', words.slice(1), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }),
    )
  }

  /** Reasons of the resynchronizations that this process has done. */
  get resyncs(): readonly string[] {
    return this.#messages.flatMap(({ resync }) => resync ?? [])
  }

  /** Waits until the disks are exported. */
  ready(): Promise<NonNullable<Message['ready']>> {
    return this.#message((message) => message.ready, 'the export')
  }

  /** Waits until the initial replication is done. */
  async copied(): Promise<void> {
    await this.#message((message) => message.copied, 'the end of the initial replication')
  }

  /** Lets the cycles begin. */
  go(): void {
    this.process.send('go')
  }

  /** Waits until this process has run `count` cycles. */
  async cycled(count: number): Promise<void> {
    await this.#message(({ cycles = 0 }) => (cycles >= count ? cycles : undefined), `cycle ${count}`)
  }

  /** Waits for this many more cycles; the second of them, and all after it, have begun later than this was called. */
  async cyclesFromNow(count: number): Promise<void> {
    const done = Math.max(0, ...this.#messages.map(({ cycles = 0 }) => cycles))
    await this.cycled(done + count)
  }

  /** Ends the export, runs a last cycle and ends the process in order. */
  async stop(): Promise<NonNullable<Message['stopped']>> {
    this.process.send('stop')
    return this.#message((message) => message.stopped, 'the end')
  }

  /** Ends the process with SIGKILL and waits for its end; may be called at any time. */
  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return
    const ended = once(this.process, 'exit')
    this.process.kill('SIGKILL')
    await ended
  }

  async #message<T>(pick: (message: Message) => T | undefined, what: string): Promise<T> {
    const ended = once(this.process, 'exit').then(([code, signal]) => {
      throw new Error(`the protecting process ended (${code ?? signal}) before ${what}`)
    })
    ended.catch(() => undefined)
    for (let index = 0; ; index += 1) {
      while (index >= this.#messages.length) {
        const next = Promise.race([once(this.process, 'message'), ended])
        await within(next, 60_000, () => `${what} of the protecting process`)
      }
      const message = this.#messages[index]
      const picked = message && pick(message)
      if (picked !== undefined) return picked
    }
  }
}
