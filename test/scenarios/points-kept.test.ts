/** Locks, deletions and digests of recovery points, and an expiry that fails. */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type Engine, type EngineOptions, SecondsiteError } from '@secondsite/engine'
import { FaultyFileSystem } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { runHere } from './cli-command.js'
import { DISKS, expectShows, MINUTE_MS, NOON_MS, RecoveryPlace } from './recovery-oracle.js'
import { KIB } from './workplace.js'

/** A place whose replica cannot let go of anything for a while. */
class Stuck extends RecoveryPlace {
  isStuck = false

  override open(options: Partial<EngineOptions> = {}): Promise<Engine> {
    return super.open({
      ...options,
      step: (name) => {
        if (!this.isStuck || name !== 'expire.before-files') return
        throw new SecondsiteError('REPLICA_DISK_FULL', { message: 'no room', details: { path: 'undo' } })
      },
    })
  }
}

const HOURLY = { recoveryPoints: 2, recoveryPointIntervalSeconds: 3600 }

let place: Stuck

beforeEach(() => {
  place = new Stuck()
})

afterEach(() => place.end())

const numbers = async (): Promise<number[]> => (await place.replica.points()).map(({ number }) => number)

async function firstPoint(): Promise<number> {
  return (await place.replica.points())[0]?.number ?? 0
}

async function healthCodes(): Promise<string[]> {
  return (await place.machine.measure()).healthDetails.map(({ code }) => code)
}

/** A command line that must succeed, and what it prints. */
async function json(...args: string[]) {
  const { exitCode, objects, failures } = await runHere([...args, '--json'])
  expect([exitCode, failures]).toEqual([0, []])
  return objects[0] ?? {}
}

const exitCodeOf = async (...args: string[]): Promise<number> => (await runHere(args)).exitCode

describe('logs of which every write is kept', () => {
  it('stay, and a file that a death has left behind the row of its log goes', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } })
    await place.cycle(60)
    const history = place.path('replica/history')
    const kept = readdirSync(history)
    expect(kept.length).toBeGreaterThan(0)
    writeFileSync(`${history}/left-behind.hrl`, 'a log')
    await place.cycle(60)
    const files = readdirSync(history)
    expect(files).toEqual(expect.arrayContaining(kept))
    expect(files).not.toContain('left-behind.hrl')
  })

  it('leave the spool only when their new names are durable', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } })
    await place.cycle(60)
    const kept = readdirSync(place.path('replica/history')).length
    const files = new FaultyFileSystem()
    const rule = { path: place.path('replica/history'), operation: 'sync', error: 'EIO' } as const
    const failing = files.fail({ ...rule, times: 1 })
    try {
      place.clock.advance(60 * MINUTE_MS)
      await place.scribble(place.machine, 4)
      await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'IO_FAILED' })
      expect(failing.strikes).toBe(1)
    } finally {
      files.heal()
    }
    await place.cycle(60)
    expect(readdirSync(place.path('replica/history')).length).toBeGreaterThan(kept)
    place.expectEqual(DISKS)
  })
})

