/**
 * Recovery points of a machine: each shows, byte for byte, what the disks held at its cut, whatever came after it.
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { systemClock } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { DISKS, expectShows, MINUTE_MS, type Moment, NOON_MS, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

const HOURLY = { recoveryPoints: 3, recoveryPointIntervalSeconds: 3600 }

let place: RecoveryPlace

beforeEach(() => {
  place = new RecoveryPlace()
})

afterEach(() => place.end())

const minutesOf = async (): Promise<number[]> =>
  (await place.replica.points()).map(({ cutTimeMs }) => (cutTimeMs - NOON_MS) / MINUTE_MS)

async function expectEveryPoint(): Promise<void> {
  for (const { number, cutTimeMs } of await place.replica.points()) {
    await using view = await place.replica.openView({ point: number })
    await expectShows(view, place.momentAt(cutTimeMs))
  }
}

async function expectEveryMoment(moments: readonly Moment[]): Promise<void> {
  for (const moment of moments) {
    await using view = await place.replica.openView({ timeMs: moment.timeMs })
    await expectShows(view, moment)
  }
  if (moments.length > 0) expect(readdirSync(place.path('replica/views'))).toEqual([])
}

describe('recovery points', () => {
  it('are made as far apart as the policy says, and show what the disks held', async () => {
    await place.begin(HOURLY)
    for (let cycle = 0; cycle < 9; cycle += 1) await place.cycle(30)
    // The first one is the end of the initial replication; the last one is the present state.
    expect(await minutesOf()).toEqual([120, 180, 240, 270])
    await expectEveryPoint()
    place.expectEqual(DISKS)
  })

  it('are not there when nobody asks for them, and nothing is saved', async () => {
    await place.begin({})
    await place.cycle(60)
    await place.cycle(60)
    const points = await place.replica.points()
    expect(points.map(({ isLatest, cutTimeMs }) => [isLatest, cutTimeMs])).toEqual([
      [true, NOON_MS + 120 * MINUTE_MS],
    ])
    expect(existsSync(place.path('replica/undo/os.raw'))).toBe(false)
  })

  it('cost what was overwritten once, however many cycles there were', async () => {
    await place.begin(HOURLY)
    const block = place.random.bytes(64 * KIB)
    for (let cycle = 0; cycle < 20; cycle += 1) {
      await place.machine.disks[0]?.write(0, place.random.bytes(64 * KIB))
      await place.machine.disks[0]?.write(MIB, block)
      place.clock.advance(MINUTE_MS)
      await place.machine.replicate()
    }
    const [first] = await place.replica.points()
    expect(first?.undoBytes).toBeGreaterThan(64 * KIB)
    expect(first?.undoBytes).toBeLessThan(128 * KIB)
  })

  it('thin out by the hour and the day', async () => {
    const retention = { hourly: 2, daily: 1 }
    await place.begin({ recoveryPoints: 1, recoveryPointIntervalSeconds: 600, retention })
    for (let cycle = 0; cycle < 14; cycle += 1) await place.cycle(15, 4)
    // Cuts every 15 minutes until 15:30. Newest point 15:15; newest of the hours 15 and 14; of the day: 15:15.
    expect(await minutesOf()).toEqual([165, 195, 210])
    await expectEveryPoint()
  })

  it('that are viewed stay, and show the same while cycles go on', async () => {
    await place.begin(HOURLY)
    const moment = await place.cycle(60)
    const view = await place.replica.openView('LatestProcessed')
    for (let cycle = 0; cycle < 6; cycle += 1) {
      await place.cycle(60)
      await expectShows(view, moment)
    }
    expect(await minutesOf()).toContain(60)
    await view.close()
    place.clock.advance(10 * MINUTE_MS)
    await place.cycle(60)
    expect(await minutesOf()).not.toContain(60)
    await expectEveryPoint()
  })

  it('survive a resynchronization, during which the newest one stays available', async () => {
    await place.begin(HOURLY)
    await place.cycle(60)
    await place.cycle(60)
    const before = place.moments.at(-1)
    for (const disk of place.machine.disks) await disk.requireResync('ASKED_FOR', true)
    place.clock.advance(MINUTE_MS)
    await place.scribble(place.machine, 20)
    await place.machine.resynchronize()
    place.remember()
    await using view = await place.replica.openView({ timeMs: before?.timeMs ?? 0 })
    await expectShows(view, before!)
    await expectEveryPoint()
  })

  it('that a lock holds are removed by nothing before its time', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 1 })
    await place.cycle(60)
    const [first] = await place.replica.points()
    await place.replica.lockPoint(first?.number ?? 0, NOON_MS + 300 * MINUTE_MS)
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    expect(await minutesOf()).toEqual([0, 180, 240])
    await place.cycle(60)
    expect(await minutesOf()).toEqual([240, 300])
  })

  it('that are locked while they are the present state are listed, and stay', async () => {
    await place.begin({ ...HOURLY, recoveryPoints: 1, recoveryPointIntervalSeconds: 24 * 3600 })
    await place.cycle(60)
    const latest = (await place.replica.points()).at(-1)
    const untilMs = NOON_MS + 300 * MINUTE_MS
    await place.replica.lockPoint(latest?.number ?? 0, untilMs)
    expect((await place.replica.points()).at(-1)).toMatchObject({ isLatest: true, lockedUntilMs: untilMs })
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    expect(await minutesOf()).toEqual([60, 240])
    await expectEveryPoint()
  })

  it('older than a damaged undo log say so, and the rest is shown', async () => {
    await place.begin(HOURLY)
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    const points = await place.replica.points()
    const middle = points[1]?.number ?? 0
    const folder = place.path('replica/undo/os.raw')
    const file = readdirSync(folder).find(
      (name) => name.endsWith('.hrl') && name.startsWith(String(middle).padStart(12, '0')),
    )
    const path = join(folder, file ?? '')
    const content = readFileSync(path)
    content.fill(0xff, 0, 4096)
    writeFileSync(path, content)
    const after = await place.replica.points()
    expect(after.map(({ damage }) => damage?.disk ?? null)).toEqual(['os.raw', 'os.raw', null, null])
    expect(after[0]?.damage?.path).toBe(path)
    await expect(place.replica.openView({ point: middle })).rejects.toMatchObject({ code: 'UNDO_DAMAGED' })
    for (const { number, cutTimeMs } of after.slice(2)) {
      await using view = await place.replica.openView({ point: number })
      await expectShows(view, place.momentAt(cutTimeMs))
    }
  })

  it('that are not there are refused with those that are', async () => {
    await place.begin(HOURLY)
    await expect(place.replica.openView({ point: 4711 })).rejects.toMatchObject({
      code: 'POINT_NOT_FOUND',
      details: { choice: '4711' },
    })
    await expect(place.replica.openView({ timeMs: NOON_MS - 1 })).rejects.toMatchObject({
      code: 'POINT_NOT_FOUND',
    })
    await expect(place.replica.openView('LatestApplicationConsistent')).rejects.toMatchObject({
      code: 'POINT_NOT_FOUND',
    })
  })

  it('are written out as files, sparse as the disks, and never over one that is there', async () => {
    await place.begin(HOURLY)
    const moment = await place.cycle(60)
    await place.cycle(60)
    const restored = await place.replica.restore({ timeMs: moment.timeMs }, { directory: place.path('out') })
    expect(restored.map(({ name }) => name).toSorted()).toEqual([...DISKS].toSorted())
    for (const { name, path } of restored)
      expect(readFileSync(path).equals(moment.disks.get(name)!)).toBe(true)
    await expect(
      place.replica.restore({ timeMs: moment.timeMs }, { directory: place.path('out') }),
    ).rejects.toMatchObject({ code: 'PATH_EXISTS' })
    expect(statSync(restored[0]?.path ?? '').blocks * 512).toBeLessThan(2 * MIB)
  })

  it('tell what was overwritten between two of them', async () => {
    await place.begin(HOURLY)
    const from = await place.cycle(60, 1)
    await place.machine.disks[0]?.write(128 * KIB, place.random.bytes(4 * KIB))
    await place.machine.disks[0]?.write(512 * KIB, place.random.bytes(8 * KIB))
    await place.cycle(60, 0)
    const differences = await place.replica.diff({ timeMs: from.timeMs })
    expect(differences.find(({ disk }) => disk === 'os.raw')?.ranges).toEqual([
      { offset: 128 * KIB, lengthBytes: 4 * KIB },
      { offset: 512 * KIB, lengthBytes: 8 * KIB },
    ])
    expect(differences.find(({ disk }) => disk === 'data.raw')?.changedBytes).toBe(0)
  })
})

describe('every write that is kept', () => {
  it('can be gone back to, exactly, by its time', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } }, systemClock)
    const moments: Moment[] = []
    for (let cycle = 0; cycle < 3; cycle += 1) {
      for (let write = 0; write < 4; write += 1) {
        await place.scribble(place.machine, 1)
        await setTimeout(2)
        moments.push(place.remember())
        await setTimeout(2)
      }
      await place.machine.replicate()
    }
    const span = await place.replica.keptSpan()
    expect(span?.gaps).toEqual([])
    await expectEveryMoment(moments)
  })

  it('can be gone back to where a cycle brought several logs of a disk', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } }, systemClock)
    const moments: Moment[] = []
    for (let log = 0; log < 6; log += 1) {
      await place.machine.disks[0]?.write(0, place.random.bytes(4 * KIB))
      await setTimeout(2)
      moments.push(place.remember())
      await setTimeout(2)
      await place.machine.sealLogs()
    }
    await place.machine.replicate()
    await expectEveryMoment(moments)
  })

  it('is given up by whole cycles where they may take so many bytes', async () => {
    const keepEveryWrite = { hours: 24, bytesMax: 96 * KIB }
    await place.begin({ recoveryPoints: 2, keepEveryWrite }, systemClock)
    const moments: Moment[] = []
    for (let cycle = 0; cycle < 6; cycle += 1) {
      for (const disk of place.machine.disks) await disk.write(0, place.random.bytes(4 * KIB))
      await setTimeout(2)
      moments.push(place.remember())
      await setTimeout(2)
      // A planned cut always becomes a point.
      await place.machine.prepareFailover({ verify: false })
      await place.machine.cancelFailover()
      await place.engine.settled()
      const { fromMs = Infinity } = (await place.replica.keptSpan()) ?? {}
      await expectEveryMoment(moments.filter(({ timeMs }) => timeMs > fromMs))
    }
    expect(readdirSync(place.path('replica/history')).length).toBeLessThan(6 * 2 * 2)
  })

  it('is not shown without those before it, where others let go of them meanwhile', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } }, systemClock)
    for (let cycle = 0; cycle < 2; cycle += 1) {
      await place.scribble(place.machine, 4)
      await setTimeout(2)
      place.remember()
      await setTimeout(2)
      await place.machine.replicate()
    }
    const { recovery } = place.replica.context
    const { hold } = recovery
    vi.spyOn(recovery, 'hold').mockImplementation(async (number, holdMs) => {
      const logs = await recovery.keptLogs()
      const oldest = logs.filter(({ cycleNumber }) => cycleNumber === logs[0]?.cycleNumber)
      await recovery.removeKeptLogs(oldest.map(({ logId }) => logId))
      return hold.call(recovery, number, holdMs)
    })
    const timeMs = place.moments.at(-1)?.timeMs ?? 0
    await expect(place.replica.openView({ timeMs })).rejects.toMatchObject({ code: 'POINT_NOT_FOUND' })
    expect(readdirSync(place.path('replica/views'))).toEqual([])
  })

  it('can be written out as files, and what a death left of a view goes', async () => {
    await place.begin({ ...HOURLY, keepEveryWrite: { hours: 24 } }, systemClock)
    await place.scribble(place.machine, 4)
    await setTimeout(2)
    const moment = place.remember()
    await setTimeout(2)
    await place.scribble(place.machine, 4)
    await place.machine.replicate()
    mkdirSync(place.path('replica/views/left/os.raw'), { recursive: true })
    writeFileSync(place.path('replica/views/left.lock'), '')
    const restored = await place.replica.restore({ timeMs: moment.timeMs }, { directory: place.path('out') })
    expect(restored.map(({ name }) => name).toSorted()).toEqual([...DISKS].toSorted())
    for (const { name, path } of restored)
      expect(readFileSync(path).equals(moment.disks.get(name)!), name).toBe(true)
    expect(readdirSync(place.path('replica/views'))).toEqual([])
  })
})
