/**
 * Consistency groups: stamps are written in a fixed order across the disks of all members, each only after the one before
 * was written. So a common cut that shows a stamp shows every earlier one, on whatever machine it is.
 */

import { closeSync, openSync, readSync } from 'node:fs'
import type { ConsistencyGroup, Engine, PolicyInput, ProtectedMachine } from '@secondsite/engine'
import { FaultyTransport, ManualClock, SeededRandom } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { relayTo } from './relay.js'
import { KIB, MIB, Workplace } from './workplace.js'

const MINUTE_MS = 60_000
const SECTOR = 512
/** How long a poll goes on: as long as its test. */
const PATIENT = { timeout: 60_000 }
const DISKS_EACH = 2
/** So large that what a fast loop writes between two cuts stays far below the threshold of the logs. */
const DISK_BYTES = 256 * MIB

let place: Workplace
let clock: ManualClock
let engine: Engine | undefined
let transports: FaultyTransport[]
/** What happens just before a step. */
let onStep: (name: string) => void

async function open(): Promise<Engine> {
  transports = []
  engine = await place.open({
    clock,
    step: (name) => onStep(name),
    wrapTransport: (inner) => {
      const transport = new FaultyTransport({ serve: relayTo(inner), random: new SeededRandom(1) })
      transports.push(transport)
      return transport
    },
  })
  return engine
}

async function addMachine(name: string, policy: PolicyInput = {}): Promise<ProtectedMachine> {
  const disks = Array.from({ length: DISKS_EACH }, (_, index) =>
    place.makeDisk(`${name}-${index}`, DISK_BYTES, 0),
  )
  const replica = { directory: place.path(`replica-${name}`) }
  const machine = await (engine ?? (await open())).enable({ name, disks, replica, policy })
  await machine.startInitialReplication()
  return machine
}

async function group(names: readonly string[], policy: PolicyInput = {}): Promise<ConsistencyGroup> {
  const opened = await open()
  for (const name of names) await addMachine(name, policy)
  return opened.createGroup({ name: 'shop', machines: names })
}

/** Writes the stamps 1, 2, 3 and so on, each on the next disk, until it is stopped. */
class Stamps {
  #isRunning = true
  #newest = 0
  readonly #loop: Promise<void>

  constructor(private readonly machines: readonly ProtectedMachine[]) {
    this.#loop = this.#run()
  }

  async advance(count: number): Promise<void> {
    const wanted = this.#newest + count
    await expect.poll(() => this.#newest, { interval: 1, timeout: 60_000 }).toBeGreaterThan(wanted)
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    await this.#loop
  }

  async #run(): Promise<void> {
    const disks = this.machines.flatMap((machine) => machine.disks)
    while (this.#isRunning) {
      const stamp = this.#newest + 1
      const sector = Buffer.alloc(SECTOR)
      sector.writeUInt32LE(stamp)
      await disks[stamp % disks.length]?.write(4 * KIB, sector)
      this.#newest = stamp
    }
  }
}

function stampIn(path: string): number {
  const sector = Buffer.alloc(SECTOR)
  const image = openSync(path, 'r')
  readSync(image, sector, 0, SECTOR, 4 * KIB)
  closeSync(image)
  return sector.readUInt32LE(0)
}

/** The newest stamp of each disk of the replicas, in the order in which they are written. */
function stampsOf(names: readonly string[]): number[] {
  return names.flatMap((name) =>
    Array.from({ length: DISKS_EACH }, (_, index) =>
      stampIn(place.path(`replica-${name}/${name}-${index}.raw`)),
    ),
  )
}

/** Each disk has the newest of its stamps that is not younger than the newest of all. */
function expectOneCut(stamps: readonly number[]): void {
  const newest = Math.max(...stamps)
  for (const [index, stamp] of stamps.entries()) {
    const behind = (newest - index) % stamps.length
    expect(stamp, `disk ${index} of ${stamps.join(' ')}`).toBe(newest - behind)
  }
}