describe('a recovery point', () => {
  it('that is locked by hand is neither deleted nor expired, until it is unlocked', async () => {
    await place.begin(HOURLY)
    await place.cycle(60)
    const [number, folder] = [await firstPoint(), place.path('replica')]
    const day = new Date(Date.now() + 24 * 60 * MINUTE_MS).toISOString()
    expect(await json('points', 'lock', folder, String(number), '--until', day)).toEqual({
      point: number,
      lockedUntilMs: Date.parse(day),
    })
    await expect(place.replica.deletePoint(number)).rejects.toMatchObject({
      code: 'POINT_LOCKED',
      details: { points: [number], untilMs: Date.parse(day) },
    })
    for (let cycle = 0; cycle < 4; cycle += 1) await place.cycle(60)
    expect(await numbers()).toContain(number)
    expect(await exitCodeOf('points', 'unlock', folder, String(number))).toBe(3)
    expect(await exitCodeOf('points', 'unlock', folder, String(number), '--yes')).toBe(0)
    await place.cycle(60)
    expect(await numbers()).not.toContain(number)
  })

  it('is locked in the past by nobody, and a lock is never made shorter', async () => {
    await place.begin(HOURLY)
    await place.cycle(60)
    const number = await firstPoint()
    const now = place.clock.nowMs()
    await expect(place.replica.lockPoint(number, now)).rejects.toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    await expect(place.replica.lockPoint(4711, now + 1)).rejects.toMatchObject({ code: 'POINT_NOT_FOUND' })
    await expect(place.replica.unlockPoint(4711)).rejects.toMatchObject({ code: 'POINT_NOT_FOUND' })
    expect(await place.replica.lockPoint(number, now + 60 * MINUTE_MS)).toBe(now + 60 * MINUTE_MS)
    expect(await place.replica.lockPoint(number, now + MINUTE_MS)).toBe(now + 60 * MINUTE_MS)
  })

  it('is locked while it is the newest state, and is a point from then on', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 1, recoveryPointIntervalSeconds: 7200 })
    const moment = await place.cycle(60)
    const newest = (await place.replica.points()).at(-1)
    expect(newest?.isLatest).toBe(true)
    await place.replica.lockPoint(newest?.number ?? 0, NOON_MS + 1000 * MINUTE_MS)
    for (let cycle = 0; cycle < 6; cycle += 1) await place.cycle(60)
    expect(await numbers()).toContain(newest?.number)
    await using view = await place.replica.openView({ point: newest?.number ?? 0 })
    await expectShows(view, moment)
  })

  it('is locked while it is the newest state for as long as was asked, though the policy locks it for less', async () => {
    await place.begin({ ...HOURLY, retention: { lockHours: 1 } })
    await place.cycle(60)
    const number = (await place.replica.points()).at(-1)?.number ?? 0
    const untilMs = NOON_MS + 1000 * MINUTE_MS
    expect(await place.replica.lockPoint(number, untilMs)).toBe(untilMs)
    await place.cycle(60)
    const point = (await place.replica.points()).find((one) => one.number === number)
    expect(point).toMatchObject({ isLatest: false, lockedUntilMs: untilMs })
  })

  it('that is let go by others before it could be pinned is not shown as another one', async () => {
    await place.begin(HOURLY)
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    const [first] = await place.replica.points()
    const { recovery } = place.replica.context
    const { hold } = recovery
    vi.spyOn(recovery, 'hold').mockImplementation(async (number, holdMs) => {
      const held = await hold.call(recovery, number, holdMs)
      await recovery.removePoints([first?.number ?? 0])
      return held
    })
    const view = place.replica.openView({ point: first?.number ?? 0 })
    await expect(view).rejects.toMatchObject({ code: 'POINT_NOT_FOUND' })
    // What was refused reads nothing any more.
    expect(readdirSync(place.path('replica/undo/os.raw/pins'))).toEqual([])
  })

  it('that is deleted is gone at once, and the others show what they did', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 4 })
    for (let cycle = 0; cycle < 4; cycle += 1) await place.cycle(60)
    const [first, second, third] = await place.replica.points()
    const view = await place.replica.openView({ point: second?.number ?? 0 })
    await expect(place.replica.deletePoint(second?.number ?? 0)).rejects.toMatchObject({
      code: 'POINT_IN_USE',
    })
    await view.close()
    expect(await exitCodeOf('points', 'delete', place.path('replica'), String(second?.number), '--yes')).toBe(
      0,
    )
    expect(await numbers()).not.toContain(second?.number)
    await place.cycle(60)
    for (const one of [first, third]) {
      await using left = await place.replica.openView({ point: one?.number ?? 0 })
      await expectShows(left, place.momentAt(one?.cutTimeMs ?? 0))
    }
    const newest = (await place.replica.points()).at(-1)
    await expect(place.replica.deletePoint(newest?.number ?? 0)).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
  })

  it('that is the newest kept one may go while cycles go on', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 4, recoveryPointIntervalSeconds: 7200 })
    for (let cycle = 0; cycle < 5; cycle += 1) await place.cycle(60)
    const newestKept = (await place.replica.points()).at(-2)
    await place.replica.deletePoint(newestKept?.number ?? 0)
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    expect(await numbers()).not.toContain(newestKept?.number)
    for (const { number, cutTimeMs } of await place.replica.points()) {
      await using view = await place.replica.openView({ point: number })
      await expectShows(view, place.momentAt(cutTimeMs))
    }
    place.expectEqual(DISKS)
  })
})

