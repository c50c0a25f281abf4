/** Recovery plans carried out on machines in memory: order, errors, waiting, stopping, and going on. */

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  abandonPlan,
  continuePlan,
  listPlanRuns,
  parsePlan,
  type PlanReport,
  type PlanRunKind,
  planReport,
  SecondsiteError,
  startPlan,
} from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { describe, expect, it } from 'vitest'
import { CUT_MS, MANUAL as manual, PlanFolder, PlanWorld, shopPlan as plan } from './plan-world.js'

const START_MS = CUT_MS + 300_000

function statesOf(report: PlanReport): Record<string, string> {
  return Object.fromEntries(report.steps.map(({ id, state }) => [id, state]))
}

describe('a plan', () => {
  it.each<[PlanRunKind, string[]]>([
    ['Planned', ['shutdown', 'failover', 'boot db', 'boot web']],
    ['Unplanned', ['shutdown', 'failover', 'boot db', 'boot web']],
    ['Test', ['failover', 'boot db', 'boot web', 'cleanupTest']],
    ['Failback', ['shutdown', 'failback', 'boot db', 'boot web']],
  ])('run as %s does its verbs group by group', async (kind, phases) => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const loaded = plan({ top: 'testCleanup: Immediately' })
    const report = await startPlan(loaded, kind, { directory: folder.path, targets: world })
    expect(report.state).toBe('Completed')
    const reached = world.changes.map((change) => phases.findIndex((phase) => change.startsWith(phase)))
    expect(reached).toEqual([...reached].sort())
    expect(new Set(reached)).toEqual(new Set(phases.keys()))
    expect(new Set(world.calls.map((call) => call.split(' ')[2]))).toEqual(
      new Set(['db', 'web1', 'web2'].map((name) => `${report.runId}/${name}`)),
    )
    expect(world.openCount).toBe(0)
  })

  it.each<[PlanRunKind, string[]]>([
    ['Planned', ['failover db', 'failover web1', 'reverse db', 'boot db', 'boot web1']],
    ['Failback', ['failback db', 'failback web1', 'reverse db', 'boot db', 'boot web1']],
    ['Unplanned', ['failover db', 'failover web1', 'boot db', 'boot web1']],
    ['Test', ['failover db', 'failover web1', 'boot db', 'boot web1']],
  ])('run as %s reverses where it says so, when the whole group is over there', async (kind, changes) => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const machines = `
  db: { replica: db, state: s, reverse: { state: t, home: h } }
  web1: { replica: web1 }`
    const groups = '[{ machines: [db, web1] }, { type: Boot, machines: [db, web1] }]'
    const text = `name: shop\ntestCleanup: Keep\nmachines:${machines}\ngroups: ${groups}\n`
    const report = await startPlan(parsePlan(text), kind, { directory: folder.path, targets: world })
    expect(world.changes).toEqual(changes)
    const isOver = kind === 'Test' ? null : false
    expect(report.machines.map(({ name, isProtected }) => [name, isProtected])).toEqual([
      ['db', changes.includes('reverse db') || isOver],
      ['web1', isOver],
    ])
  })

  it('says before what it will ask of a machine, and after what its failover has made', async () => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const options = { directory: folder.path, targets: world }
    const { runId } = await startPlan(plan(), 'Test', options)
    await continuePlan(runId, options)
    expect(world.announced['db']).toEqual(['failover', 'boot', 'cleanupTest'])
    expect(world.references.filter((one) => one.includes(' db '))).toEqual([
      'boot db copy of db',
      'cleanupTest db copy of db',
    ])
  })

  it('works on the machines of a group in parallel, but on no more than allowed', async () => {
    using folder = new PlanFolder()
    let [now, most] = [0, 0]
    const world = new PlanWorld({
      during: async (verb) => {
        if (verb !== 'failover') return
        now += 1
        most = Math.max(most, now)
        await new Promise((resolve) => setTimeout(resolve, 5))
        now -= 1
      },
    })
    await startPlan(plan({ top: 'parallelMachines: 2' }), 'Unplanned', {
      directory: folder.path,
      targets: world,
    })
    expect(most).toBe(2)
  })

  it('reports recovery times of machines and plan, and what the points lose', async () => {
    using folder = new PlanFolder()
    const clock = new ManualClock(START_MS)
    const world = new PlanWorld({ during: (verb) => clock.advance(verb === 'boot' ? 2000 : 1000) })
    const loaded = plan({ top: 'parallelMachines: 1' })
    const options = { directory: folder.path, targets: world, clock, operator: 'ada' }
    const report = await startPlan(loaded, 'Unplanned', options)
    // 3 shutdowns and 3 failovers of 1 s, then 3 boots of 2 s, one after the other.
    expect(report).toMatchObject({
      runId: 'shop-20261121T100000Z-Unplanned',
      state: 'Completed',
      startedMs: START_MS,
      recoveryTimeMs: 12_000,
      lossSeconds: 40,
      waitedMs: 0,
      sessions: [{ operator: 'ada', startedMs: START_MS, endedMs: START_MS + 12_000 }],
    })
    expect(
      report.machines.map(({ name, recoveryTimeMs, lossSeconds }) => [name, recoveryTimeMs, lossSeconds]),
    ).toEqual([
      ['db', 8000, 20],
      ['web1', 10_000, 40],
      ['web2', 12_000, 40],
    ])
    expect(report.machines[0]?.point).toEqual({ sequence: 402, timeMs: CUT_MS, kind: 'crash-consistent' })
    expect(planReport(report.runId, { directory: folder.path })).toEqual(report)
  })

  it('waits at a manual step and goes on when somebody continues', async () => {
    using folder = new PlanFolder()
    const clock = new ManualClock(START_MS)
    const world = new PlanWorld()
    const options = { directory: folder.path, targets: world, clock }
    const first = await startPlan(plan({ last: manual }), 'Unplanned', options)
    expect(first.state).toBe('WaitingForInput')
    expect(first.steps.find(({ state }) => state === 'Waiting')).toMatchObject({
      id: '4.before.1',
      text: 'Set the address.',
    })
    expect(world.changes).not.toContain('boot web1')
    await clock.advance(60_000)
    const second = await continuePlan(first.runId, { ...options, operator: 'grace' })
    expect(second).toMatchObject({ state: 'Completed', waitedMs: 60_000, recoveryTimeMs: 60_000 })
    expect(second.steps.find(({ type }) => type === 'manual')).toMatchObject({
      state: 'Done',
      decidedBy: 'grace',
    })
    expect(second.sessions).toHaveLength(2)
  })

  it('keeps the test copies until somebody has looked at them', async () => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const options = { directory: folder.path, targets: world }
    const first = await startPlan(plan(), 'Test', options)
    expect(first).toMatchObject({ state: 'WaitingForInput' })
    expect(first.machines.map(({ outcome }) => outcome)).toEqual(['Recovered', 'Recovered', 'Recovered'])
    expect(world.changes.filter((change) => change.startsWith('cleanupTest'))).toEqual([])
    expect(await continuePlan(first.runId, options)).toMatchObject({ state: 'Completed' })
    expect(world.changes.filter((change) => change.startsWith('cleanupTest'))).toHaveLength(3)
  })
})

