/**
 * What every transport promises, as tests: registered by a test file for each implementation.
 *
 * The promises are those of `Channel` and `Transport`: whole messages, in order, at most once, none after a lost one;
 * back-pressure; an end that both sides see.
 */

import {
  CHANNEL_QUEUE_BYTES_MAX,
  type Channel,
  type Message,
  message,
  SeededRandom,
  type Serve,
  type Transport,
} from '@secondsite/engine/testing'
import { afterEach, describe, expect, it } from 'vitest'

/** A transport under test. */
export interface TransportSubject {
  readonly name: string
  /** A transport whose channels are handed to `serve`. */
  create(serve: Serve): Promise<Transport>
  /** Breaks all connections, without a goodbye. */
  breakAll(): Promise<void>
  /** Bytes that the system's own buffers may take beyond the queue of a channel; 0 in memory. */
  readonly systemBufferBytes: number
}

const bodyBytes = 1024 * 1024

function frameOf(offset: number, body: Uint8Array): Message {
  const header = { key: 1, diskId: 'disk', logId: 'log', part: 'log' as const, offset, rawBytes: body.length }
  return message('frame', header, body)
}

async function collect(channel: Channel, count = Number.POSITIVE_INFINITY): Promise<Message[]> {
  const received: Message[] = []
  for await (const next of channel.receive()) {
    received.push(next)
    if (received.length >= count) break
  }
  return received
}

/** Resolves to true when `promise` is still pending after other work had its turn. */
async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let isSettled = false
  promise.then(
    () => (isSettled = true),
    () => (isSettled = true),
  )
  for (let turn = 0; turn < 50; turn += 1) await new Promise((resolve) => setImmediate(resolve))
  return !isSettled
}

