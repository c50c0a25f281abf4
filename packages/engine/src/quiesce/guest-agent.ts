/**
 * A conversation with the QEMU guest agent: JSON commands over a unix socket, each line a message.
 *
 * The other end is inside the guest and may be anything: dead, slow, in the middle of an answer to somebody else, or
 * hostile. So a conversation begins with `guest-sync-delimited` (the agent answers with the byte 0xFF in front, and
 * everything before that is thrown away), lines have a longest length, what is no JSON object ends it, and every wait ends
 * with the signal. The agent takes one client at a time; a conversation is therefore closed as soon as it has its answer.
 *
 * Protocol: QEMU's docs/interop/qemu-ga-ref, "guest-sync-delimited", "guest-fsfreeze-*".
 */

import { connect, type Socket } from 'node:net'
import { abortedError, type JsonValue, SecondsiteError } from '../errors.js'

/** Bytes of an answer, at most; the longest that we ask for has some ten. */
const LINE_BYTES_MAX = 64 * 1024
/** Bytes that are thrown away before the agent has found its place, at most. */
const SKIPPED_BYTES_MAX = 1024 * 1024
const DELIMITER = 0xff
const NEWLINE = 0x0a

/** What the agent answers: a value, or its error. */
interface Answer {
  readonly return?: JsonValue
  readonly error?: { readonly class?: JsonValue; readonly desc?: JsonValue }
}

export class GuestAgent implements Disposable {
  readonly #socketPath: string
  readonly #socket: Socket
  readonly #signal: AbortSignal
  readonly #onAbort: () => void
  #buffer: Buffer = Buffer.alloc(0)
  #skippedBytes = 0
  #failure: SecondsiteError | undefined
  #wake: () => void = () => {}

  private constructor(socketPath: string, socket: Socket, signal: AbortSignal) {
    this.#socketPath = socketPath
    this.#socket = socket
    this.#signal = signal
    this.#onAbort = () => this.#fail(abortedError(signal.reason))
    signal.addEventListener('abort', this.#onAbort, { once: true })
    socket.on('data', (chunk) => this.#take(chunk))
    socket.on('close', () => this.#fail(this.#unreachable('it closed the connection')))
    socket.on('error', (error) => this.#fail(this.#unreachable(reasonOf(error))))
  }

  /**
   * Connects and brings both ends in step.
   * @param syncId - a number that no conversation before has used
   * @throws {QUIESCE_AGENT_UNREACHABLE} when nobody listens, or the connection breaks
   * @throws {QUIESCE_AGENT_PROTOCOL} when what comes is no answer of an agent
   * @throws what `signal` was aborted with
   */
  static async open(socketPath: string, syncId: number, signal: AbortSignal): Promise<GuestAgent> {
    if (signal.aborted) throw abortedError(signal.reason)
    const agent = new GuestAgent(socketPath, connect(socketPath), signal)
    try {
      // The byte in front ends whatever half a command a client before us may have left.
      agent.#socket.write(Buffer.from([DELIMITER]))
      agent.#send('guest-sync-delimited', { id: syncId })
      for (;;) {
        await agent.#skipToDelimiter()
        const answer = agent.#parse(await agent.#line())
        // An answer to another client's sync looks the same but for its number.
        if (answer.return === syncId) return agent
      }
    } catch (error) {
      agent[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Carries out a command.
   * @throws {QUIESCE_FREEZE_FAILED} with the agent's own words when it refuses
   */
  async execute(command: string): Promise<JsonValue> {
    this.#send(command)
    const answer = this.#parse(await this.#line())
    if (answer.error === undefined) return answer.return ?? null
    const reason = String(answer.error.desc ?? answer.error.class ?? 'no reason given').slice(0, 1000)
    throw new SecondsiteError('QUIESCE_FREEZE_FAILED', {
      message: `the guest agent refuses ${command}: ${reason}`,
      details: { socketPath: this.#socketPath, command, reason },
    })
  }

  [Symbol.dispose](): void {
    this.#signal.removeEventListener('abort', this.#onAbort)
    this.#failure ??= this.#unreachable('this conversation is over')
    this.#socket.destroy()
  }

  #send(command: string, args?: { readonly id: number }): void {
    const text = JSON.stringify(args ? { execute: command, arguments: args } : { execute: command })
    this.#socket.write(`${text}\n`)
  }

  #take(chunk: Buffer): void {
    this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk])
    if (this.#buffer.length > LINE_BYTES_MAX + chunk.length)
      this.#fail(this.#notAnAnswer('a line without an end'))
    this.#wake()
  }

  async #skipToDelimiter(): Promise<void> {
    for (;;) {
      const at = this.#buffer.indexOf(DELIMITER)
      this.#skippedBytes += at < 0 ? this.#buffer.length : at
      if (this.#skippedBytes > SKIPPED_BYTES_MAX) throw this.#notAnAnswer('more than it could have left over')
      this.#buffer = this.#buffer.subarray(at < 0 ? this.#buffer.length : at + 1)
      if (at >= 0) return
      await this.#more()
    }
  }

  async #line(): Promise<string> {
    for (;;) {
      const end = this.#buffer.indexOf(NEWLINE)
      if (end >= 0) {
        const line = this.#buffer.subarray(0, end)
        this.#buffer = this.#buffer.subarray(end + 1)
        return line.toString('utf8')
      }
      if (this.#buffer.length > LINE_BYTES_MAX) throw this.#notAnAnswer('a line without an end')
      await this.#more()
    }
  }

  /** Waits until more has come. */
  async #more(): Promise<void> {
    if (this.#failure) throw this.#failure
    await new Promise<void>((resolve) => {
      this.#wake = resolve
    })
    if (this.#failure) throw this.#failure
  }

  #parse(line: string): Answer {
    let answer: unknown
    try {
      answer = JSON.parse(line)
    } catch {
      throw this.#notAnAnswer('no JSON')
    }
    if (isAnswer(answer)) return answer
    throw this.#notAnAnswer('neither a value nor an error')
  }

  #fail(error: SecondsiteError): void {
    this.#failure ??= error
    this.#socket.destroy()
    this.#wake()
  }

  #unreachable(reason: string): SecondsiteError {
    const message = `the guest agent at ${this.#socketPath} cannot be reached: ${reason}`
    return new SecondsiteError('QUIESCE_AGENT_UNREACHABLE', {
      message,
      details: { socketPath: this.#socketPath, reason },
    })
  }

  #notAnAnswer(what: string): SecondsiteError {
    const message = `what the guest agent at ${this.#socketPath} sends is no answer: ${what}`
    return new SecondsiteError('QUIESCE_AGENT_PROTOCOL', {
      message,
      details: { socketPath: this.#socketPath, reason: what },
    })
  }
}

function isAnswer(value: unknown): value is Answer {
  if (typeof value !== 'object' || value === null) return false
  return 'return' in value || ('error' in value && typeof value.error === 'object' && value.error !== null)
}

function reasonOf(error: Error): string {
  return (error as NodeJS.ErrnoException).code ?? error.message
}
