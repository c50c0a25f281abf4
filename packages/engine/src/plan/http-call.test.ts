import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { systemClock } from '../clock.js'
import { ANSWER_BYTES_MAX, callHttp, type HttpRequest } from './http-call.js'
import { parsePlan } from './plan-file.js'

const servers: Server[] = []

afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
})

type Answer = (request: IncomingMessage, response: ServerResponse, body: string) => void

async function serverWith(answer: Answer): Promise<string> {
  const server = createServer(async (request, response) => {
    const parts: Buffer[] = []
    for await (const part of request) parts.push(part as Buffer)
    answer(request, response, Buffer.concat(parts).toString())
  })
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

/** The call as a plan file gives it, with its defaults. */
function request(http: object, options: Partial<HttpRequest> = {}): HttpRequest {
  const { plan } = parsePlan(JSON.stringify({ name: 'p', machines: {}, groups: [{ after: [{ http }] }] }))
  const parsed = plan.groups[0]?.after[0]?.http
  if (parsed === undefined) throw new Error('no call')
  return {
    http: parsed,
    idempotencyKey: 'run/1.after.1',
    facts: { plan: 'p' },
    timeoutMs: 60_000,
    clock: systemClock,
    signal: new AbortController().signal,
    ...options,
  }
}

interface Seen {
  readonly method: string | undefined
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

async function seenBy(http: object): Promise<Seen> {
  let seen: Seen | undefined
  const url = await serverWith(({ method, headers }, response, body) => {
    seen = { method, headers, body }
    response.end('ok')
  })
  await callHttp(request({ url, ...http }))
  return seen ?? expect.unreachable('no call')
}

describe('an HTTP call', () => {
  it('posts the facts of the run as JSON, with a key for repetitions', async () => {
    const { method, headers, body } = await seenBy({})
    expect([method, headers['content-type'], headers['idempotency-key'], body]).toEqual([
      'POST',
      'application/json',
      'run/1.after.1',
      '{"plan":"p"}',
    ])
  })

  it.each<[string, object, string, string | undefined]>([
    ['a text as it is', { body: 'up' }, 'up', 'text/plain; charset=utf-8'],
    [
      'a map as JSON',
      { method: 'PUT', body: { state: 'up', list: [1, null] } },
      '{"state":"up","list":[1,null]}',
      'application/json',
    ],
    [
      'with a header of its own',
      { body: 'a: b', headers: { 'content-type': 'text/yaml' } },
      'a: b',
      'text/yaml',
    ],
    ['nothing with GET', { method: 'GET' }, '', undefined],
    ['nothing with DELETE', { method: 'DELETE' }, '', undefined],
  ])('sends %s', async (_what, http, body, type) => {
    const seen = await seenBy(http)
    expect(seen.body).toBe(body)
    expect(seen.headers['content-type']).toBe(type)
  })

  it('takes the value of a header from the environment, and refuses when it is not set', async () => {
    const headers = { Authorization: { environment: 'SECONDSITE_TEST_TOKEN' } }
    process.env['SECONDSITE_TEST_TOKEN'] = 'Bearer secret'
    try {
      expect((await seenBy({ headers })).headers.authorization).toBe('Bearer secret')
    } finally {
      delete process.env['SECONDSITE_TEST_TOKEN']
    }
    await expect(callHttp(request({ url: 'http://127.0.0.1:1/', headers }))).rejects.toMatchObject({
      code: 'PLAN_ACTION_FAILED',
      details: { variable: 'SECONDSITE_TEST_TOKEN' },
    })
  })

  it('keeps the beginning of an answer of any length', async () => {
    const url = await serverWith((_request, response) => {
      response.on('error', () => undefined)
      response.write('y'.repeat(1 << 20))
    })
    const result = await callHttp(request({ url }))
    expect(result).toEqual({ status: 200, answer: 'y'.repeat(ANSWER_BYTES_MAX) })
  })

  it.each<[number, number[] | undefined, boolean]>([
    [204, undefined, true],
    [302, undefined, false],
    [404, undefined, false],
    [404, [404, 200], true],
    [201, [200], false],
    [500, undefined, false],
  ])('answered with %i where %j is expected: success is %s', async (status, expected, isGood) => {
    const url = await serverWith((_request, response) => {
      response.writeHead(status, { Location: 'http://127.0.0.1:1/elsewhere' })
      response.end(status === 204 ? undefined : 'because')
    })
    const outcome = callHttp(request({ url, ...(expected && { expect: expected }) }))
    if (isGood) await expect(outcome).resolves.toMatchObject({ status })
    else
      await expect(outcome).rejects.toMatchObject({
        code: 'PLAN_ACTION_FAILED',
        details: { status, answer: 'because', method: 'POST' },
      })
  })

  it('to nobody says why', async () => {
    const url = await serverWith(() => undefined)
    const [server] = servers.splice(0)
    await new Promise((resolve) => server?.close(resolve))
    await expect(callHttp(request({ url }))).rejects.toMatchObject({
      code: 'PLAN_ACTION_FAILED',
      details: { reason: expect.stringContaining('ECONNREFUSED') },
    })
  })

  it('that breaks off in its answer fails', async () => {
    const url = await serverWith((_request, response) => {
      response.writeHead(200, { 'Content-Length': '100' })
      response.write('half', () => response.destroy())
    })
    await expect(callHttp(request({ url }))).rejects.toMatchObject({ code: 'PLAN_ACTION_FAILED' })
  })

  it.each(['headers', 'the rest of the body'])(
    'that waits for %s ends at its timeout, or when it is stopped',
    async (what) => {
      const timers: (() => void)[] = []
      const stop = new AbortController()
      const held: (() => void)[] = []
      const url = await serverWith((_request, response) => {
        if (what !== 'headers') response.write('first')
        held.push(() => response.destroy())
        if (held.length === 1) timers[0]?.()
        else stop.abort()
      })
      const setTimer = (_ms: number, callback: () => void) => {
        timers.push(callback)
        return () => undefined
      }
      const clock = { ...systemClock, setTimer }
      const call = { clock, timeoutMs: 7000, signal: stop.signal }
      await expect(callHttp(request({ url }, call))).rejects.toMatchObject({
        code: 'PLAN_ACTION_TIMEOUT',
        details: { timeoutSeconds: 7 },
      })
      await expect(callHttp(request({ url }, call))).rejects.toMatchObject({ code: 'ABORTED' })
    },
  )
})
