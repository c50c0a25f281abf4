/** Recovery plans over real replicas: points, test copies, failovers, and a primary that is prepared. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import {
  continuePlan,
  type Engine,
  forecastPlan,
  type LoadedPlan,
  openReplica,
  parsePlan,
  type ProtectedMachine,
  ReplicaTargets,
  startPlan,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace
let engine: Engine
let machine: ProtectedMachine
let targets: ReplicaTargets

beforeEach(async () => {
  place = new Workplace(7)
  const disk = place.makeDisk('os.raw', 2 * MIB)
  engine = await place.open()
  machine = await place.enable(engine, [disk])
  await machine.startInitialReplication()
  await scribble()
  targets = new ReplicaTargets()
})

afterEach(async () => {
  await targets.close()
  await engine.close()
  place.remove()
})

async function scribble(): Promise<void> {
  await machine.disks[0]?.write(64 * KIB, place.random.bytes(8 * KIB))
  await machine.replicate()
}

/** A command that leaves what it was told in a file. */
function teller(file: string): string[] {
  return ['sh', '-c', `env | grep ^SECONDSITE_ | sort >${place.path(file)}`]
}

function told(file: string): Record<string, string> {
  const lines = readFileSync(place.path(file), 'utf8').trim().split('\n')
  return Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  )
}

function plan(settings: object = {}): LoadedPlan {
  const web01 = { replica: 'replica', stop: teller('stopped'), start: teller('started'), ...settings }
  const groups = [
    { type: 'Shutdown', machines: ['web01'] },
    { machines: ['web01'] },
    { type: 'Boot', machines: ['web01'] },
  ]
  return parsePlan(JSON.stringify({ name: 'shop', machines: { web01 }, groups }), { directory: place.folder })
}

function options() {
  return { directory: place.path('runs'), targets }
}

async function stateOfReplica(): Promise<string> {
  await using replica = await openReplica({ directory: place.path('replica') })
  return replica.state()
}

describe('a dry run', () => {
  it('says the newest point and what it loses, while replication goes on', async () => {
    const forecast = await forecastPlan(plan(), 'Unplanned', { targets })
    expect(forecast).toMatchObject({ isReady: true, lossBytes: null, copyBytes: 0 })
    expect(forecast.machines[0]?.forecast?.point).toMatchObject({ kind: 'crash-consistent' })
    expect(forecast.lossSeconds).toBeGreaterThanOrEqual(0)
    await scribble()
    expect(await stateOfReplica()).toBe('Replicating')
  })

  it('tells of a replica that is not there', async () => {
    const forecast = await forecastPlan(plan({ replica: 'elsewhere' }), 'Unplanned', { targets })
    expect(forecast.machines[0]?.error?.code).toBe('REPLICA_NOT_FOUND')
    expect(existsSync(place.path('elsewhere'))).toBe(false)
  })
})

describe('a Test run', () => {
  it('makes a copy, exports it, starts it, and removes it when somebody has looked; replication goes on', async () => {
    const address = `unix:${place.path('test.sock')}`
    const first = await startPlan(plan({ testNbd: address }), 'Test', options())
    expect(first.state).toBe('WaitingForInput')
    expect(targets.heldCopies).toEqual([{ name: 'web01 - Test', address }])
    expect(existsSync(place.path('test.sock'))).toBe(true)
    expect(told('started')).toMatchObject({
      SECONDSITE_KIND: 'Test',
      SECONDSITE_MACHINE: 'web01',
      SECONDSITE_NBD: address,
      SECONDSITE_REPLICA: place.path('replica'),
      SECONDSITE_RUN: first.runId,
    })
    expect(existsSync(place.path('stopped'))).toBe(false)
    await scribble()
    expect(await continuePlan(first.runId, options())).toMatchObject({ state: 'Completed' })
    expect(targets.heldCopies).toEqual([])
    await using replica = await openReplica({ directory: place.path('replica') })
    expect((await replica.testFailovers()).map(({ endedMs }) => endedMs !== null)).toEqual([true])
    expect(await replica.state()).toBe('Replicating')
  })

  it('starts the copy by the runner of its failover settings, and ends it with the copy', async () => {
    const file = place.path('machine')
    const start = ['/bin/sh', '-c', `echo $$ >${file}; exec sleep 600`]
    await machine.configure({ failoverSettings: { runner: { method: 'command', start, isMachine: true } } })
    await scribble()
    const first = await startPlan(plan({ testRun: true, start: undefined }), 'Test', options())
    expect(first.state).toBe('WaitingForInput')
    await expect
      .poll(() => existsSync(file) && readFileSync(file, 'utf8') !== '', { timeout: 30_000 })
      .toBe(true)
    const processId = readFileSync(file, 'utf8').trim()
    expect(existsSync(`/proc/${processId}`)).toBe(true)
    expect(await continuePlan(first.runId, options())).toMatchObject({ state: 'Completed' })
    await expect.poll(() => existsSync(`/proc/${processId}`), { timeout: 30_000 }).toBe(false)
  })

  it('whose process has ended cannot start the copy any more, but is cleaned up', async () => {
    const loaded = plan()
    const withPause = {
      ...loaded,
      plan: {
        ...loaded.plan,
        groups: loaded.plan.groups.map((group) =>
          group.type === 'Boot' ? { ...group, before: parsePlan(PAUSE).plan.groups[0]?.before ?? [] } : group,
        ),
      },
    }
    const first = await startPlan(withPause, 'Test', options())
    expect(first.state).toBe('WaitingForInput')
    await targets.close()
    targets = new ReplicaTargets()
    const second = await continuePlan(first.runId, options())
    expect(second.steps.find(({ id }) => id === '3.web01')?.error?.code).toBe('TEST_FAILOVER_NOT_FOUND')
    const third = await continuePlan(first.runId, options())
    expect(third.steps.find(({ id }) => id === '4.web01')?.state).toBe('Done')
  })
})