/** A world in which one verb on one machine fails so many times. */
function failing(verb: string, machine: string, times = 1): PlanWorld {
  let left = times
  return new PlanWorld({
    during: (one, name) => {
      if (one !== verb || name !== machine || left === 0) return
      left -= 1
      throw new SecondsiteError('REPLICA_INVALID_STATE', { message: 'not now', details: { machine } })
    },
  })
}

function throwing(): void {
  throw new Error('a listener of its own making')
}

describe('an error', () => {
  it.each<PlanRunKind>(['Planned', 'Failback'])(
    'stops a %s run, which tries it again when continued',
    async (kind) => {
      using folder = new PlanFolder()
      const verb = kind === 'Planned' ? 'failover' : 'failback'
      const world = failing(verb, 'web1')
      const options = { directory: folder.path, targets: world }
      const first = await startPlan(plan(), kind, options)
      expect(first.state).toBe('Failed')
      expect(first.steps.find(({ id }) => id === '2.web1')).toMatchObject({
        state: 'Failed',
        error: { code: 'REPLICA_INVALID_STATE', message: 'not now', details: { machine: 'web1' } },
      })
      expect(first.machines.map(({ name, outcome }) => [name, outcome])).toEqual([
        ['db', 'Open'],
        ['web1', 'NotRecovered'],
        ['web2', 'Open'],
      ])
      expect(world.changes.some((change) => change.startsWith('boot'))).toBe(false)
      const second = await continuePlan(first.runId, options)
      expect(second.state).toBe('Completed')
      expect(second.steps.find(({ id }) => id === '2.web1')?.attempts).toHaveLength(2)
      expect(world.calls.filter((call) => call.startsWith(`${verb} db`))).toHaveLength(1)
    },
  )

  it('lets what is in flight finish and begins nothing more', async () => {
    using folder = new PlanFolder()
    const world = failing('failover', 'web1')
    const loaded = plan({ top: 'parallelMachines: 2' })
    const report = await startPlan(loaded, 'Planned', { directory: folder.path, targets: world })
    expect(statesOf(report)).toMatchObject({ '2.db': 'Done', '2.web1': 'Failed', '2.web2': 'Pending' })
  })

  it('does not stop an Unplanned run; the machine that failed is not started, and is tried again when continued', async () => {
    using folder = new PlanFolder()
    const world = failing('failover', 'db')
    const options = { directory: folder.path, targets: world }
    const first = await startPlan(plan(), 'Unplanned', options)
    expect(first).toMatchObject({ state: 'CompletedWithErrors', recoveryTimeMs: null, lossSeconds: null })
    expect(statesOf(first)).toMatchObject({ '2.db': 'Failed', '3.db': 'Blocked', '4.web1': 'Done' })
    expect(first.steps.find(({ id }) => id === '3.db')?.reason).toBe('failover db has failed')
    const second = await continuePlan(first.runId, options)
    expect(second.state).toBe('Completed')
    expect(world.changes.slice(-2)).toEqual(['failover db', 'boot db'])
  })

  it('of a source that is gone does not keep an Unplanned run from failing over', async () => {
    using folder = new PlanFolder()
    const world = failing('shutdown', 'db')
    const report = await startPlan(plan(), 'Unplanned', { directory: folder.path, targets: world })
    expect(report.state).toBe('CompletedWithErrors')
    expect(statesOf(report)).toMatchObject({ '1.db': 'Failed', '2.db': 'Done', '3.db': 'Done' })
  })

  it('does not stop a Test run either, and the copies are removed all the same', async () => {
    using folder = new PlanFolder()
    const world = failing('boot', 'web2')
    const loaded = plan({ top: 'testCleanup: Immediately' })
    const report = await startPlan(loaded, 'Test', { directory: folder.path, targets: world })
    expect(report.state).toBe('CompletedWithErrors')
    expect(world.changes.filter((change) => change.startsWith('cleanupTest'))).toHaveLength(3)
  })

  it('may be skipped: what it stands for counts as done by hand', async () => {
    using folder = new PlanFolder()
    const world = failing('failover', 'db', 100)
    const options = { directory: folder.path, targets: world }
    const first = await startPlan(plan(), 'Planned', options)
    const second = await continuePlan(first.runId, { ...options, decision: 'skip', operator: 'ada' })
    expect(second.state).toBe('Completed')
    expect(second.steps.find(({ id }) => id === '2.db')).toMatchObject({ state: 'Skipped', decidedBy: 'ada' })
    expect(world.changes).toContain('boot db')
  })

  it('of an action that may fail is a warning', async () => {
    using folder = new PlanFolder()
    const loaded = plan({ failover: '    after: [{ command: ["false"], mayFail: true }]' })
    const report = await startPlan(loaded, 'Planned', { directory: folder.path, targets: new PlanWorld() })
    expect(report.state).toBe('Completed')
    expect(report.steps.find(({ id }) => id === '2.after.1')).toMatchObject({
      state: 'Failed',
      error: { code: 'PLAN_ACTION_FAILED', details: { exitCode: 1 } },
    })
  })

  it('before the first step refuses a Planned run whole, and nothing is journaled', async () => {
    using folder = new PlanFolder()
    const world = new PlanWorld({ missing: ['web2'] })
    const options = { directory: folder.path, targets: world }
    await expect(startPlan(plan(), 'Planned', options)).rejects.toMatchObject({ code: 'REPLICA_NOT_FOUND' })
    expect(world.calls).toEqual([])
    expect(listPlanRuns(options)).toEqual([])
    expect(world.openCount).toBe(0)
    const unplanned = await startPlan(plan(), 'Unplanned', options)
    expect(unplanned.machines.map(({ outcome }) => outcome)).toEqual([
      'Recovered',
      'Recovered',
      'NotRecovered',
    ])
  })

  it('before the first step is a variable that a call needs and nobody has set', async () => {
    using folder = new PlanFolder()
    const http =
      '{ url: "http://127.0.0.1:1/", headers: { Authorization: { environment: SECONDSITE_TEST_UNSET } } }'
    const loaded = plan({ failover: `    after: [{ http: ${http} }]` })
    const options = { directory: folder.path, targets: new PlanWorld() }
    await expect(startPlan(loaded, 'Planned', options)).rejects.toMatchObject({
      code: 'PLAN_ACTION_FAILED',
      details: { variable: 'SECONDSITE_TEST_UNSET' },
    })
  })

  it('of a listener is no error of the run', async () => {
    using folder = new PlanFolder()
    const options = { directory: folder.path, targets: new PlanWorld(), onEvent: throwing }
    expect(await startPlan(plan(), 'Planned', options)).toMatchObject({ state: 'Completed' })
  })
})

