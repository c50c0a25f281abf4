/**
 * Conversations with guest agents that are slow, broken or hostile. A real agent in a real guest is in test/scenarios.
 */

import { once } from 'node:events'
import fs from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { GuestAgentQuiesce } from './guest-agent-quiesce.js'

type Reply = (socket: Socket, syncId: number) => void

/** An agent that carries out commands one after the other; `replies` take the place of what it would answer. */
class FakeAgent {
  readonly commands: string[] = []
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  frozenCount = 0

  constructor(
    path: string,
    private readonly replies: Partial<Record<string, Reply>> = {},
  ) {
    this.#server = createServer((socket) => this.#serve(socket)).listen(path)
  }

  async listening(): Promise<this> {
    await once(this.#server, 'listening')
    return this
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket)
    socket.on('error', () => {})
    createInterface(socket).on('line', (line) => {
      const { execute, arguments: args } = JSON.parse(line.replace(/^[^{]*/, '')) as Command
      this.commands.push(execute)
      const reply = this.replies[execute]
      if (reply) reply(socket, args?.id ?? 0)
      else this.answer(socket, execute, args?.id ?? 0)
    })
  }

  answer(socket: Socket, command: string, syncId: number): void {
    if (command === 'guest-sync-delimited') return synced(socket, syncId)
    const count = command === 'guest-fsfreeze-freeze' ? 2 : this.frozenCount
    this.frozenCount = command === 'guest-fsfreeze-freeze' ? 2 : 0
    socket.write(`{"return": ${count}}\n`)
  }
}

interface Command {
  readonly execute: string
  readonly arguments?: { readonly id: number }
}

function synced(socket: Socket, syncId: number): void {
  socket.write(Buffer.concat([Buffer.from([0xff]), Buffer.from(`{"return": ${syncId}}\n`)]))
}

let folder: string
let agents: FakeAgent[]

async function agent(replies: Partial<Record<string, Reply>> = {}): Promise<FakeAgent> {
  const fake = new FakeAgent(join(folder, 'agent'), replies)
  agents.push(fake)
  return fake.listening()
}

const hook = (): GuestAgentQuiesce => new GuestAgentQuiesce(join(folder, 'agent'))
const never = new AbortController().signal

beforeEach(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'secondsite-agent-'))
  agents = []
})

afterEach(() => {
  for (const one of agents) one.close()
  fs.rmSync(folder, { recursive: true })
})

describe('a guest agent', () => {
  it('freezes and thaws; a second thaw finds nothing frozen and harms nobody', async () => {
    const fake = await agent()
    const quiesce = hook()
    await quiesce.freeze(never)
    expect(fake.frozenCount).toBe(2)
    expect([await quiesce.thaw(), await quiesce.thaw()]).toEqual([true, false])
  })

  it('in the middle of answers to a client before is brought into step', async () => {
    await agent({
      'guest-sync-delimited': (socket, syncId) => {
        socket.write('l": 0}\n{"return": {}}\n')
        synced(socket, syncId - 1)
        synced(socket, syncId)
      },
    })
    await hook().freeze(never)
    expect(agents[0]?.frozenCount).toBe(2)
  })

  it('that thawed some by itself meanwhile is found out', async () => {
    const fake = await agent()
    const quiesce = hook()
    await quiesce.freeze(never)
    fake.frozenCount = 1
    expect(await quiesce.thaw()).toBe(false)
  })

  it('that refuses is quoted', async () => {
    const text = 'failed to freeze /: Device or resource busy'
    await agent({
      'guest-fsfreeze-freeze': (socket) =>
        socket.write(`{"error": {"class": "GenericError", "desc": "${text}"}}\n`),
    })
    const details = { command: 'guest-fsfreeze-freeze', reason: text }
    await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_FREEZE_FAILED', details })
  })

  it.each(['0', 'null', '-1', '"2"', '{}', '[]'])(
    'that freezes %s file systems has failed',
    async (answer) => {
      await agent({ 'guest-fsfreeze-freeze': (socket) => socket.write(`{"return": ${answer}}\n`) })
      await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_FREEZE_FAILED' })
    },
  )

  it('that is not there is unreachable', async () => {
    const details = { reason: 'ENOENT' }
    await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_AGENT_UNREACHABLE', details })
  })

  it('that hangs up in the middle of an answer is unreachable', async () => {
    await agent({ 'guest-fsfreeze-freeze': (socket) => socket.end('{"ret') })
    await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_AGENT_UNREACHABLE' })
  })

  it.each([
    ['no JSON', '{"return": 2]\n'],
    ['a list', '[1]\n'],
    ['null', 'null\n'],
    ['an error that is none', '{"error": 7}\n'],
    ['neither value nor error', '{"event": "x"}\n'],
    ['a line without an end', 'x'.repeat(200_000)],
    ['deep nesting', `${'['.repeat(60_000)}\n`],
  ])('that answers %s is no agent', async (_what, bytes) => {
    await agent({ 'guest-fsfreeze-freeze': (socket) => socket.write(bytes) })
    await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_AGENT_PROTOCOL' })
  })

  it('that floods instead of coming into step is given up', async () => {
    await agent({ 'guest-sync-delimited': (socket) => socket.write(Buffer.alloc(3 << 20, 0x20)) })
    await expect(hook().freeze(never)).rejects.toMatchObject({ code: 'QUIESCE_AGENT_PROTOCOL' })
  })

  it('that never answers is left when the signal says so, and its late freeze is thawed', async () => {
    const stopper = new AbortController()
    const fake = await agent({
      'guest-fsfreeze-freeze': () => {
        fake.frozenCount = 2
        stopper.abort()
      },
    })
    const quiesce = hook()
    await expect(quiesce.freeze(stopper.signal)).rejects.toMatchObject({ code: 'ABORTED' })
    expect(await quiesce.thaw()).toBe(true)
    expect(fake.frozenCount).toBe(0)
  })
})
