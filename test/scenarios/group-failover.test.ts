/**
 * Failover of a consistency group: all machines begin with one cut that they share, or none of them is failed over.
 */

import { readFileSync } from 'node:fs'
import {
  Engine,
  failback,
  type FailbackPlace,
  groupPoints,
  openReplica,
  type Replica,
  startGroupFailover,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { run } from './cli-command.js'
import { expectShows, MINUTE_MS, type Moment, SetClock } from './recovery-oracle.js'
import { KIB, MIB, Workplace } from './workplace.js'

const NAMES = ['web01', 'db01', 'mail01'] as const
const POLICY = { recoveryPoints: 24, recoveryPointIntervalSeconds: 60 }

let place: Workplace
let clock: SetClock
let engine: Engine
let replicas: Replica[]
/** What the disks held at the common cuts, by machine. */
let moments: Record<string, Moment>[]

beforeEach(async () => {
  place = new Workplace()
  clock = new SetClock()
  replicas = []
  moments = []
  engine = await place.open({ clock })
  for (const name of NAMES) {
    const replica = { directory: place.path(`replica-${name}`) }
    const disks = [place.makeDisk(`${name}.raw`, MIB)]
    const machine = await engine.enable({ name, disks, replica, policy: POLICY })
    await machine.startInitialReplication()
  }
})

afterEach(async () => {
  for (const replica of replicas) await replica.close()
  await engine.close()
  place.remove()
})

async function scribble(): Promise<void> {
  for (const { disks } of engine.machines)
    for (const disk of disks) {
      await disk.write(4 * KIB * place.random.below(200), place.random.bytes(8 * KIB))
    }
}

const disksOf = (name: string): Map<string, Buffer> =>
  new Map([[`${name}.raw`, readFileSync(place.path(`${name}.raw`))]])

/** A cut of the group, remembered. */
async function commonCut(): Promise<string> {
  clock.advance(5 * MINUTE_MS)
  await scribble()
  const { groupPointId } = await engine.group('shop').replicate()
  await engine.settled()
  moments.push(
    Object.fromEntries(NAMES.map((name) => [name, { timeMs: clock.nowMs(), disks: disksOf(name) }])),
  )
  if (groupPointId === null) throw new Error('the cut is not one of the whole group')
  return groupPointId
}

/** A cycle of one machine, by itself. */
async function ownCut(name: string): Promise<void> {
  clock.advance(5 * MINUTE_MS)
  await scribble()
  const machine = engine.machine(name)
  const group = engine.group('shop')
  await group.remove(machine)
  await machine.replicate()
  await group.add(machine)
  await engine.settled()
}

/** The primary's site is gone; its replicas are opened, each with `step` as its observer. */
async function disaster(step: (name: string, machine: string) => void = () => {}): Promise<Replica[]> {
  await engine.abandon()
  return reopened(step)
}

async function reopened(step: (name: string, machine: string) => void = () => {}): Promise<Replica[]> {
  for (const replica of replicas) await replica.close()
  replicas = []
  for (const name of NAMES) {
    const directory = place.path(`replica-${name}`)
    replicas.push(await openReplica({ directory, clock, step: (at) => step(at, name) }))
  }
  return replicas
}

async function states(): Promise<string[]> {
  return Promise.all(replicas.map((replica) => replica.state()))
}

async function group(): Promise<void> {
  await engine.createGroup({ name: 'shop', machines: [...NAMES] })
}

describe('a failover of a group', () => {
  it('begins with the newest cut that all members share, though some have newer ones', async () => {
    await group()
    await commonCut()
    const newest = await commonCut()
    await ownCut('db01')
    await disaster()
    const shared = await groupPoints(replicas)
    expect(shared.map(({ groupPointId }) => groupPointId).at(-1)).toBe(newest)
    const { point, members } = await startGroupFailover(replicas)
    expect(point.groupPointId).toBe(newest)
    expect(members.map(({ machine }) => machine)).toEqual(NAMES)
    for (const { machine, failover } of members) await expectShows(failover, moments[1]![machine]!)
  })

  it('begins with a cut that was chosen, by its id or by a time', async () => {
    await group()
    const first = await commonCut()
    await commonCut()
    await commonCut()
    await disaster()
    const timeMs = moments[1]!['web01']!.timeMs + MINUTE_MS
    const byTime = await startGroupFailover(replicas, { point: { timeMs } })
    for (const { machine, failover } of byTime.members) await expectShows(failover, moments[1]![machine]!)
    for (const replica of replicas) await replica.cancelFailover()
    const byId = await startGroupFailover(replicas, { point: { groupPointId: first } })
    for (const { machine, failover } of byId.members) await expectShows(failover, moments[0]![machine]!)
    const wanted = { point: { groupPointId: first } }
    expect((await startGroupFailover(replicas, wanted)).members.map(({ failover }) => failover)).toEqual(
      byId.members.map(({ failover }) => failover),
    )
  })

  it('is refused where they share no cut, and none is failed over', async () => {
    for (const { name } of engine.machines) await engine.machine(name).replicate()
    await disaster()
    await expect(startGroupFailover(replicas)).rejects.toMatchObject({
      code: 'GROUP_POINT_NOT_FOUND',
      details: { machines: [...NAMES], groupPoints: [] },
    })
    expect(await states()).toEqual(NAMES.map(() => 'Replicating'))
  })

  it('is refused where applications were never at rest together', async () => {
    await group()
    const shared = await commonCut()
    await disaster()
    const wanted = { point: 'LatestMultiVmApplicationConsistent' } as const
    await expect(startGroupFailover(replicas, wanted)).rejects.toMatchObject({
      code: 'GROUP_POINT_NOT_FOUND',
      details: { groupPoints: expect.arrayContaining([shared]) },
    })
    await expect(replicas[0]?.openView('LatestMultiVmApplicationConsistent')).rejects.toMatchObject({
      code: 'POINT_NOT_FOUND',
    })
    await using view = await replicas[0]!.openView('LatestMultiVmProcessed')
    await expectShows(view, moments[0]!['web01']!)
  })

  it('is refused by the member that refuses, before any is failed over', async () => {
    await group()
    await commonCut()
    await commonCut()
    await reopened()
    await expect(startGroupFailover(replicas)).rejects.toMatchObject({
      code: 'GROUP_MEMBER_REFUSES',
      details: { machine: 'web01', reason: 'PRIMARY_ALIVE' },
    })
    const [first] = await groupPoints(replicas)
    const number = first?.numbers['mail01'] ?? -1
    await replicas[2]?.startFailover({ fencePrimary: true, point: { point: number } })
    await expect(startGroupFailover(replicas, { fencePrimary: true })).rejects.toMatchObject({
      code: 'GROUP_MEMBER_REFUSES',
      details: { machine: 'mail01', reason: 'INVALID_STATE' },
    })
    expect((await states()).slice(0, 2)).toEqual(['Replicating', 'Replicating'])
  })

  it('that fails takes back what it can, and names who stays failed over', async () => {
    await group()
    await commonCut()
    await disaster((name, machine) => {
      if (machine === 'mail01' && name === 'failover.before-layers') throw new Error('no room')
      if (machine === 'db01' && name === 'cancel.before-moving') throw new Error('no room')
    })
    await expect(startGroupFailover(replicas)).rejects.toMatchObject({
      code: 'GROUP_MEMBER_REFUSES',
      details: { machine: 'mail01', done: ['db01'] },
    })
    const isBegun = await Promise.all(replicas.map((replica) => replica.failoverInfo()))
    expect(isBegun.map((info) => info !== undefined)).toEqual(NAMES.map((name) => name === 'db01'))
  })

  it.each(['failover.before-moving', 'failover.before-layers', 'failover.before-started'])(
    'that fails at its last member at %s takes back it and those before it',
    async (step) => {
      await group()
      await commonCut()
      let isArmed = true
      await disaster((name, machine) => {
        if (isArmed && machine === 'mail01' && name === step) throw new Error('no room')
      })
      await expect(startGroupFailover(replicas)).rejects.toMatchObject({
        code: 'GROUP_MEMBER_REFUSES',
        details: { machine: 'mail01' },
      })
      expect(await states()).toEqual(NAMES.map(() => 'Replicating'))
      isArmed = false
      const { members } = await startGroupFailover(replicas)
      for (const { machine, failover } of members) await expectShows(failover, moments[0]![machine]!)
    },
  )

  it('that died between two members is completed by the next call', async () => {
    await group()
    await commonCut()
    await commonCut()
    await disaster()
    const [chosen] = (await groupPoints(replicas)).slice(-2)
    const point = chosen?.numbers['web01'] ?? -1
    const first = await replicas[0]!.startFailover({ point: { point }, fencePrimary: true })
    const bytes = place.random.bytes(4 * KIB)
    await first.disks[0]?.write(0, bytes)
    await reopened()
    const wanted = { point: { groupPointId: chosen?.groupPointId ?? '' } }
    const { members } = await startGroupFailover(replicas, wanted)
    const [web01, ...others] = members
    expect(Buffer.from(await web01!.failover.disks[0]!.read(0, 4 * KIB)).equals(bytes)).toBe(true)
    for (const { machine, failover } of others) await expectShows(failover, moments[0]![machine]!)
    await expect(startGroupFailover(replicas)).rejects.toMatchObject({
      code: 'GROUP_MEMBER_REFUSES',
      details: { machine: 'web01', reason: 'INVALID_STATE' },
    })
  })

  it('is a group over there as well, and at home again when all have come home', async () => {
    await group()
    await commonCut()
    await disaster()
    const { members } = await startGroupFailover(replicas)
    for (const { failover } of members) await failover.disks[0]?.write(0, place.random.bytes(4 * KIB))
    engine = await place.open({ clock })
    const away = await Engine.open({ stateDirectory: place.path('away-state'), clock })
    try {
      const trip = (replica: Replica, name: string): FailbackPlace => ({
        replica,
        away,
        home: engine,
        directory: place.path(`home-${name}`),
      })
      for (const [index, name] of NAMES.entries())
        await failback({ ...trip(replicas[index]!, name), until: 'synchronize' })
      expect(engine.groups).toEqual([])
      expect(away.group('shop').members.map(({ name }) => name)).toEqual(NAMES)
      expect((await away.group('shop').replicate()).groupPointId).not.toBeNull()
      for (const [index, name] of NAMES.entries()) await failback(trip(replicas[index]!, name))
      expect(away.groups).toEqual([])
      expect(engine.group('shop').members.map(({ name }) => name)).toEqual(NAMES)
      await commonCut()
      for (const name of NAMES) {
        const image = readFileSync(place.path(`replica-${name}/${name}.raw.raw`))
        expect(image.equals(readFileSync(place.path(`${name}.raw`))), name).toBe(true)
      }
    } finally {
      await away.close()
    }
  })

  it('is said before it is done by the command, and lists what is shared', async () => {
    await group()
    const shared = await commonCut()
    await engine.close()
    const folders = NAMES.map((name) => place.path(`replica-${name}`))
    const listed = JSON.parse(run('group', 'points', ...folders, '--json').stdout)
    expect(listed.points.map((one: { groupPointId: string }) => one.groupPointId)).toContain(shared)
    const asked = run('group', 'failover', ...folders, '--nbd', place.path('sockets'), '--json')
    expect(asked.status).toBe(3)
    expect(JSON.parse(asked.stdout.split('\n')[0] ?? '')).toMatchObject({
      outlook: { point: { groupPointId: shared }, members: NAMES.map((machine) => ({ machine })) },
    })
    const groups = JSON.parse(run('group', 'list', place.path('state'), '--json').stdout).groups
    expect(groups).toMatchObject([{ group: 'shop', lastPoint: { groupPointId: shared } }])
    const refused = run('group', 'failover', ...folders, '--nbd', 'x', '--point', 'yesterday')
    expect(refused.status).toBe(2)
  })
})
