import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Engine, ProtectedMachine } from '@secondsite/engine'
import { FaultyTransport, ManualClock, SeededRandom } from '@secondsite/engine/testing'
import { relayTo } from './relay.js'
import { MIB, Workplace } from './workplace.js'

const MINUTE_MS = 60_000

let place: Workplace
let clock: ManualClock
let engine: Engine | undefined
let transport: FaultyTransport | undefined

beforeEach(() => {
  place = new Workplace()
  clock = new ManualClock(Date.UTC(2026, 10, 21, 10))
})

afterEach(async () => {
  await engine?.close()
  engine = undefined
  place.remove()
})

async function open(): Promise<Engine> {
  engine = await place.open({
    clock,
    wrapTransport: (inner) => {
      transport = new FaultyTransport({ serve: relayTo(inner), random: new SeededRandom(1) })
      return transport
    },
  })
  return engine
}

async function replicating(): Promise<ProtectedMachine> {
  const opened = await open()
  const policy = { autoResynchronize: { timeZone: 'UTC' }, replicationFrequencySeconds: 60 }
  const machine = await place.enable(opened, [place.makeDisk('os.raw', 2 * MIB)], policy)
  await machine.startInitialReplication()
  return machine
}

async function eventIds(): Promise<number[]> {
  return ((await engine?.events()) ?? []).map((event) => event.id)
}

describe('events', () => {
  it('tell the life of a machine, by the numbers of the original where it has one', async () => {
    const told: number[] = []
    engine = await place.open({ onEvent: (event) => told.push(event.id) })
    const machine = await place.enable(engine, [place.makeDisk('os.raw', 2 * MIB)])
    await machine.startInitialReplication()
    await machine.suspend()
    await machine.resume()
    await machine.resynchronize()
    const ids = [40001, 40002, 40003, 40005, 40006, 29242, 29244]
    expect(await eventIds()).toEqual(ids)
    expect(told).toEqual(ids)
    const [finished] = (await engine.events({ machine: 'web01' })).slice(-1)
    expect(finished).toMatchObject({
      details: { reason: 'ASKED_FOR', comparedBytes: 2 * MIB, differentBytes: 0 },
    })
    await machine.disable()
    expect((await eventIds()).at(-1)).toBe(40009)
  })

  it('of the past are there after a restart, and the death of a process is one', async () => {
    const machine = await replicating()
    await place.scribble(machine, 1)
    await engine?.abandon()
    await open()
    expect(await eventIds()).toEqual([40001, 40002, 40003, 40014])
  })
})

describe('a failure that passes', () => {
  it('is tried again by the table of the model, also over a restart, and told once it is over', async () => {
    let machine = await replicating()
    if (transport) transport.faults = { refusedConnects: 1e9 }
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'TRANSPORT_FAILED' })
    const firstMs = clock.nowMs() + MINUTE_MS
    expect(await machine.measure()).toMatchObject({
      health: 'Critical',
      retry: { attempt: 1, atMs: firstMs },
    })

    await engine?.close()
    machine = (await open()).machine('web01')
    expect((await machine.measure()).retry).toEqual({ attempt: 1, atMs: firstMs })
    if (transport) transport.faults = { refusedConnects: 1e9 }
    await clock.advance(MINUTE_MS)
    await expect
      .poll(async () => (await machine.measure()).retry)
      .toEqual({ attempt: 2, atMs: firstMs + 2 * MINUTE_MS })

    if (transport) transport.faults = {}
    await clock.advance(2 * MINUTE_MS)
    await expect.poll(async () => (await machine.measure()).lastError).toBeNull()
    expect((await machine.measure()).retry).toBeNull()
    expect((await eventIds()).filter((id) => id > 40009)).toEqual([40011, 40011, 40012])
  })
})

describe('statistics', () => {
  it('count what was sent and missed, survive a restart, and begin anew with the interval', async () => {
    let machine = await replicating()
    await place.scribble(machine, 4)
    await machine.replicate()
    await clock.advance(5 * MINUTE_MS - 1)
    await expect
      .poll(async () => (await machine.measure()).counters.replicationSuccessCount)
      .toBeGreaterThan(1)
    await machine.suspend()
    const before = (await machine.measure()).counters
    expect(before.replicationSizeBytes).toBeGreaterThan(0)

    await engine?.close()
    machine = (await open()).machine('web01')
    expect((await machine.measure()).counters).toEqual(before)

    await clock.advance(11 * 60 * MINUTE_MS)
    await expect.poll(eventIds).toContain(29174)
    const interval = (await engine?.events())?.find((event) => event.id === 29174)
    expect(interval?.details).toMatchObject({
      ...before,
      endStatisticTimeMs: Date.UTC(2026, 10, 21, 21),
    })
    expect((await machine.measure()).counters).toMatchObject({
      replicationSuccessCount: 0,
      replicationSizeBytes: 0,
    })
  })

  it('know how the loss in time was spread, and what a failover now would lose', async () => {
    const machine = await replicating()
    await clock.advance(10_000)
    await machine.replicate()
    await clock.advance(30_000)
    await machine.replicate()
    await clock.advance(5000)
    const { rpo, lossMs } = await machine.measure()
    expect(lossMs).toBe(5000)
    expect(rpo.sampleCount).toBe(2)
    expect(rpo.p50Ms).toBeGreaterThanOrEqual(10_000)
    expect(rpo.p50Ms).toBeLessThanOrEqual(11_000)
    expect(rpo.p99Ms).toBeGreaterThanOrEqual(30_000)
    expect(rpo.p99Ms).toBeLessThanOrEqual(33_000)
  })

  it('count cycles that came due while the replica could not be reached as missed', async () => {
    const machine = await replicating()
    await machine.replicate()
    if (transport) transport.faults = { refusedConnects: 1e9 }
    await clock.advance(5 * MINUTE_MS)
    // An attempt that is still under way would succeed as one that began in time.
    const nextAttemptMs = async (): Promise<number> => (await machine.measure()).retry?.atMs ?? 0
    await expect.poll(nextAttemptMs, { timeout: 60_000 }).toBeGreaterThan(clock.nowMs())
    if (transport) transport.faults = {}
    await machine.replicate()
    expect((await machine.measure()).counters.replicationMissCount).toBe(4)
  })

  it('make a pause a warning that is told once', async () => {
    const machine = await replicating()
    await machine.suspend()
    await clock.advance(20_000)
    await expect.poll(eventIds).toContain(32315)
    expect((await eventIds()).filter((id) => id === 32315)).toHaveLength(1)
  })
})