describe('an expiry that fails', () => {
  it('stops nothing, and is an event and a reason of the health', async () => {
    await place.begin(HOURLY)
    place.isStuck = true
    await place.cycle(20)
    await place.cycle(20)
    place.isStuck = false
    await place.cycle(5)
    place.expectEqual(DISKS)
    const events = (await place.engine.events()).filter(({ id }) => id === 40061)
    expect(events).toMatchObject([{ level: 'warning', details: { code: 'REPLICA_DISK_FULL', path: 'undo' } }])
    expect(await healthCodes()).toContain('EXPIRY_FAILED')
    expect((await json('points', place.path('replica')))['notices']).toMatchObject([
      { code: 'EXPIRY_FAILED' },
    ])
    await place.machine.resetStatistics()
    await place.cycle(5)
    expect((await place.engine.events()).filter(({ id }) => id === 40061)).toHaveLength(1)
    expect(await healthCodes()).not.toContain('EXPIRY_FAILED')
  })

  it('with the newest point let go of hinders no cycle, and the point before shows what it did', async () => {
    await place.begin(HOURLY)
    await place.cycle(60)
    await place.cycle(10)
    // Its view makes a point of the newest state, which goes when nobody reads it any more.
    await (await place.replica.openView()).close()
    await place.cycle(4)
    place.isStuck = true
    await place.cycle(4)
    for (let cycle = 0; cycle < 2; cycle += 1) await place.cycle(4)
    place.isStuck = false
    await place.cycle(4)
    place.expectEqual(DISKS)
    const points = await place.replica.points()
    expect(points.length).toBeGreaterThan(2)
    for (const { number, cutTimeMs } of points) {
      await using view = await place.replica.openView({ point: number })
      await expectShows(view, place.momentAt(cutTimeMs))
    }
  })
})

/** The digest of a point, and how much of the disks had to be read for it. */
async function digested(number: number): Promise<{ digest: string; readBytes: number }> {
  const read = new Map<string, number>()
  const onProgress = ({ disk, readBytes }: { disk: string; readBytes: number }): void =>
    void read.set(disk, readBytes)
  const digest = await place.replica.digestPoint({ point: number }, { onProgress })
  return { digest, readBytes: [...read.values()].reduce((total, bytes) => total + bytes, 0) }
}

describe('the digest of a point', () => {
  it('is stored, is that of the bytes, and the next one costs what was changed', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 8 })
    for (let cycle = 0; cycle < 2; cycle += 1) await place.cycle(60)
    await place.machine.disks[0]?.write(128 * KIB, place.random.bytes(4 * KIB))
    await place.cycle(60, 0)
    await place.cycle(60, 0)
    const [, , before, after] = await place.replica.points()
    const first = await digested(before?.number ?? 0)
    expect(first.readBytes).toBe(3 * 1024 * KIB)
    const second = await digested(after?.number ?? 0)
    expect(second.readBytes).toBe(64 * KIB)
    expect(second.digest).not.toBe(first.digest)
    // The same bytes, by a whole pass.
    writeFileSync(place.path('replica/digests/os.raw.digests'), 'cut off')
    await place.replica.deletePoint(before?.number ?? 0)
    const stored = (await place.replica.points()).find(({ number }) => number === after?.number)
    expect(stored?.digest).toBe(second.digest)
    const { digest } = await json(
      'points',
      'digest',
      place.path('replica'),
      String((await place.replica.points())[0]?.number),
    )
    expect(digest).toMatch(/^[0-9a-f]{64}$/)
    expect((await digested(after?.number ?? 0)).readBytes).toBe(0)
  })

  it('equals that of a whole pass, whatever was changed between', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 8 })
    for (let cycle = 0; cycle < 4; cycle += 1) await place.cycle(60)
    const points = (await place.replica.points()).slice(0, 4)
    const byTable: string[] = []
    for (const index of [1, 3, 0, 2]) byTable[index] = (await digested(points[index]?.number ?? 0)).digest
    for (const [index, { number }] of points.entries()) {
      const to = place.path(`out-${index}`)
      await place.replica.restore({ point: number }, { directory: to, verify: true })
      expect((await place.replica.points())[index]?.digest).toBe(byTable[index])
    }
    expect(new Set(byTable).size).toBe(4)
  })

  it('finds at a restore what has changed in the replica since', async () => {
    await place.begin(HOURLY)
    await place.cycle(60, 0)
    await place.cycle(60, 0)
    const number = await firstPoint()
    await place.replica.digestPoint({ point: number })
    const image = readFileSync(place.path('replica/data.raw.raw'))
    const at = image.findLastIndex((byte) => byte !== 0)
    image[at] = (image[at] ?? 0) ^ 1
    writeFileSync(place.path('replica/data.raw.raw'), image)
    const folder = place.path('replica')
    const args = ['restore', folder, '--point', String(number), '--to', place.path('out'), '--verify']
    const { exitCode, failures } = await runHere(args)
    expect([exitCode, failures.map(({ code }) => code)]).toEqual([1, ['DIGEST_MISMATCH']])
  })
})