async function kindsOf(name: string): Promise<string | undefined> {
  return engine
    ?.machine(name)
    .measure()
    .then(({ lastCycle }) => lastCycle?.pointKind)
}

beforeEach(() => {
  place = new Workplace()
  clock = new ManualClock(Date.UTC(2026, 10, 21, 10))
  onStep = () => {}
})

afterEach(async () => {
  await engine?.close()
  engine = undefined
  place.remove()
})

const hookOf = (name: string): PolicyInput => ({
  quiesce: {
    method: 'command',
    freeze: ['/usr/bin/touch', place.path(`frozen-${name}`)],
    thaw: ['/bin/rm', '-f', place.path(`frozen-${name}`)],
    frozenLimitSeconds: 60,
  },
})

describe('a group', () => {
  it('shows no later stamp without all earlier ones, on no disk of no member, at no point', async () => {
    const names = ['web', 'db', 'queue']
    const shop = await group(names)
    const stamps = new Stamps(shop.members)
    try {
      const ids = new Set<string | null>()
      for (let round = 0; round < 10; round += 1) {
        await stamps.advance(20)
        const report = await shop.replicate()
        ids.add(report.groupPointId)
        expect(report.missing).toEqual([])
        expectOneCut(stampsOf(names))
      }
      expect(ids.has(null)).toBe(false)
      expect(ids.size).toBe(10)
    } finally {
      await stamps.stop()
    }
  })

  it('replicates when the first of its members is due, all in one cut', async () => {
    const names = ['web', 'db']
    const shop = await group(names, { replicationFrequencySeconds: 300 })
    const stamps = new Stamps(shop.members)
    try {
      for (let round = 1; round <= 3; round += 1) {
        await stamps.advance(20)
        const before = (await shop.measure()).lastPoint
        await clock.advance(5 * MINUTE_MS)
        await expect.poll(async () => (await shop.measure()).lastPoint, PATIENT).not.toEqual(before)
        for (const machine of shop.members) {
          await expect
            .poll(async () => (await machine.measure()).counters.replicationSuccessCount, PATIENT)
            .toBe(round)
        }
        expectOneCut(stampsOf(names))
      }
    } finally {
      await stamps.stop()
    }
  })

  it('holds the applications of all members at rest for one cut, and waits with none for the others to prepare', async () => {
    const opened = await open()
    for (const name of ['web', 'db']) await addMachine(name, hookOf(name))
    const shop = await opened.createGroup({ name: 'shop', machines: ['web', 'db'] })
    const report = await shop.replicate({ applicationConsistent: true })
    expect(report.groupPointId).not.toBeNull()
    expect([await kindsOf('web'), await kindsOf('db')]).toEqual([
      'application-consistent',
      'application-consistent',
    ])
  })
})

