/** Nobody knows whether a machine comes up at the other site until it was tried: the reminder of a test failover. */

import { type Clock, type Engine, openReplica, type ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MIB, Workplace } from './workplace.js'

const DAY_MS = 24 * 3_600_000
const DUE = 'TEST_FAILOVER_DUE'
const DUE_EVENT = 40_050

/** A clock that jumps: what would have come due often meanwhile comes once. */
class JumpingClock implements Clock {
  #nowMs = Date.UTC(2026, 0, 1)
  readonly #timers = new Set<{ readonly dueMs: number; readonly callback: () => void }>()

  nowMs(): number {
    return this.#nowMs
  }

  nowNs(): bigint {
    return BigInt(this.#nowMs) * 1_000_000n
  }

  async sleep(durationMs: number): Promise<void> {
    this.#nowMs += durationMs
  }

  setTimer(durationMs: number, callback: () => void): () => void {
    const timer = { dueMs: this.#nowMs + durationMs, callback }
    this.#timers.add(timer)
    return () => void this.#timers.delete(timer)
  }

  /** Lets days pass; resolves when all that came due has set itself anew. */
  async jump(days: number): Promise<void> {
    this.#nowMs += days * DAY_MS
    const due = [...this.#timers].filter(({ dueMs }) => dueMs <= this.#nowMs)
    const before = this.#timers.size
    for (const timer of due) {
      this.#timers.delete(timer)
      timer.callback()
    }
    await expect.poll(() => this.#timers.size, { timeout: 20_000 }).toBe(before)
  }
}

let place: Workplace
let clock: JumpingClock
let engine: Engine
let machine: ProtectedMachine

beforeEach(async () => {
  place = new Workplace()
  clock = new JumpingClock()
  engine = await place.open({ clock })
  machine = await place.enable(engine, [place.makeDisk('os.raw', MIB)])
  await machine.startInitialReplication()
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

const dueCount = async (): Promise<number> =>
  (await engine.events()).filter(({ id }) => id === DUE_EVENT).length
const codes = async (): Promise<string[]> => (await machine.measure()).healthDetails.map(({ code }) => code)

async function test(): Promise<void> {
  await using replica = await openReplica({ directory: place.path('replica'), clock })
  await (await replica.startTestFailover()).stop()
}

describe('the reminder of a test failover', () => {
  it('comes after half a year without one, once, also when the process is another one', async () => {
    await clock.jump(179)
    expect([await codes(), await dueCount()]).toEqual([expect.not.arrayContaining([DUE]), 0])
    await clock.jump(1)
    expect(await codes()).toContain(DUE)
    expect(await dueCount()).toBe(1)
    await clock.jump(100)
    expect(await dueCount()).toBe(1)
    await engine.close()
    engine = await place.open({ clock })
    machine = engine.machine('web01')
    await clock.jump(1)
    expect(await dueCount()).toBe(1)
    await clock.jump(80)
    expect(await dueCount()).toBe(2)
  })

  it('goes with the test, and begins anew with it', async () => {
    await clock.jump(200)
    expect(await codes()).toContain(DUE)
    const testedMs = clock.nowMs()
    await test()
    await machine.replicate()
    const measured = await machine.measure()
    expect(measured.lastTestFailoverMs).toBe(testedMs)
    expect(measured.healthDetails.map(({ code }) => code)).not.toContain(DUE)
    await clock.jump(180)
    expect(await codes()).toContain(DUE)
    expect(await dueCount()).toBe(2)
  })

  it('does not come where the policy wants none', async () => {
    await machine.configure({ testFailoverReminderDays: 0 })
    await clock.jump(1000)
    expect([await codes(), await dueCount()]).toEqual([expect.not.arrayContaining([DUE]), 0])
  })
})
