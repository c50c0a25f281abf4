/**
 * The process is ended with SIGKILL just before every step of every verb of recovery. Opened again, the state is the one
 * before or the verb goes on; asked for again, it ends well; and every point that is left shows what the disks held.
 */

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Engine, type ProtectedMachine, reverseReplication } from '@secondsite/engine'
import { describe, expect, it } from 'vitest'
import { DISKS, expectShows, type Moment, RecoveryPlace } from './recovery-oracle.js'
import { KIB } from './workplace.js'

const child = fileURLToPath(new URL('recovery-crash-child.mjs', import.meta.url))
const HOURLY = { recoveryPoints: 3, recoveryPointIntervalSeconds: 3600 }
const WRITE_OFFSET = 64 * KIB
/** What the child writes. */
const PATTERN = new Uint8Array(12 * KIB).fill(0x5a)

/** A machine with four points, whose engine and replica are closed: the next process is the child. */
class CrashPlace extends RecoveryPlace {
  async prepare(): Promise<void> {
    await this.begin(HOURLY)
    for (let cycle = 0; cycle < 4; cycle += 1) await this.cycle(60, 4)
  }

  /** A process that does the verb. */
  run(verb: string, killAt: number, timeMs = 0) {
    const nowMs = this.clock.nowMs()
    const args = [child, this.folder, verb, String(killAt), String(nowMs), String(timeMs)]
    return spawnSync(process.execPath, args, { encoding: 'utf8' })
  }

  async closeAll(): Promise<void> {
    await this.replica.close()
    await this.engine.close()
  }

  async openAgain(): Promise<void> {
    this.replica = await this.openReplica()
  }

  /** Protects again where the machine was left. */
  async openEngine(): Promise<ProtectedMachine> {
    this.engine = await this.open({ clock: this.clock })
    this.machine = this.engine.machine('web01')
    return this.machine
  }

  moment(index: number): Moment {
    const moment = this.moments.at(index)
    if (moment === undefined) throw new Error(`no moment ${index}`)
    return moment
  }

  async expectEveryPoint(): Promise<void> {
    const points = await this.replica.points()
    expect(points.length).toBeGreaterThan(1)
    for (const { number, cutTimeMs, damage } of points) {
      expect(damage).toBeNull()
      await using view = await this.replica.openView({ point: number })
      await expectShows(view, this.momentAt(cutTimeMs))
    }
  }

  /** The primary goes on, and both sides are equal after its next cycle. */
  async expectReplicates(): Promise<void> {
    const machine = await this.openEngine()
    if (machine.state === 'PreparedForFailover') await machine.cancelFailover()
    if (machine.state !== 'Replicating') await machine.resume()
    await this.cycle(60, 4)
    this.expectEqual(DISKS)
    await this.expectEveryPoint()
  }

  names(folder: string): string[] {
    return existsSync(this.path(folder)) ? readdirSync(this.path(folder)) : []
  }
}

/** What a failover shows that began with a moment and was written to. */
function writtenOver(moment: Moment): Moment {
  const disks = new Map([...moment.disks].map(([name, bytes]) => [name, Buffer.from(bytes)]))
  disks.get('os.raw')?.set(PATTERN, WRITE_OFFSET)
  return { timeMs: moment.timeMs, disks }
}

/** A failover to a moment, with a write in it. */
async function begun(place: CrashPlace, moment: Moment): Promise<void> {
  const failover = await place.replica.startFailover({ fencePrimary: true, point: { timeMs: moment.timeMs } })
  await failover.disks.find(({ name }) => name === 'os.raw')?.write(WRITE_OFFSET, PATTERN)
}

interface Crash {
  readonly verb: string
  /** Which of the moments the verb is given. */
  readonly moment?: number
  before?(place: CrashPlace): Promise<void>
  /** Opened again after the death: the state before or after, then the verb once more. */
  after(place: CrashPlace, step: string): Promise<void>
}

const OLDER = 2
const NEWEST = 4

async function shown(place: CrashPlace, moment: Moment): Promise<void> {
  const failover = await place.replica.failover()
  if (failover === undefined) throw new Error('no failover')
  await expectShows(failover, moment)
}

