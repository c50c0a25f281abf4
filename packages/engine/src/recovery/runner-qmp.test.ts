/** A QEMU that answers, and others that do not behave. */

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { qmp } from './runner-qmp.js'

const LIMIT_MS = 20_000
const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\r\n'

let folder: string
let servers: Server[]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'secondsite-qmp-'))
  servers = []
})

afterEach(() => {
  for (const server of servers) server.close()
  rmSync(folder, { recursive: true, force: true })
})

/** Listens, greets, and has `answer` say what comes back for each line. */
async function listen(greeting: string, answer: (line: string, socket: Socket) => string): Promise<string> {
  const path = join(folder, 'qmp.sock')
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.write(greeting)
    socket.on('data', (piece) => {
      for (const line of String(piece).split('\n').filter(Boolean)) socket.write(answer(line, socket))
    })
  }).listen(path)
  servers.push(server)
  await once(server, 'listening')
  return path
}

describe('a command by QMP', () => {
  it('is given after greeting and capabilities, and events are passed over', async () => {
    const heard: string[] = []
    const path = await listen(GREETING, (line) => {
      heard.push((JSON.parse(line) as { execute: string }).execute)
      const id = heard.length - 1
      return `{"event": "RESUME", "data": {}}\n{"return": {"status": "running"}, "id": ${id}}\n`
    })
    expect(await qmp(path, 'query-status', LIMIT_MS)).toEqual({ status: 'running' })
    expect(heard).toEqual(['qmp_capabilities', 'query-status'])
  })

  it('that is refused says so in QEMU’s words', async () => {
    const path = await listen(
      GREETING,
      () => '{"error": {"class": "CommandNotFound", "desc": "no such thing"}}\n',
    )
    await expect(qmp(path, 'quit', LIMIT_MS)).rejects.toMatchObject({
      code: 'RUNNER_FAILED',
      details: { reason: 'no such thing', command: 'quit' },
    })
  })

  const BAD: [string, string, (socket: Socket) => string][] = [
    ['no JSON', 'HTTP/1.1 400\n', () => ''],
    ['JSON that is no object', '42\n', () => ''],
    ['null', 'null\n', () => ''],
    ['an end instead of an answer', GREETING, (socket) => (socket.end(), '')],
    ['a line without an end', 'x'.repeat(2 * 1024 * 1024), () => ''],
  ]
  it.each(BAD)('fails with a code on %s', async (_what, greeting, answer) => {
    const path = await listen(greeting, (_line, socket) => answer(socket))
    await expect(qmp(path, 'quit', LIMIT_MS)).rejects.toMatchObject({ code: 'RUNNER_FAILED' })
  })

  it('fails when nobody listens, and when nobody answers', async () => {
    await expect(qmp(join(folder, 'none.sock'), 'quit', LIMIT_MS)).rejects.toMatchObject({
      code: 'RUNNER_FAILED',
    })
    const path = await listen('', () => '')
    await expect(qmp(path, 'quit', 50)).rejects.toMatchObject({
      details: { reason: 'no answer within 50 ms' },
    })
  })
})