describe('a member that cannot take part', () => {
  it('is named; verbs by hand are refused, cycles that are due go on without it', async () => {
    const shop = await group(['web', 'db', 'queue'], { replicationFrequencySeconds: 300 })
    await shop.replicate()
    const { lastPoint } = await shop.measure()
    await engine?.machine('db').suspend()
    const details = { group: 'shop', machine: 'db', reason: 'INVALID_STATE' }
    await expect(shop.replicate()).rejects.toMatchObject({ code: 'GROUP_MEMBER_REFUSES', details })
    await expect(shop.suspend()).rejects.toMatchObject({ code: 'GROUP_MEMBER_REFUSES', details })
    expect(engine?.machine('web').state).toBe('Replicating')

    await clock.advance(5 * MINUTE_MS)
    for (const name of ['web', 'queue']) {
      const count = async (): Promise<number | undefined> =>
        (await engine?.machine(name).measure())?.counters.replicationSuccessCount
      await expect.poll(count, PATIENT).toBe(2)
    }
    const measured = await shop.measure()
    expect(measured).toMatchObject({ health: 'Warning', missing: [{ machine: 'db', code: 'INVALID_STATE' }] })
    expect(measured.lastPoint).toEqual(lastPoint)
  })

  it('for want of a hook, is named before anybody is frozen', async () => {
    const shop = await group(['web', 'db'])
    const details = { machine: 'web', reason: 'QUIESCE_NOT_CONFIGURED' }
    const refused = shop.replicate({ applicationConsistent: true })
    await expect(refused).rejects.toMatchObject({ code: 'GROUP_MEMBER_REFUSES', details })
  })

  it('that cannot record the cut makes it none of the group: nobody can fail over to it', async () => {
    const names = ['web', 'db']
    const shop = await group(names)
    await shop.replicate()
    const { lastPoint } = await shop.measure()
    const stamps = new Stamps(shop.members)
    try {
      await stamps.advance(20)
      onStep = (name) => {
        if (name !== 'cycle.before-queueing') return
        onStep = () => {}
        throw new Error('the state is full')
      }
      await expect(shop.replicate()).rejects.toThrow('the state is full')
      expect((await shop.measure()).lastPoint).toEqual(lastPoint)
      await stamps.advance(20)
      expect((await shop.replicate()).groupPointId).not.toBeNull()
      expectOneCut(stampsOf(names))
    } finally {
      await stamps.stop()
    }
  })

  it('after the cut (its replica is gone) has the point all the same, when it can ship again', async () => {
    const names = ['web', 'db']
    const shop = await group(names)
    const stamps = new Stamps(shop.members)
    await stamps.advance(20)
    await stamps.stop()
    const [, link] = transports
    if (link) link.faults = { refusedConnects: 1e9 }
    await expect(shop.replicate()).rejects.toMatchObject({ code: 'TRANSPORT_FAILED' })
    const { lastPoint } = await shop.measure()
    expect(lastPoint).not.toBeNull()
    if (link) link.faults = {}
    await engine?.machine('db').replicate()
    expectOneCut(stampsOf(names))
  })
})

describe('members', () => {
  it('come and go while everything runs, and a restart finds them', async () => {
    const shop = await group(['web', 'db'])
    const queue = await addMachine('queue')
    const stamps = new Stamps(shop.members)
    try {
      await shop.add(queue)
      const report = await shop.replicate()
      expect(report.members.map(({ machine }) => machine)).toEqual(['web', 'db', 'queue'])
      await shop.remove(engine?.machine('db') ?? queue)
      expect((await shop.replicate()).members.map(({ machine }) => machine)).toEqual(['web', 'queue'])
    } finally {
      await stamps.stop()
    }
    const { lastPoint } = await shop.measure()
    await engine?.abandon()
    const found = (await open()).group('shop')
    expect(found.members.map(({ name }) => name)).toEqual(['web', 'queue'])
    expect((await found.measure()).lastPoint).toEqual(lastPoint)
    expect(engine?.machine('db').groupName).toBeNull()
    await found.members[0]?.disable()
    expect((await found.replicate()).members.map(({ machine }) => machine)).toEqual(['queue'])
  })

  it('are in one group, and groups have one name', async () => {
    const shop = await group(['web'])
    await addMachine('db')
    const again = engine?.createGroup({ name: 'other', machines: ['db', 'web'] })
    await expect(again).rejects.toMatchObject({
      code: 'MACHINE_IN_GROUP',
      details: { machine: 'web', group: 'shop' },
    })
    const twice = engine?.createGroup({ name: 'shop', machines: ['db'] })
    await expect(twice).rejects.toMatchObject({ code: 'GROUP_EXISTS' })
    await expect(engine?.createGroup({ name: 'none', machines: [] })).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    const db = engine?.machine('db')
    if (db) await expect(shop.remove(db)).rejects.toMatchObject({ code: 'GROUP_NOT_MEMBER' })
    await engine?.removeGroup('shop')
    expect(() => engine?.group('shop')).toThrow(expect.objectContaining({ code: 'GROUP_NOT_FOUND' }))
    await expect(engine?.createGroup({ name: 'other', machines: ['db', 'web'] })).resolves.toMatchObject({
      name: 'other',
    })
  })
})
