import { describe, expect, it } from 'vitest'
import { systemClock } from './clock.js'
import { SeededRandom, systemRandom } from './random.js'
import { ManualClock } from './testing/manual-clock.js'

describe('ManualClock', () => {
  it('fires what is due in order of time, then of setting, each at its own instant', async () => {
    const clock = new ManualClock(0)
    const fired: [string, number][] = []
    for (const [name, ms] of [
      ['late', 20],
      ['early', 10],
      ['early too', 10],
      ['never', 31],
    ] as const) {
      clock.setTimer(ms, () => fired.push([name, clock.nowMs()]))
    }
    await clock.advance(30)
    expect(fired).toEqual([
      ['early', 10],
      ['early too', 10],
      ['late', 20],
    ])
    expect([clock.nowMs(), clock.nowNs(), clock.pendingCount, clock.nextDueMs]).toEqual([
      30,
      30_000_000n,
      1,
      31,
    ])
  })

  it('lets a loop sleep again and again within one advance', async () => {
    const clock = new ManualClock(0)
    const seen: number[] = []
    const loop = (async () => {
      for (let round = 0; round < 3; round += 1) {
        await clock.sleep(10)
        seen.push(clock.nowMs())
      }
    })()
    await clock.advance(100)
    await loop
    expect(seen).toEqual([10, 20, 30])
  })

  it('forgets a cancelled timer and an aborted sleep', async () => {
    const clock = new ManualClock(0)
    const control = new AbortController()
    let fired = false
    const cancel = clock.setTimer(5, () => {
      fired = true
    })
    const sleep = clock.sleep(5, control.signal)
    cancel()
    control.abort()
    await expect(sleep).rejects.toMatchObject({ code: 'ABORTED' })
    await clock.advance(10)
    expect([fired, clock.pendingCount]).toEqual([false, 0])
    await expect(clock.sleep(5, control.signal)).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

describe('systemClock', () => {
  it('sleeps, aborts a sleep, and tells the same time twice', async () => {
    await systemClock.sleep(1)
    await expect(systemClock.sleep(60_000, AbortSignal.timeout(5))).rejects.toMatchObject({ code: 'ABORTED' })
    expect(Number(systemClock.nowNs() / 1_000_000n) - Date.now()).toBeLessThanOrEqual(0)
  })

  it('does not fire a timer of 60 days at once', async () => {
    let fired = false
    const cancel = systemClock.setTimer(60 * 86_400_000, () => {
      fired = true
    })
    await systemClock.sleep(20)
    cancel()
    expect(fired).toBe(false)
  })
})

function draw(seed: number): number[] {
  const random = new SeededRandom(seed)
  return Array.from({ length: 8 }, () => random.uint32())
}

describe('SeededRandom', () => {
  it('repeats itself for a seed and differs for another', () => {
    expect(draw(1)).toEqual(draw(1))
    expect(draw(1)).not.toEqual(draw(2))
  })

  it('is spread evenly', () => {
    const seed = 7
    const random = new SeededRandom(seed)
    const buckets = Array.from({ length: 16 }, () => 0)
    for (let round = 0; round < 16_000; round += 1) {
      const index = random.below(16)
      buckets[index] = (buckets[index] ?? 0) + 1
    }
    // 1000 expected each, standard deviation 31: five of them leave no room for chance.
    expect(
      buckets.every((hits) => hits > 845 && hits < 1155),
      `seed ${seed}: ${buckets}`,
    ).toBe(true)
  })

  it.each([new SeededRandom(3), systemRandom])('gives bytes of their own and version 4 UUIDs', (random) => {
    const bytes = random.bytes(13)
    expect([bytes.length, bytes.buffer.byteLength]).toEqual([13, 13])
    expect(random.uuid()).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    expect(random.unit()).toBeLessThan(1)
  })
})