const PAUSE = JSON.stringify({ name: 'x', machines: {}, groups: [{ before: [{ manual: 'Wait.' }] }] })

describe('an Unplanned run', () => {
  it('fails over to the newest point and starts the machine; a second run finds it done', async () => {
    await engine.close()
    const report = await startPlan(plan(), 'Unplanned', options())
    expect(report).toMatchObject({
      state: 'Completed',
      machines: [{ outcome: 'Recovered', lossBytes: null }],
    })
    expect(report.lossSeconds).toBeGreaterThanOrEqual(0)
    expect(await stateOfReplica()).toBe('FailedOverWaitingCompletion')
    expect(told('stopped')).toMatchObject({ SECONDSITE_KIND: 'Unplanned' })
    expect(told('started')).toMatchObject({ SECONDSITE_REPLICA: place.path('replica') })
    await using replica = await openReplica({ directory: place.path('replica') })
    const failover = await replica.failover()
    const disk = failover?.disks[0] ?? expect.unreachable('no disk')
    expect(Buffer.from(await disk.read(0, disk.sizeBytes)).equals(readFileSync(place.path('os.raw')))).toBe(
      true,
    )
    await replica.close()
    const again = await startPlan(plan(), 'Unplanned', options())
    expect(again.machines[0]?.point).toEqual(report.machines[0]?.point)
    expect(again.state).toBe('Completed')
  })

  it('does not take a replica from a primary that replicates, unless the plan says so', async () => {
    const refused = await startPlan(plan(), 'Unplanned', options())
    expect(refused.steps.map(({ state, error }) => [state, error?.code])).toEqual([
      ['Done', undefined],
      ['Failed', 'PRIMARY_ALIVE'],
      ['Blocked', undefined],
    ])
    const fenced = await startPlan(plan({ fencePrimary: true }), 'Unplanned', options())
    expect(fenced.state).toBe('Completed')
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'REPLICA_FAILED_OVER' })
  })
})

describe.each(['Planned', 'Failback'] as const)('a %s run', (kind) => {
  it('prepares the primary and loses nothing', async () => {
    await machine.disks[0]?.write(128 * KIB, place.random.bytes(4 * KIB))
    await engine.close()
    const report = await startPlan(plan({ state: 'state' }), kind, options())
    expect(report).toMatchObject({ state: 'Completed', lossSeconds: 0 })
    expect(report.machines[0]).toMatchObject({ outcome: 'Recovered', lossBytes: 0 })
    await using replica = await openReplica({ directory: place.path('replica') })
    const failover = await replica.failover()
    const disk = failover?.disks[0] ?? expect.unreachable('no disk')
    expect(Buffer.from(await disk.read(0, disk.sizeBytes)).equals(readFileSync(place.path('os.raw')))).toBe(
      true,
    )
    engine = await place.open()
    expect(engine.machine('web01').state).toBe('PreparedForFailover')
  })

  it('stops where the engine of the primary still runs, and goes on when it does not', async () => {
    const first = await startPlan(plan({ state: 'state' }), kind, options())
    expect(first).toMatchObject({ state: 'Failed' })
    expect(first.steps.find(({ state }) => state === 'Failed')?.error?.code).toBe('STATE_IN_USE')
    await engine.close()
    expect(await continuePlan(first.runId, options())).toMatchObject({ state: 'Completed' })
  })

  it('is refused whole when a machine cannot be started', async () => {
    writeFileSync(place.path('before'), '')
    const { start: _start, ...rest } = plan().plan.machines['web01'] ?? expect.unreachable('no machine')
    const loaded = plan()
    const lacking = { ...loaded, plan: { ...loaded.plan, machines: { web01: rest } } }
    await expect(startPlan(lacking, kind, options())).rejects.toMatchObject({
      code: 'PLAN_INVALID',
      details: { machine: 'web01', setting: 'start' },
    })
    expect(existsSync(place.path('stopped'))).toBe(false)
    expect(machine.state).toBe('Replicating')
  })
})
