/**
 * The way home: the replica becomes the primary, the former primary its replica, and back, as deltas.
 */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  Engine,
  isSecondsiteError,
  openReplica,
  type ProtectedMachine,
  type Replica,
  reverseReplication,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISKS, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

let place: RecoveryPlace
/** The engine of the second site. */
let away: Engine
let ends: (() => Promise<void>)[]

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4 })
  // What is due by itself is due on this side.
  away = await Engine.open({ stateDirectory: place.path('away-state') })
  ends = [() => away.close()]
})

afterEach(async () => {
  for (const end of ends) await end()
  await place.end()
})

const home = () => ({ engine: place.engine })
const expectPairs = (): void => {
  for (const name of DISKS) {
    const source = readFileSync(place.path(name))
    expect(source.equals(readFileSync(place.path(`replica/${name}.raw`))), name).toBe(true)
  }
}

async function write(
  machine: ProtectedMachine,
  name: string,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  await machine.disks.find((disk) => disk.name === name)?.write(offset, place.random.bytes(lengthBytes))
}

async function settled(machine: ProtectedMachine): Promise<void> {
  for (let look = 0; machine.state !== 'Replicating'; look += 1) {
    if (look > 1000) throw new Error(`still ${machine.state}`)
    await new Promise((resolve) => {
      setTimeout(resolve, 10)
    })
  }
}

/** The replica, failed over as planned and made the primary. */
async function goAway(): Promise<ProtectedMachine> {
  await place.machine.prepareFailover()
  await place.replica.startFailover({ kind: 'Planned', fencePrimary: true })
  const { machine, candidateBytes } = await reverseReplication(place.replica, {
    engine: away,
    former: home(),
    directory: place.path('home-store'),
  })
  expect(candidateBytes).toBe(0)
  return machine
}

/** And home again. */
async function goHome(machine: ProtectedMachine): Promise<ProtectedMachine> {
  await machine.prepareFailover()
  const replica = await openReplica({ directory: place.path('home-store'), clock: place.clock })
  ends.unshift(() => replica.close())
  await replica.startFailover({ kind: 'Planned', fencePrimary: true })
  const report = await reverseReplication(replica, {
    engine: place.engine,
    former: { engine: away },
    directory: place.path('replica'),
  })
  expect(report.candidateBytes).toBe(0)
  return report.machine
}

async function failOver(replica: Replica): Promise<void> {
  const failover = await replica.startFailover({ fencePrimary: true })
  await failover.disks.find(({ name }) => name === 'os.raw')?.write(128 * KIB, place.random.bytes(64 * KIB))
  await replica.commitFailover()
}

describe('a planned failover', () => {
  it('loses nothing, proven by digests, and is reversed without moving a byte', async () => {
    await place.scribble(place.machine, 8)
    const report = await place.machine.prepareFailover()
    expect(report.provenBytes).toBe(3 * MIB)
    expect(place.machine.state).toBe('PreparedForFailover')
    await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await place.machine.cancelFailover()
    await place.scribble(place.machine, 4)
    const machine = await goAway()
    expect(machine.state).toBe('Replicating')
    expect(place.engine.machines).toEqual([])
    await write(machine, 'os.raw', 64 * KIB, 8 * KIB)
    await machine.replicate()
    expectPairs()
    expect(await machine.verify()).toMatchObject({ equal: true })
  })

  it.each([true, false])(
    'has the planned cut as its newest point, which is what was proven: %s',
    async (verify) => {
      await place.scribble(place.machine, 8)
      const report = await place.machine.prepareFailover({ verify })
      const newest = (await place.replica.points()).at(-1)
      expect(newest).toMatchObject({ kind: 'planned', cutTimeMs: report.cutTimeMs, isLatest: true })
      expectPairs()
      await place.replica.startFailover({ kind: 'Planned', fencePrimary: true })
      expect((await place.replica.failoverInfo())?.pointNumber).toBe(newest?.number)
    },
  )

  it('goes there and home again, and replicates outwards as at first', async () => {
    const there = await goAway()
    await write(there, 'data.raw', 0, 4 * KIB)
    await there.replicate()
    const machine = await goHome(there)
    expect(machine.disks.map(({ path }) => path)).toEqual(
      expect.arrayContaining(DISKS.map((name) => place.path(name))),
    )
    await write(machine, 'os.raw', MIB, 4 * KIB)
    await machine.replicate()
    expectPairs()
    expect(away.machines).toEqual([])
  })
})