describe('a stop', () => {
  it('ends verbs in flight softly, and continuing repeats them', async () => {
    using folder = new PlanFolder()
    const stop = new AbortController()
    let isFirst = true
    const world = new PlanWorld({
      during: (verb, _machine, { signal }) => {
        if (verb !== 'failover' || !isFirst) return
        return new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
          stop.abort()
        })
      },
    })
    const options = { directory: folder.path, targets: world }
    const first = await startPlan(plan(), 'Planned', { ...options, signal: stop.signal })
    expect(first.state).toBe('Aborted')
    expect(statesOf(first)).toMatchObject({ '2.db': 'Interrupted', '3.db': 'Pending' })
    isFirst = false
    expect(await continuePlan(first.runId, options)).toMatchObject({ state: 'Completed' })
    expect(world.changes).toHaveLength(9)
  })

  it('of a command leaves its step uncertain: continuing needs a decision', async () => {
    using folder = new PlanFolder()
    const stop = new AbortController()
    const loaded = plan({ failover: '    after: [{ command: [sleep, "600"] }]' })
    const options = { directory: folder.path, targets: new PlanWorld() }
    const onEvent = (event: { type: string; step: { id: string }; state?: string }): void => {
      if (event.type === 'step' && event.step.id === '2.after.1' && event.state === 'Running') stop.abort()
    }
    const first = await startPlan(loaded, 'Unplanned', { ...options, signal: stop.signal, onEvent })
    expect(first.state).toBe('Aborted')
    await expect(continuePlan(first.runId, options)).rejects.toMatchObject({
      code: 'PLAN_DECISION_NEEDED',
      details: { step: '2.after.1', startedMs: expect.any(Number) },
    })
    const second = await continuePlan(first.runId, { ...options, decision: 'skip' })
    expect(second.state).toBe('Completed')
    expect(statesOf(second)['2.after.1']).toBe('Skipped')
  })
})

