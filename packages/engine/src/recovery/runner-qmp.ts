/**
 * One command to a QEMU by its QMP socket: greeting, capabilities, command, answer, end. Lines of JSON; events are passed over.
 *
 * The other end is a process that we started, but one that may hang: every conversation has a limit, and so has a line.
 * Protocol: QEMU's docs/interop/qmp-spec.
 */

import { connect, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { type JsonValue, SecondsiteError } from '../errors.js'

/** Bytes of one answer, at most; the longest that we ask for has some hundred. */
const ANSWER_BYTES_MAX = 1024 * 1024

interface Message {
  readonly QMP?: JsonValue
  readonly event?: string
  readonly return?: JsonValue
  readonly error?: { readonly class?: string; readonly desc?: string }
}

/**
 * Carries a command out.
 * @throws {RUNNER_FAILED} when nobody listens, the answer is none, or does not come within the limit
 */
export async function qmp(socketPath: string, command: string, limitMs: number): Promise<JsonValue> {
  const socket = connect(socketPath)
  socket.setTimeout(limitMs, () => socket.destroy(new Error(`no answer within ${limitMs} ms`)))
  const closing = new Promise<never>((_, reject) => {
    socket.once('error', (error) => reject(failed(socketPath, command, error.message)))
    socket.once('close', () => reject(failed(socketPath, command, 'the connection was closed')))
  })
  closing.catch(() => {}) // Who waits is told; without anybody it is the end of the conversation.
  try {
    return await Promise.race([converse(socket, socketPath, command), closing])
  } finally {
    socket.destroy()
  }
}

async function converse(socket: Socket, socketPath: string, command: string): Promise<JsonValue> {
  for await (const message of messagesOf(socket, socketPath, command)) {
    if (message.error) throw failed(socketPath, command, message.error.desc ?? 'it was refused')
    if (message.QMP !== undefined) socket.write('{"execute":"qmp_capabilities","id":0}\n')
    else if (message.event !== undefined) continue
    else if ('id' in message && message.id === 0)
      socket.write(`${JSON.stringify({ execute: command, id: 1 })}\n`)
    else return message.return ?? null
  }
  throw failed(socketPath, command, 'the connection was closed')
}

async function* messagesOf(socket: Socket, socketPath: string, command: string): AsyncGenerator<Message> {
  let receivedBytes = 0
  socket.on('data', (piece: Buffer) => {
    receivedBytes += piece.length
    if (receivedBytes > ANSWER_BYTES_MAX) socket.destroy(new Error('an answer without an end'))
  })
  for await (const line of createInterface({ input: socket })) {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      throw failed(socketPath, command, 'what comes is no JSON')
    }
    if (typeof message !== 'object' || message === null)
      throw failed(socketPath, command, 'what comes is no object')
    yield message
  }
}

function failed(socketPath: string, command: string, reason: string): SecondsiteError {
  return new SecondsiteError('RUNNER_FAILED', {
    message: `QEMU at ${socketPath} did not carry out ${command}: ${reason}`,
    details: { path: socketPath, command, reason },
  })
}