describe('an unplanned failover', () => {
  it('is reversed as a delta of what either side has', async () => {
    await place.cycle(60)
    await failOver(place.replica)
    const report = await reverseReplication(place.replica, {
      engine: away,
      former: home(),
      directory: place.path('home-store'),
    })
    expect(report.candidateBytes).toBe(64 * KIB)
    await settled(report.machine)
    await report.machine.replicate()
    expectPairs()
    expect(await report.machine.verify()).toMatchObject({ equal: true })
  })

  it('to an older point sends what that took back', async () => {
    const [first] = await place.replica.points()
    await place.cycle(60)
    await place.cycle(60)
    await place.replica.startFailover({ fencePrimary: true, point: { point: first?.number ?? 0 } })
    const { machine } = await reverseReplication(place.replica, {
      engine: away,
      former: home(),
      directory: place.path('home-store'),
    })
    await settled(machine)
    await machine.replicate()
    expectPairs()
    expect(readFileSync(place.path('os.raw')).equals(place.moments[0]!.disks.get('os.raw')!)).toBe(true)
  })

  it('with writes on both sides is refused with what each has, and keeps what is given up', async () => {
    await place.cycle(60)
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    await failOver(place.replica)
    const request = { engine: away, former: home(), directory: place.path('home-store') }
    const refused = await reverseReplication(place.replica, request).catch((error: unknown) => error)
    if (!isSecondsiteError(refused, 'SPLIT_BRAIN')) throw refused
    expect(refused.details).toMatchObject({
      formerBytes: 64 * KIB,
      activeBytes: 64 * KIB,
      former: { 'os.raw': [{ offset: MIB, lengthBytes: 64 * KIB }] },
      active: { 'os.raw': [{ offset: 128 * KIB, lengthBytes: 64 * KIB }] },
    })
    const report = await reverseReplication(place.replica, { ...request, discardFormer: true })
    expect(readdirSync(place.path('home-store/lost')).filter((name) => name.endsWith('.hrl')).length).toBe(
      report.lostLogs.length,
    )
    expect(report.lostLogs.length).toBeGreaterThan(0)
    await settled(report.machine)
    await report.machine.replicate()
    expectPairs()
  })

  it('is reversed to new disks where the former primary is gone', async () => {
    await place.cycle(60)
    await failOver(place.replica)
    const disks = Object.fromEntries(DISKS.map((name) => [name, place.path(`new/${name}`)]))
    const { machine, candidateBytes } = await reverseReplication(place.replica, {
      engine: away,
      former: { disks },
      directory: place.path('new/store'),
    })
    expect(candidateBytes).toBe(3 * MIB)
    await settled(machine)
    await machine.replicate()
    for (const name of DISKS) {
      const source = readFileSync(place.path(`replica/${name}.raw`))
      expect(source.equals(readFileSync(join(place.path('new'), name))), name).toBe(true)
    }
  })

  const STEPS = [
    'reverse.before-recording',
    'reverse.before-retiring',
    'reverse.before-adopting',
    'reverse.before-protecting',
    'reverse.before-ending',
  ]
  it.each(STEPS)('whose reversal dies at %s is carried through by the next call', async (step) => {
    await place.cycle(60)
    await place.replica.close()
    let isArmed = true
    place.replica = await place.openReplica((name) => {
      if (isArmed && name === step) throw new Error('died')
    })
    await failOver(place.replica)
    const request = { engine: away, former: home(), directory: place.path('home-store') }
    await expect(reverseReplication(place.replica, request)).rejects.toThrow('died')
    isArmed = false
    await place.replica.close()
    place.replica = await place.openReplica()
    const { machine } = await reverseReplication(place.replica, request)
    await settled(machine)
    await machine.replicate()
    expectPairs()
    expect(await machine.verify()).toMatchObject({ equal: true })
  })
})