describe('runs of a plan', () => {
  it('are one at a time: another process, and an unfinished run', async () => {
    using folder = new PlanFolder()
    const options = { directory: folder.path, targets: new PlanWorld() }
    let inside: unknown
    const during = async (): Promise<void> => {
      inside ??= await startPlan(plan(), 'Planned', options).catch((error: unknown) => error)
    }
    await startPlan(plan(), 'Planned', { directory: folder.path, targets: new PlanWorld({ during }) })
    expect(inside).toMatchObject({ code: 'PLAN_RUN_IN_USE', details: { processId: process.pid } })

    const waiting = await startPlan(plan({ last: manual }), 'Planned', options)
    await expect(startPlan(plan(), 'Unplanned', options)).rejects.toMatchObject({
      code: 'PLAN_RUN_UNFINISHED',
      details: { run: waiting.runId },
    })
    expect(abandonPlan(waiting.runId, { directory: folder.path, operator: 'ada' }).state).toBe('Abandoned')
    expect(await startPlan(plan(), 'Unplanned', options)).toMatchObject({ state: 'Completed' })
  })

  it('for a disaster do not wait for a drill', async () => {
    using folder = new PlanFolder()
    const options = { directory: folder.path, targets: new PlanWorld() }
    const drill = await startPlan(plan(), 'Test', options)
    expect(drill.state).toBe('WaitingForInput')
    await expect(startPlan(plan(), 'Test', options)).rejects.toMatchObject({ code: 'PLAN_RUN_UNFINISHED' })
    expect(await startPlan(plan(), 'Unplanned', options)).toMatchObject({ state: 'Completed' })
    expect(await continuePlan(drill.runId, options)).toMatchObject({ state: 'Completed' })
  })

  it('are listed in the order of their start, with a second one in the same second', async () => {
    using folder = new PlanFolder()
    const clock = new ManualClock(START_MS)
    const options = { directory: folder.path, targets: new PlanWorld(), clock }
    const ids: string[] = []
    for (let round = 0; round < 2; round += 1) ids.push((await startPlan(plan(), 'Planned', options)).runId)
    expect(ids).toEqual(['shop-20261121T100000Z-Planned', 'shop-20261121T100000Z-Planned-2'])
    expect(listPlanRuns(options).map((run) => run.runId)).toEqual(ids)
    expect(listPlanRuns({ directory: join(folder.path, 'nowhere') })).toEqual([])
  })

  it('that are over cannot be continued or abandoned, and others are not there', async () => {
    using folder = new PlanFolder()
    const options = { directory: folder.path, targets: new PlanWorld() }
    const { runId } = await startPlan(plan(), 'Planned', options)
    await expect(continuePlan(runId, options)).rejects.toMatchObject({ code: 'PLAN_RUN_FINISHED' })
    expect(() => abandonPlan(runId, options)).toThrow(expect.objectContaining({ code: 'PLAN_RUN_FINISHED' }))
    for (const other of [
      '',
      'shop',
      '../../etc/passwd',
      'shop-20261121T100000Z-Planned',
      'x/../shop-20261121T100000Z-Test',
    ])
      await expect(continuePlan(other, options), other).rejects.toMatchObject({ code: 'PLAN_RUN_NOT_FOUND' })
    expect(readdirSync(folder.path)).toEqual(['shop'])
  })

  it('refuse a decision that fits nothing', async () => {
    using folder = new PlanFolder()
    const options = { directory: folder.path, targets: new PlanWorld() }
    const { runId } = await startPlan(plan({ last: manual }), 'Planned', options)
    await expect(continuePlan(runId, { ...options, decision: 'redo' })).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    const report = await continuePlan(runId, { ...options, decision: 'skip' })
    expect(report).toMatchObject({ state: 'Completed' })
    expect(statesOf(report)['4.before.1']).toBe('Skipped')
  })
})