async function expectFailover(place: CrashPlace, moment: Moment, again: () => Promise<unknown>) {
  if ((await place.replica.state()) === 'Replicating') await again()
  await shown(place, moment)
  expect(await place.replica.state()).toBe('FailedOverWaitingCompletion')
  await place.expectEveryPoint()
  await place.replica.cancelFailover()
  expect(await place.replica.state()).toBe('Replicating')
  await place.expectReplicates()
}

const crashes: readonly Crash[] = [
  {
    verb: 'testFailover',
    moment: OLDER,
    async after(place) {
      const left = (await place.replica.testFailovers()).filter(({ endedMs }) => endedMs === null)
      expect(left.map(({ isHeld }) => isHeld)).toEqual(left.map(() => false))
      for (const { id } of left) await place.replica.stopTestFailover(id)
      expect(place.names('replica/tests')).toEqual([])
      const test = await place.replica.startTestFailover({
        point: { timeMs: place.moment(OLDER).timeMs },
      })
      expect(test.name).toBe('web01 - Test')
      await expectShows(test, place.moment(OLDER))
      await test.stop()
      await place.expectEveryPoint()
      await place.expectReplicates()
    },
  },
  {
    verb: 'startFailover',
    moment: OLDER,
    after: (place) =>
      expectFailover(place, place.moment(OLDER), () =>
        place.replica.startFailover({ point: { timeMs: place.moment(OLDER).timeMs } }),
      ),
  },
  {
    verb: 'startPlanned',
    async before(place) {
      await place.machine.prepareFailover({ verify: false })
      place.remember()
    },
    after: (place) =>
      expectFailover(place, place.moment(-1), () => place.replica.startFailover({ kind: 'Planned' })),
  },
  {
    verb: 'changeRecoveryPoint',
    moment: OLDER,
    before: (place) => begun(place, place.moment(NEWEST)),
    async after(place) {
      const info = await place.replica.failoverInfo()
      const isBefore = info?.pointTimeMs === place.moment(NEWEST).timeMs
      await shown(place, isBefore ? writtenOver(place.moment(NEWEST)) : place.moment(OLDER))
      await place.replica.changeRecoveryPoint({ timeMs: place.moment(OLDER).timeMs })
      await expectFailover(place, place.moment(OLDER), async () => {})
    },
  },
  {
    verb: 'cancelFailover',
    before: (place) => begun(place, place.moment(OLDER)),
    async after(place) {
      if ((await place.replica.state()) !== 'Replicating') {
        await shown(place, writtenOver(place.moment(OLDER)))
        await place.replica.cancelFailover()
      }
      await expect(place.replica.cancelFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
      await place.expectReplicates()
      await begun(place, place.moment(-1))
      await shown(place, writtenOver(place.moment(-1)))
    },
  },
  {
    verb: 'commitFailover',
    before: (place) => begun(place, place.moment(OLDER)),
    async after(place) {
      const written = writtenOver(place.moment(OLDER))
      await shown(place, written)
      for (let count = 0; count < 3; count += 1) await place.replica.commitFailover()
      await shown(place, written)
      for (const [name, bytes] of written.disks)
        expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), name).toBe(true)
      expect(await place.replica.state()).toBe('FailedOver')
      expect(await place.replica.points()).toEqual([])
      expect(place.names('replica/undo/os.raw').filter((name) => name.endsWith('.hrl'))).toEqual([])
      await expect(place.replica.cancelFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    },
  },
  {
    verb: 'restore',
    moment: OLDER,
    async after(place) {
      const whole = place.names('out').filter((name) => (DISKS as readonly string[]).includes(name))
      for (const name of whole) expectFile(place, `out/${name}`, name)
      const restored = await place.replica.restore(
        { timeMs: place.moment(OLDER).timeMs },
        { directory: place.path(whole.length === 0 ? 'out' : 'again') },
      )
      for (const { name } of restored)
        expectFile(place, `${whole.length === 0 ? 'out' : 'again'}/${name}`, name)
    },
  },
  {
    verb: 'prepareFailover',
    async after(place) {
      const machine = await place.openEngine()
      if (machine.state === 'Replicating') await machine.prepareFailover()
      expect(machine.state).toBe('PreparedForFailover')
      place.remember()
      const failover = await place.replica.startFailover({ kind: 'Planned', fencePrimary: true })
      await expectShows(failover, place.moment(-1))
      await place.replica.cancelFailover()
      await place.engine.close()
      await place.expectReplicates()
    },
  },
  {
    verb: 'expire',
    async before(place) {
      place.clock.advance(5 * 3_600_000)
    },
    async after(place) {
      // What the child wrote just before its cut.
      const written = writtenOver(place.moment(NEWEST))
      place.moments.push({ ...written, timeMs: place.clock.nowMs() })
      await place.expectEveryPoint()
      await place.expectReplicates()
      const kept = new Set(
        (await place.replica.points()).map(({ number }) => String(number).padStart(12, '0')),
      )
      expect(kept.size).toBe(4)
      const segments = place.names('replica/undo/os.raw').filter((name) => name.endsWith('.hrl'))
      expect(segments.filter((name) => !kept.has(name.slice(0, 12)))).toEqual([])
    },
  },
  {
    verb: 'reverse',
    before: (place) => begun(place, place.moment(OLDER)),
    after: (place) => expectReversed(place),
  },
]

