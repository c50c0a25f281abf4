/**
 * Machines of a consistency group in a recovery plan: all that choose so begin with one cut, chosen once for the whole run,
 * or none of them is failed over.
 */

import { readFileSync, renameSync } from 'node:fs'
import {
  continuePlan,
  type Engine,
  forecastPlan,
  forecastText,
  type LoadedPlan,
  openReplica,
  parsePlan,
  type PlanReport,
  type PlanRunEvent,
  ReplicaTargets,
  startPlan,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { expectShows, MINUTE_MS, type Moment, SetClock } from './recovery-oracle.js'
import { KIB, MIB, Workplace } from './workplace.js'

const MEMBERS = ['web01', 'db01', 'mail01'] as const
/** It is in no group. */
const NAMES = [...MEMBERS, 'dns01'] as const

let place: Workplace
let clock: SetClock
let engine: Engine
let targets: ReplicaTargets
/** What the disks held at each cut, by machine. */
let moments: Record<string, Moment>[]

beforeEach(async () => {
  place = new Workplace(13)
  clock = new SetClock()
  moments = []
  targets = new ReplicaTargets({ clock })
  engine = await place.open({ clock })
  const policy = { recoveryPoints: 24, recoveryPointIntervalSeconds: 60 }
  for (const name of NAMES) {
    const replica = { directory: place.path(`replica-${name}`) }
    const machine = await engine.enable({
      name,
      disks: [place.makeDisk(`${name}.raw`, MIB)],
      replica,
      policy,
    })
    await machine.startInitialReplication()
  }
})

afterEach(async () => {
  await targets.close()
  await engine.close()
  place.remove()
})

async function group(): Promise<void> {
  await engine.createGroup({ name: 'shop', machines: [...MEMBERS] })
}

/** Writes to every disk, and a cut: of the group and of the machine beside it. */
async function cutAll(cut: () => Promise<unknown> = () => engine.group('shop').replicate()): Promise<void> {
  clock.advance(5 * MINUTE_MS)
  for (const { disks } of engine.machines)
    await disks[0]?.write(4 * KIB * place.random.below(200), place.random.bytes(8 * KIB))
  await cut()
  await engine.machine('dns01').replicate()
  await engine.settled()
  moments.push(Object.fromEntries(NAMES.map((name) => [name, momentOf(name)])))
}

function momentOf(name: string): Moment {
  const disks = new Map([[`${name}.raw`, readFileSync(place.path(`${name}.raw`))]])
  return { timeMs: clock.nowMs(), disks }
}

function plan(names: readonly string[] = NAMES, point = 'LatestMultiVmProcessed'): LoadedPlan {
  const machines = Object.fromEntries(
    names.map((name) => [name, { replica: `replica-${name}`, fencePrimary: true }]),
  )
  const settings = { name: 'shop', point, parallelMachines: 1, testCleanup: 'Keep' }
  const text = JSON.stringify({ ...settings, machines, groups: [{ machines: names }] })
  return parsePlan(text, { directory: place.folder })
}

function options() {
  return { directory: place.path('runs'), targets, clock }
}

/** Each member that is failed over shows what its disk held at that cut. */
async function expectAt(
  moment: Record<string, Moment> | undefined,
  names: readonly string[] = MEMBERS,
): Promise<void> {
  for (const name of names) {
    await using replica = await openReplica({ directory: place.path(`replica-${name}`), clock })
    const failover = (await replica.failover()) ?? expect.unreachable(`${name} is not failed over`)
    await expectShows(failover, moment?.[name] ?? expect.unreachable(`no moment of ${name}`))
  }
}

function codesOf(report: PlanReport): Record<string, unknown> {
  return Object.fromEntries(report.steps.map(({ machine, state, error }) => [machine, error?.code ?? state]))
}

describe('a plan that takes the newest cut of a group', () => {
  it('begins all its machines with it, though one has a newer point; who is in no group takes its own', async () => {
    await group()
    await cutAll()
    await cutAll()
    // A member by itself, as it does after the others have gone.
    await cutAll(() => engine.machine('db01').replicate())
    await engine.abandon()
    const forecast = await forecastPlan(plan(), 'Unplanned', { targets })
    expect(forecast.isReady).toBe(true)
    expect(forecast.machines.map(({ forecast: one }) => one?.point?.timeMs)).toEqual([
      ...MEMBERS.map(() => moments[1]?.['web01']?.timeMs),
      moments[2]?.['dns01']?.timeMs,
    ])
    expect(forecastText(forecast)).toContain('dns01: is in no consistency group: LatestProcessed')
    expect(await startPlan(plan(), 'Unplanned', options())).toMatchObject({ state: 'Completed' })
    await expectAt(moments[1])
    await expectAt(moments[2], ['dns01'])
  })

  it('keeps to it when it goes on, though those that are left share a newer one by then', async () => {
    await group()
    await cutAll()
    const stop = new AbortController()
    const onEvent = (event: PlanRunEvent): void => {
      if (event.type === 'step' && event.state === 'Done') stop.abort()
    }
    const first = await startPlan(plan(MEMBERS), 'Unplanned', { ...options(), signal: stop.signal, onEvent })
    expect(codesOf(first)).toEqual({ web01: 'Done', db01: 'Pending', mail01: 'Pending' })
    // Committed it has no points any more, so the journal alone knows which cut it was.
    await using replica = await openReplica({ directory: place.path('replica-web01'), clock })
    await replica.commitFailover()
    await replica.close()
    await engine.group('shop').remove(engine.machine('web01'))
    await cutAll()
    expect(await continuePlan(first.runId, options())).toMatchObject({ state: 'Completed' })
    await expectAt(moments[0], ['db01', 'mail01'])
  })

  it('brings one that could not be reached to the same cut later', async () => {
    await group()
    await cutAll()
    await cutAll()
    await engine.abandon()
    renameSync(place.path('replica-db01'), place.path('unplugged'))
    const first = await startPlan(plan(MEMBERS), 'Unplanned', options())
    expect(codesOf(first)).toEqual({ web01: 'Done', db01: 'REPLICA_NOT_FOUND', mail01: 'Done' })
    renameSync(place.path('unplugged'), place.path('replica-db01'))
    expect(await continuePlan(first.runId, options())).toMatchObject({ state: 'Completed' })
    await expectAt(moments[1])
  })

  it('fails nobody of a group over that shares none, and says so before', async () => {
    await group()
    await cutAll()
    for (const name of MEMBERS) await engine.group('shop').remove(engine.machine(name))
    await engine.abandon()
    await using replica = await openReplica({ directory: place.path('replica-db01'), clock })
    const [shared] = (await replica.points()).filter(({ groupPointId }) => groupPointId !== null)
    expect(shared).toBeDefined()
    // Somebody has brought one of them to a point of its own.
    const [oldest] = await replica.points()
    await replica.startFailover({ point: { point: oldest?.number ?? -1 } })
    await replica.close()
    const forecast = await forecastPlan(plan(), 'Unplanned', { targets })
    expect(forecast.isReady).toBe(false)
    expect(forecast.machines.map(({ error }) => error?.code)).toEqual([
      ...MEMBERS.map(() => 'GROUP_POINT_NOT_FOUND'),
      undefined,
    ])
    const report = await startPlan(plan(), 'Unplanned', options())
    expect(codesOf(report)).toEqual({
      ...Object.fromEntries(MEMBERS.map((name) => [name, 'GROUP_POINT_NOT_FOUND'])),
      dns01: 'Done',
    })
    await using other = await openReplica({ directory: place.path('replica-web01'), clock })
    expect(await other.failoverInfo()).toBeUndefined()
  })

  it('asks for applications at rest where the plan does', async () => {
    await group()
    await cutAll()
    const wanted = plan(NAMES, 'LatestMultiVmApplicationConsistent')
    const { machines } = await forecastPlan(wanted, 'Unplanned', { targets })
    expect(machines.map(({ error }) => error?.code)).toEqual([
      ...MEMBERS.map(() => 'GROUP_POINT_NOT_FOUND'),
      'POINT_NOT_FOUND',
    ])
  })

  it('makes test copies of it beside replication', async () => {
    await group()
    await cutAll()
    await cutAll(() => engine.machine('db01').replicate())
    const report = await startPlan(plan(MEMBERS), 'Test', options())
    expect(report).toMatchObject({ state: 'Completed' })
    expect(report.machines.map(({ point }) => point?.timeMs)).toEqual(
      MEMBERS.map((name) => moments[0]?.[name]?.timeMs),
    )
    await cutAll()
  })
})
