/**
 * A process that protects a machine while a guest runs on its disks (`protect-child.mjs`): what is killed when the death of
 * the protecting process is tried.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { within } from './channel.js'

const child = fileURLToPath(new URL('protect-child.mjs', import.meta.url))

interface Message {
  readonly ready?: { readonly recovery: readonly string[]; readonly uris: readonly string[] }
  readonly cycles?: number
  readonly stopped?: { readonly state: string; readonly resyncReason: string | null }
}

export class ProtectProcess {
  readonly #messages: Message[] = []

  private constructor(private readonly process: ChildProcess) {
    process.on('message', (message) => this.#messages.push(message as Message))
  }

  /** Starts one; the disks are protected by the first that starts in a folder, the others go on. */
  static start(folder: string, disks: readonly string[]): ProtectProcess {
    return new ProtectProcess(
      fork(child, [folder, ...disks], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }),
    )
  }

  /** Waits until the disks are exported. */
  ready(): Promise<NonNullable<Message['ready']>> {
    return this.#message((message) => message.ready, 'the export')
  }

  /** Waits until this process has run `count` cycles. */
  async cycled(count: number): Promise<void> {
    await this.#message(({ cycles = 0 }) => (cycles >= count ? cycles : undefined), `cycle ${count}`)
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