/** Registers the suite for one transport. */
export function describeTransport(subject: TransportSubject): void {
  const open: Channel[] = []

  afterEach(async () => {
    await Promise.all(open.splice(0).map((channel) => channel.close()))
  })

  async function pair(): Promise<{ near: Channel; far: Channel }> {
    const { promise, resolve } = resolvers<Channel>()
    const transport = await subject.create(resolve)
    const near = await transport.connect()
    const far = await promise
    open.push(near, far)
    return { near, far }
  }

  describe(`transport ${subject.name}`, () => {
    it('delivers every message once, in order, with header and body', async () => {
      const { near, far } = await pair()
      const random = new SeededRandom(11)
      const bodies = Array.from({ length: 40 }, () => random.bytes(1 + random.below(200_000)))
      const receiving = collect(far)
      for (const [index, body] of bodies.entries()) await near.send(frameOf(index, body))
      await near.close()
      const received = await receiving
      expect(received.map(({ header }) => (header as { offset: number }).offset)).toEqual([...bodies.keys()])
      expect(
        received.every(
          ({ body }, index) =>
            Buffer.compare(body ?? Buffer.alloc(0), bodies[index] ?? Buffer.alloc(0)) === 0,
        ),
      ).toBe(true)
    })

    it('keeps the order of calls that do not wait for each other', async () => {
      const { near, far } = await pair()
      const receiving = collect(far)
      const keys = Array.from({ length: 100 }, (_, key) => key)
      await Promise.all(keys.map((key) => near.send(message('shipment-end', { key }))))
      await near.close()
      expect((await receiving).map(({ header }) => header)).toEqual(keys.map((key) => ({ key })))
    })

    it('carries both directions at once', async () => {
      const { near, far } = await pair()
      const atFar = collect(far, 1)
      const atNear = collect(near, 1)
      await Promise.all([
        near.send(message('status-request', { key: 1 })),
        far.send(message('received', { key: 2 })),
      ])
      expect(await atFar).toEqual([message('status-request', { key: 1 })])
      expect(await atNear).toEqual([message('received', { key: 2 })])
    })

    it('delivers a body that is a part of a larger buffer without what lies around it, in a buffer of its own', async () => {
      const { near, far } = await pair()
      const around = new Uint8Array(7000).fill(9)
      around.fill(1, 1000, 6000)
      await near.send(frameOf(0, around.subarray(1000, 6000)))
      const [received] = await collect(far, 1)
      expect(received?.body?.length).toBe(5000)
      expect(received?.body?.buffer.byteLength).toBe(5000)
      expect(received?.body?.every((byte) => byte === 1)).toBe(true)
    })

    it('makes the sender wait when nobody receives, and lets it go on when somebody does', async () => {
      const { near, far } = await pair()
      const limit = Math.ceil((CHANNEL_QUEUE_BYTES_MAX + subject.systemBufferBytes) / bodyBytes) + 2
      const sends: Promise<void>[] = []
      for (let index = 0; index < limit; index += 1)
        sends.push(near.send(frameOf(index, new Uint8Array(bodyBytes))))
      expect(await isPending(sends.at(-1) as Promise<void>)).toBe(true)
      const received = collect(far, limit)
      await Promise.all(sends)
      expect(await received).toHaveLength(limit)
    })

    it('does not send what is aborted while it waits', async () => {
      const { near, far } = await pair()
      const stop = new AbortController()
      const limit = Math.ceil((CHANNEL_QUEUE_BYTES_MAX + subject.systemBufferBytes) / bodyBytes) + 2
      const sends: Promise<void>[] = []
      for (let index = 0; index < limit; index += 1)
        sends.push(near.send(frameOf(index, new Uint8Array(bodyBytes))))
      const aborted = near.send(message('shipment-end', { key: 1 }), stop.signal)
      stop.abort()
      await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' })
      const after = near.send(message('shipment-end', { key: 2 }))
      const received = collect(far, limit + 1)
      await Promise.all([...sends, after])
      expect((await received).at(-1)).toEqual(message('shipment-end', { key: 2 }))
    })

    it('refuses an aborted send and an aborted connect', async () => {
      const { near } = await pair()
      const send = near.send(message('shipment-end', { key: 1 }), AbortSignal.abort())
      await expect(send).rejects.toMatchObject({ code: 'ABORTED' })
      const transport = await subject.create(() => {})
      await expect(transport.connect(AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' })
    })

    it('closed by one side, delivers what was sent and then ends for both', async () => {
      const { near, far } = await pair()
      await near.send(message('shipment-end', { key: 5 }))
      await near.close()
      await near.close()
      expect(await collect(far)).toEqual([message('shipment-end', { key: 5 })])
      expect(await collect(near)).toEqual([])
      await expect(near.send(message('shipment-end', { key: 6 }))).rejects.toMatchObject({
        code: 'TRANSPORT_LOST',
      })
    })

    it('broken, fails receivers and senders of both sides with TRANSPORT_LOST', async () => {
      const { near, far } = await pair()
      const receiving = [collect(near), collect(far)].map((promise) =>
        promise.catch((error: unknown) => error),
      )
      await near.send(message('shipment-end', { key: 1 }))
      await subject.breakAll()
      const results = await Promise.all(receiving)
      expect(results).toEqual([
        expect.objectContaining({ code: 'TRANSPORT_LOST' }),
        expect.objectContaining({ code: 'TRANSPORT_LOST' }),
      ])
      for (const channel of [near, far]) {
        await expect(channel.send(message('shipment-end', { key: 2 }))).rejects.toMatchObject({
          code: 'TRANSPORT_LOST',
        })
      }
    })

    it('gives each connection a channel of its own', async () => {
      const served: Channel[] = []
      const transport = await subject.create((channel) => void served.push(channel))
      const first = await transport.connect()
      const second = await transport.connect()
      open.push(first, second)
      while (served.length < 2) await new Promise((resolve) => setImmediate(resolve))
      open.push(...served)
      await first.send(message('status-request', { key: 1 }))
      await second.send(message('status-request', { key: 2 }))
      await Promise.all([first.close(), second.close()])
      const keys = await Promise.all(served.map((channel) => collect(channel)))
      expect(keys.flat().map(({ header }) => header)).toEqual([{ key: 1 }, { key: 2 }])
    })

    it('refuses a message that does not fit its type, and stays usable', async () => {
      const { near, far } = await pair()
      await expect(near.send({ type: 'shipment-end', header: { key: -1 } } as Message)).rejects.toThrow(
        TypeError,
      )
      await near.send(message('shipment-end', { key: 1 }))
      expect(await collect(far, 1)).toEqual([message('shipment-end', { key: 1 })])
    })
  })
}

function resolvers<Value>(): { promise: Promise<Value>; resolve: (value: Value) => void } {
  let settle: ((value: Value) => void) | undefined
  const promise = new Promise<Value>((done) => (settle = done))
  return { promise, resolve: (value) => settle?.(value) }
}
