/**
 * The moment just before a damage: found by what was written around it, and gone back to, by its time or by its number.
 */

import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import {
  type Engine,
  type EngineOptions,
  SecondsiteError,
  systemClock,
  type WriteMoment,
  type WritesAround,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { runHere } from './cli-command.js'
import { DISKS, expectShows, type Moment, RecoveryPlace } from './recovery-oracle.js'
import { KIB } from './workplace.js'

/** A place whose replica cannot be reached for a while. */
class Breakable extends RecoveryPlace {
  isBroken = false

  override open(options: Partial<EngineOptions> = {}): Promise<Engine> {
    return super.open({
      ...options,
      wrapTransport: (inner) => ({
        connect: (signal) => {
          if (this.isBroken) throw new SecondsiteError('TRANSPORT_FAILED', { message: 'the link is cut' })
          return inner.connect(signal)
        },
      }),
    })
  }
}

const EVERY_WRITE = { recoveryPoints: 3, recoveryPointIntervalSeconds: 3600, keepEveryWrite: { hours: 24 } }

let place: Breakable

beforeEach(() => {
  place = new Breakable()
})

afterEach(() => place.end())

/** Writes once on a disk; what the disks hold then. */
async function writeOn(disk: number, offset: number, lengthBytes: number): Promise<Moment> {
  await place.machine.disks[disk]?.write(offset, place.random.bytes(lengthBytes))
  // Moments are remembered by the millisecond: it must begin behind the write.
  await setTimeout(2)
  return place.remember()
}

async function aroundOf(...args: string[]): Promise<{ exitCode: number; around: Around }> {
  const { exitCode, objects, failures } = await runHere([...args, '--json'])
  expect(failures).toEqual([])
  return { exitCode, around: objects[0]?.['around'] as Around }
}

type Around = WritesAround & { readonly moments: readonly Named[] }

interface Named extends WriteMoment {
  readonly at: string
  readonly write: string
}

function expectRestored(folder: string, moment: Moment): void {
  for (const name of DISKS)
    expect(readFileSync(`${folder}/${name}`).equals(moment.disks.get(name)!), `${name} in ${folder}`).toBe(
      true,
    )
}

describe('the writes around a time', () => {
  it('show the damage, and restore brings back the moment before it, byte for byte', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    for (let count = 0; count < 6; count += 1) await place.scribble(place.machine, 1)
    const before = place.remember()
    const after = await writeOn(0, 0, 64 * KIB)
    for (let count = 0; count < 4; count += 1) await place.scribble(place.machine, 1, 4 * KIB)
    await place.machine.replicate()
    const folder = place.path('replica')
    const time = new Date(after.timeMs).toISOString()
    const { exitCode, around } = await aroundOf(
      'points',
      folder,
      '--around',
      time,
      '--span',
      '1m',
      '--writes',
      '20',
    )
    expect([exitCode, around.inexactReason, around.moments.length]).toEqual([0, null, 11])
    expect(around.intervals.reduce((total, { writeCount }) => total + writeCount, 0)).toBe(11)
    const damage = around.moments.findIndex(
      ({ offset, lengthBytes }) => offset === 0 && lengthBytes === 64 * KIB,
    )
    const [last, first] = [around.moments[damage - 1]!, around.moments[damage]!]
    const restored = async (option: string, name: string, to: string, ...more: string[]): Promise<string> => {
      const args = ['restore', folder, option, name, '--to', place.path(to), ...more]
      const { exitCode, failures } = await runHere(args)
      expect([exitCode, failures]).toEqual([0, []])
      return place.path(to)
    }
    expectRestored(await restored('--at', last.at, 'by-time', '--verify'), before)
    expectRestored(await restored('--point', last.at, 'by-point'), before)
    expectRestored(await restored('--sequence', last.write, 'by-number'), before)
    expectRestored(await restored('--sequence', first.write, 'behind-it'), after)
  })

  it('name every state there was, by the number of each write', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    const moments: Moment[] = []
    for (let cycle = 0; cycle < 3; cycle += 1) {
      for (let count = 0; count < 5; count += 1) {
        await place.scribble(place.machine, 1)
        moments.push(place.remember())
      }
      await place.machine.replicate()
    }
    const found = await place.replica.around(Date.now(), { writesEachSide: 1000 })
    expect(found.moments).toHaveLength(moments.length)
    for (const [index, { sequence, disk }] of found.moments.entries()) {
      await using view = await place.replica.openView({ sequence, disk })
      await expectShows(view, moments[index]!)
    }
  })

  it('lead a test failover and a failover to the same state, also one that is taken up again', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    const before = await writeOn(1, 0, 8 * KIB)
    await writeOn(0, 0, 8 * KIB)
    await place.machine.replicate()
    const { moments } = await place.replica.around(before.timeMs)
    const { sequence, disk } = moments.find((one) => one.disk === 'data.raw' && one.offset === 0)!
    const test = await place.replica.startTestFailover({ point: { sequence, disk } })
    await expectShows(test, before)
    await test.stop()
    await place.replica.startFailover({ point: { sequence, disk }, fencePrimary: true })
    await place.replica.close()
    place.replica = await place.openReplica()
    const failover = await place.replica.failover()
    await expectShows({ disks: failover!.layers }, before)
  })

  it('are gone through in their order, also where one cycle brought several logs of a disk', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    const moments: Moment[] = []
    for (let log = 0; log < 6; log += 1) {
      moments.push(await writeOn(0, 0, 8 * KIB))
      await place.machine.sealLogs()
      await setTimeout(2)
    }
    await place.machine.replicate()
    for (const moment of moments) {
      await using view = await place.replica.openView({ timeMs: moment.timeMs })
      await expectShows(view, moment)
    }
    const { moments: found } = await place.replica.around(Date.now())
    for (const [index, { sequence, disk }] of found.entries()) {
      await using view = await place.replica.openView({ sequence, disk })
      await expectShows(view, moments[index]!)
    }
  })

  it('are what the commands of failover take', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    const moment = await writeOn(0, 0, 8 * KIB)
    await writeOn(0, 0, 8 * KIB)
    await place.machine.replicate()
    const folder = place.path('replica')
    const { around } = await aroundOf('points', folder, '--around', new Date(moment.timeMs).toISOString())
    const first = around.moments[0]!
    const socket = ['--nbd', `unix:${place.path('web01.sock')}`]
    for (const named of [
      ['--at', first.at],
      ['--sequence', first.write],
    ]) {
      const { exitCode, objects } = await runHere([
        'failover',
        'start',
        folder,
        ...socket,
        ...named,
        '--json',
      ])
      // Only said, not done: what it would begin with.
      const timeMs = Math.floor(Number(BigInt(first.timeNs) / 1_000_000n))
      expect([exitCode, objects[0]]).toMatchObject([3, { outlook: { pointTimeMs: timeMs } }])
    }
    const both = ['failover', 'start', folder, ...socket, '--at', first.at, '--sequence', first.write]
    expect((await runHere(both)).exitCode).toBe(2)
  })

  it('are refused by number where nobody knows which is meant, or it is not kept', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    await writeOn(0, 0, 4 * KIB)
    await place.machine.replicate()
    await expect(place.replica.openView({ sequence: 1 })).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    await expect(place.replica.openView({ sequence: 1, disk: 'swap' })).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    await expect(place.replica.openView({ sequence: 1, disk: 'os.raw' })).rejects.toMatchObject({
      code: 'POINT_NOT_FOUND',
      details: { disk: 'os.raw', sequence: 1 },
    })
    for (const options of [{ spanMs: 0 }, { intervalCount: 1001 }, { writesEachSide: -1 }])
      await expect(place.replica.around(Date.now(), options)).rejects.toMatchObject({
        code: 'OPTION_OUT_OF_RANGE',
      })
    const { exitCode, failures } = await runHere([
      'restore',
      place.path('replica'),
      '--to',
      place.path('out'),
    ])
    expect([exitCode, failures.map(({ message }) => message.includes('--sequence'))]).toEqual([2, [true]])
  })

  it('say that they are not kept, and give the points', async () => {
    await place.begin({ recoveryPoints: 3, recoveryPointIntervalSeconds: 3600 })
    await place.cycle(60)
    await place.cycle(60)
    const time = new Date(place.clock.nowMs()).toISOString()
    const { exitCode, around } = await aroundOf(
      'points',
      place.path('replica'),
      '--around',
      time,
      '--span',
      '90m',
    )
    expect([exitCode, around.inexactReason, around.everyWriteKept]).toEqual([1, 'not kept', null])
    expect([around.intervals, around.moments]).toEqual([[], []])
    expect(around.points.map(({ isLatest }) => isLatest)).toEqual([false, false, true])
    const { said } = await runHere(['points', place.path('replica'), '--around', time])
    expect(said.join()).toContain('not kept one by one')
  })

  it('of logs that were coalesced at the threshold name no state inside of them', async () => {
    await place.begin(EVERY_WRITE, systemClock)
    const exact = await writeOn(0, 0, 4 * KIB)
    await setTimeout(3) // The gap begins with the millisecond of the cut.
    await place.machine.replicate()
    place.isBroken = true
    const inside: Moment[] = []
    for (let cut = 0; cut < 2; cut += 1) {
      inside.push(await writeOn(0, 0, 640 * KIB))
      await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'TRANSPORT_FAILED' })
    }
    place.isBroken = false
    await place.machine.replicate()
    place.expectEqual(DISKS)
    expect((await place.machine.measure()).counters.thresholdCoalesceCount).toBe(1)
    const [first] = inside
    const [gap, ...others] = (await place.replica.keptSpan())?.gaps ?? []
    expect([gap?.reason, others]).toEqual(['coalesced', []])
    const around = await place.replica.around(first!.timeMs, { writesEachSide: 100 })
    expect(around.inexactReason).toBe('coalesced')
    expect(around.moments.every(({ lengthBytes }) => lengthBytes < 640 * KIB)).toBe(true)
    await expect(place.replica.openView({ timeMs: first!.timeMs })).rejects.toMatchObject({
      code: 'POINT_NOT_EXACT',
      details: { reason: 'coalesced' },
    })
    await using view = await place.replica.openView({ timeMs: exact.timeMs })
    await expectShows(view, exact)
  })
})