function expectFile(place: CrashPlace, path: string, name: string): void {
  const expected = place.moment(OLDER).disks.get(name)
  expect(expected?.equals(readFileSync(place.path(path))), path).toBe(true)
}

/** The reversal, carried through: the new primary has what the failover showed, and the former one follows it. */
async function expectReversed(place: CrashPlace): Promise<void> {
  const home = await place.open({ clock: place.clock })
  const away = await Engine.open({ stateDirectory: place.path('away-state'), clock: place.clock })
  const ended = (await place.replica.state()) === 'Disabled'
  const request = { engine: away, former: { engine: home }, directory: place.path('home-store') }
  if (!ended) await reverseReplication(place.replica, request)
  await expect(reverseReplication(place.replica, request)).rejects.toMatchObject({ code: 'INVALID_STATE' })
  const machine = away.machine('web01')
  if (machine.state === 'WaitingForStartResynchronize') await machine.resume()
  if (machine.state === 'Resynchronizing') await machine.suspend()
  if (machine.state === 'ResynchronizeSuspended') await machine.resynchronize()
  await machine.replicate()
  for (const [name, bytes] of writtenOver(place.moment(OLDER)).disks) {
    expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), `the image ${name}`).toBe(true)
    expect(readFileSync(place.path(name)).equals(bytes), `the disk ${name}`).toBe(true)
  }
  expect(await machine.verify()).toMatchObject({ equal: true })
  expect(home.machines).toEqual([])
  await away.close()
  await home.close()
}

async function prepared({ before }: Crash): Promise<CrashPlace> {
  const place = new CrashPlace()
  await place.prepare()
  await before?.(place)
  await place.closeAll()
  return place
}

/** The steps of a verb that comes to its end. */
async function stepsOf(crash: Crash): Promise<string[]> {
  const place = await prepared(crash)
  const result = place.run(crash.verb, 0, momentMs(place, crash))
  place.remove()
  expect(result.stderr).toBe('')
  return JSON.parse(result.stdout) as string[]
}

function momentMs(place: CrashPlace, { moment }: Crash): number {
  return moment === undefined ? 0 : place.moment(moment).timeMs
}

/** Every step in the slow run; else of each name the last time it comes. */
function chosen(steps: readonly string[]): (readonly [number, string])[] {
  const all = [...steps.entries()]
  if (process.env['SECONDSITE_SLOW']) return all
  return all.filter(([index, name]) => steps.lastIndexOf(name) === index)
}

describe.each(crashes)('a process that dies during $verb', (crash) => {
  it('leaves the state before or goes on, before whichever step it dies', async () => {
    const steps = await stepsOf(crash)
    expect(steps.length).toBeGreaterThan(0)
    for (const [index, name] of chosen(steps)) {
      const place = await prepared(crash)
      const killed = place.run(crash.verb, index + 1, momentMs(place, crash))
      expect(killed.signal, `${name} (${index + 1}): ${killed.stderr}`).toBe('SIGKILL')
      try {
        await place.openAgain()
        await crash.after(place, name)
      } catch (error) {
        throw new Error(`killed before ${name} (${index + 1})`, { cause: error })
      }
      await place.end()
    }
  }, 600_000)
})
