/**
 * The host's end of the line protocol that `programs/agent.c` describes: commands go in, their output lines and exit codes
 * come out. Every wait ends: by the line or exit waited for, by the guest's end, or by its time limit.
 */

import { once } from 'node:events'
import type { Socket } from 'node:net'
import { createInterface } from 'node:readline'

/** Longest command, the agent's LINE_BYTES_MAX without the number in front. */
const COMMAND_BYTES_MAX = 4000

/** A guest, or a command in it, did not do what was asked. */
export class GuestError extends Error {
  override readonly name = 'GuestError'
}

/** Rejects with a {@link GuestError} that says `what` was waited for when `promise` takes longer than the limit. */
export async function within<T>(promise: Promise<T>, limitMs: number, what: () => string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const limit = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new GuestError(`not within ${limitMs} ms: ${what()}`)), limitMs)
  })
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer))
}

/** A promise that others fulfil. Nobody need wait for it: its rejection is not an unhandled one. */
class Outcome<T> {
  resolve!: (value: T) => void
  reject!: (reason: Error) => void
  readonly promise = new Promise<T>((resolve, reject) => {
    this.resolve = resolve
    this.reject = reject
  })

  constructor() {
    this.promise.catch(() => undefined)
  }
}

/** A shell command that runs in the guest, or has run. */
export class GuestCommand {
  readonly lines: string[] = []
  readonly #ended = new Outcome<number>()
  readonly #watchers = new Set<() => void>()
  #end: string | undefined

  constructor(
    readonly text: string,
    private readonly requestStop: () => void,
  ) {}

  /** All lines so far, as one text. */
  get output(): string {
    return this.lines.join('\n')
  }

  /** Sends SIGTERM to the command and its children. */
  stop(): void {
    this.requestStop()
  }

  /** The exit code; 128 + signal when a signal ended it. Rejects when the guest ends first. */
  exitCode(limitMs = 30_000): Promise<number> {
    return within(this.#ended.promise, limitMs, () => `the end of ${this.describe()}`)
  }

  /** The first line, of those there and those to come, that `isWanted`. */
  line(isWanted: (line: string) => boolean, limitMs = 30_000): Promise<string> {
    const found = new Outcome<string>()
    let nextIndex = 0
    const look = (): void => {
      for (; nextIndex < this.lines.length; nextIndex += 1) {
        const line = this.lines[nextIndex] ?? ''
        if (isWanted(line)) return found.resolve(line)
      }
      if (this.#end !== undefined) found.reject(new GuestError(`${this.#end}; waited for a line`))
    }
    this.#watchers.add(look)
    look()
    return within(found.promise, limitMs, () => `a line of ${this.describe()}`).finally(() =>
      this.#watchers.delete(look),
    )
  }

  /** For errors: the command and the end of what it wrote. */
  describe(): string {
    return `\`${this.text}\`, which wrote:\n${this.lines.slice(-20).join('\n')}`
  }

  /** @internal */
  onLine(line: string): void {
    this.lines.push(line)
    this.#watchers.forEach((look) => look())
  }

  /** @internal */
  onExit(code: number): void {
    this.#end = `exit code ${code} of ${this.describe()}`
    this.#ended.resolve(code)
    this.#watchers.forEach((look) => look())
  }

  /** @internal */
  onGuestEnd(reason: string): void {
    this.#end ??= `${reason} during ${this.describe()}`
    this.#ended.reject(new GuestError(this.#end))
    this.#watchers.forEach((look) => look())
  }
}

/** The commands of one guest, over its control port. */
export class GuestChannel {
  readonly #socket: Socket
  readonly #commands = new Map<number, GuestCommand>()
  readonly #ready = new Outcome<void>()
  readonly #drained: Promise<void>
  #commandCount = 0
  #end: string | undefined

  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('error', () => undefined)
    const lines = createInterface(socket).on('line', (line) => this.#onLine(line))
    this.#drained = once(lines, 'close').then(() => undefined)
  }

  /** Resolves when QEMU has closed its end and the last line from there has been handed on. */
  drained(): Promise<void> {
    return this.#drained
  }

  /** Resolves when the guest takes commands. */
  ready(): Promise<void> {
    return this.#ready.promise
  }

  /** Starts a shell command; it runs beside those that run already (at most 16). */
  start(text: string): GuestCommand {
    if (text.includes('\n') || text.length > COMMAND_BYTES_MAX)
      throw new TypeError(`a command is one line of at most ${COMMAND_BYTES_MAX} bytes`)
    const number = (this.#commandCount += 1)
    const command = new GuestCommand(text, () => this.#send(`${number} stop`))
    this.#commands.set(number, command)
    if (this.#end === undefined) this.#send(`${number} run ${text}`)
    else command.onGuestEnd(this.#end)
    return command
  }

  /** Fails whatever still waits; calls after the first change nothing. */
  end(reason: string): void {
    this.#end ??= reason
    this.#socket.destroy()
    this.#ready.reject(new GuestError(this.#end))
    this.#commands.forEach((command) => command.onGuestEnd(reason))
    this.#commands.clear()
  }

  #send(line: string): void {
    this.#socket.write(`${line}\n`)
  }

  #onLine(line: string): void {
    if (line === 'ready') return this.#ready.resolve()
    const [, number, verb, text = ''] = /^(\d+) (line|exit|full) ?(.*)$/.exec(line) ?? []
    const command = this.#commands.get(Number(number))
    if (verb === 'line') return command?.onLine(text)
    this.#commands.delete(Number(number))
    if (verb === 'exit') command?.onExit(Number(text))
    else
      command?.onGuestEnd(verb === 'full' ? 'too many commands at once' : `not a line of the agent: ${line}`)
  }
}
