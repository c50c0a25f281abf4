/**
 * Recovery plans that turn replication round: away and home by one plan, with no byte moved that nobody wrote, and whatever
 * is killed on the way, the run goes on.
 */

import { spawn } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  abandonPlan,
  continuePlan,
  Engine,
  forecastPlan,
  forecastText,
  listPlanRuns,
  type LoadedPlan,
  openReplica,
  type PlanReport,
  type PlanRunKind,
  readPlan,
  ReplicaTargets,
  reverseReplication,
  reportHtml,
  reportText,
  startPlan,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { KIB, MIB, Workplace } from './workplace.js'

const child = fileURLToPath(new URL('plan-reverse-child.mjs', import.meta.url))

let place: Workplace
let targets: ReplicaTargets
/** What a test has opened. */
let engines: Engine[]

beforeEach(() => {
  place = new Workplace(11)
  targets = new ReplicaTargets()
  engines = []
})

afterEach(async () => {
  await targets.close()
  for (const engine of engines) await engine.close()
  place.remove()
})

async function open(stateDirectory: string): Promise<Engine> {
  const engine = await Engine.open({ stateDirectory: place.path(stateDirectory) })
  engines.push(engine)
  return engine
}

/** Machines that replicate from home, as one group where there are several, and are shut down. */
async function protect(names: readonly string[]): Promise<void> {
  const engine = await open('state')
  for (const name of names) {
    const disks = [place.makeDisk(`${name}.raw`, MIB)]
    const machine = await engine.enable({
      name,
      disks,
      replica: { directory: place.path(`replica-${name}`) },
    })
    await machine.startInitialReplication()
    await machine.disks[0]?.write(64 * KIB, place.random.bytes(8 * KIB))
  }
  if (names.length > 1) await engine.createGroup({ name: 'shop', machines: [...names] })
  await engine.close()
}

/** A command that leaves what it was told in a file. */
function teller(file: string): string[] {
  return ['sh', '-c', `env | grep -A2 ^SECONDSITE_ >${place.path(file)}`]
}

function plan(names: readonly string[], settings: object = {}): LoadedPlan {
  const machines = Object.fromEntries(
    names.map((name) => [
      name,
      {
        replica: `replica-${name}`,
        state: 'state',
        reverse: { state: 'away', home: `home-${name}` },
        stop: ['true'],
        start: teller(`started-${name}`),
        ...settings,
      },
    ]),
  )
  const groups = [
    { type: 'Shutdown', machines: names },
    { machines: names },
    { type: 'Boot', machines: names },
  ]
  const file = place.path('plan.yaml')
  writeFileSync(file, JSON.stringify({ name: 'shop', machines, groups }))
  return readPlan(file)
}

function options() {
  return { directory: place.path('runs'), targets }
}

/** The run brought every machine where it is protected, with nothing to compare or send. */
function expectBrought(report: PlanReport, names: readonly string[]): void {
  expect(report).toMatchObject({ state: 'Completed', lossSeconds: 0 })
  expect(report.machines.map(({ name, outcome, isProtected }) => [name, outcome, isProtected])).toEqual(
    names.map((name) => [name, 'Recovered', true]),
  )
  const reversals = report.steps.filter(({ title }) => title.startsWith('reverse '))
  expect(reversals.map(({ result }) => result)).toMatchObject(
    names.map(() => ({ state: 'Replicating', candidateBytes: 0, lostLogs: [] })),
  )
}

/** Replication goes on from the machine in this engine. */
async function expectProtected(
  stateDirectory: string,
  name: string,
  disk: string,
  image: string,
): Promise<void> {
  const engine = await open(stateDirectory)
  const machine = engine.machine(name)
  expect(machine.state).toBe('Replicating')
  await machine.disks[0]?.write(128 * KIB, place.random.bytes(4 * KIB))
  await machine.replicate()
  expect(readFileSync(place.path(disk)).equals(readFileSync(place.path(image))), name).toBe(true)
  await engine.close()
}

const awayOf = (name: string): string => `replica-${name}/${name}.raw.raw`

describe('a plan that reverses', () => {
  it('goes away and home again by the same file, and moves no byte that nobody wrote', async () => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    const disk = readFileSync(place.path('web01.raw'))
    const images = ['web01.raw', awayOf('web01')]
    const written = (): bigint[] => images.map((name) => statSync(place.path(name), { bigint: true }).mtimeNs)
    const away = await startPlan(loaded, 'Planned', options())
    expectBrought(away, ['web01'])
    expect(away.steps.map(({ title }) => title)).toEqual([
      'shutdown web01',
      'failover web01',
      'reverse web01',
      'boot web01',
    ])
    // The replica had still to be brought what was written before; from here on nothing is.
    const before = written()
    expect(told('started-web01')).toMatchObject({
      SECONDSITE_STATE: place.path('away'),
      SECONDSITE_HOME: place.path('home-web01'),
      SECONDSITE_DISKS: place.path(awayOf('web01')),
      SECONDSITE_REPLICA: place.path('replica-web01'),
    })
    expectBrought(await startPlan(loaded, 'Failback', options()), ['web01'])
    expect(told('started-web01')).toMatchObject({
      SECONDSITE_KIND: 'Failback',
      SECONDSITE_STATE: place.path('state'),
      SECONDSITE_HOME: place.path('replica-web01'),
      SECONDSITE_DISKS: place.path('web01.raw'),
    })
    expect(written()).toEqual(before)
    expect(readFileSync(place.path('web01.raw')).equals(disk)).toBe(true)
    expect(readFileSync(place.path(awayOf('web01'))).equals(disk)).toBe(true)
    const home = await open('state')
    expect(await home.machine('web01').verify()).toMatchObject({ equal: true })
    await home.close()
    await expectProtected('state', 'web01', 'web01.raw', awayOf('web01'))
    expectBrought(await startPlan(loaded, 'Planned', options()), ['web01'])
    await expectProtected('away', 'web01', 'web01.raw', awayOf('web01'))
  })

  it('brings what was written over there home, and finds a machine done that is there already', async () => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    await startPlan(loaded, 'Planned', options())
    await expectProtected('away', 'web01', awayOf('web01'), 'web01.raw')
    const again = await startPlan(loaded, 'Planned', options())
    expectBrought(again, ['web01'])
    expect(again.machines[0]?.point).toBeNull()
    expectBrought(await startPlan(loaded, 'Failback', options()), ['web01'])
    await expectProtected('state', 'web01', 'web01.raw', awayOf('web01'))
  })

  it('takes machines of one engine in parallel, and their group along', async () => {
    const names = ['web01', 'db01', 'mail01']
    await protect(names)
    expectBrought(await startPlan(plan(names), 'Planned', options()), names)
    const away = await open('away')
    expect(
      away
        .group('shop')
        .members.map(({ name }) => name)
        .toSorted(),
    ).toEqual(names.toSorted())
    expect((await away.group('shop').replicate()).groupPointId).not.toBeNull()
    await away.close()
    const home = await open('state')
    expect([home.machines, home.groups]).toEqual([[], []])
    await home.close()
    expectBrought(await startPlan(plan(names), 'Failback', options()), names)
  })

  it('that is stopped between two reversals begins no other, and goes on', async () => {
    const names = ['web01', 'db01']
    await protect(names)
    const stop = new AbortController()
    const first = new ReplicaTargets({
      step: (name) => {
        if (name === 'reverse.before-retiring') stop.abort()
      },
    })
    const stopped = await startPlan(plan(names), 'Planned', {
      ...options(),
      targets: first,
      signal: stop.signal,
    })
    const reversals = stopped.steps.filter(({ title }) => title.startsWith('reverse '))
    expect(reversals.map(({ state }) => state).toSorted()).toEqual(['Done', 'Interrupted'])
    expectBrought(await continuePlan(stopped.runId, options()), names)
  })

  it.each([
    ['Planned', 'planned-failover.before-reversing'],
    ['Planned', 'commit.before-settled'],
    ['Planned', 'reverse.before-retiring'],
    ['Planned', 'reverse.before-adopting'],
    ['Planned', 'reverse.before-ending'],
    ['Failback', 'reverse.before-protecting'],
  ] as const)('whose %s run is killed at %s goes on', async (kind, step) => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    if (kind === 'Failback') await startPlan(loaded, 'Planned', options())
    await killed(kind, step)
    const run = listPlanRuns(options()).at(-1)
    expect(run).toMatchObject({ state: 'InProgress' })
    const report = await continuePlan(run?.runId ?? '', options())
    expectBrought(report, ['web01'])
    expect(report.steps.map(({ title, attempts }) => [title, attempts.length])).toEqual([
      ['shutdown web01', 1],
      [kind === 'Planned' ? 'failover web01' : 'failback web01', 1],
      ['reverse web01', 2],
      ['boot web01', 1],
    ])
    const [state, disk, image] = ['away', awayOf('web01'), 'web01.raw'] as const
    await (kind === 'Planned'
      ? expectProtected(state, 'web01', disk, image)
      : expectProtected('state', 'web01', image, disk))
  })

  it('whose run was given up in the middle of a reversal is finished by the next run', async () => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    await killed('Planned', 'reverse.before-adopting')
    const run = listPlanRuns(options()).at(-1)
    abandonPlan(run?.runId ?? '', options())
    expectBrought(await startPlan(loaded, 'Planned', options()), ['web01'])
    await expectProtected('away', 'web01', awayOf('web01'), 'web01.raw')
  })

  it('stops at a reversal that fails, with nothing started, and says that nothing protects the machine', async () => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    // Somebody has the state directory over there.
    const other = await open('away')
    const stopped = await startPlan(loaded, 'Planned', options())
    expect(stopped.state).toBe('Failed')
    expect(stopped.steps.map(({ state, error }) => [state, error?.code])).toEqual([
      ['Done', undefined],
      ['Done', undefined],
      ['Failed', 'STATE_IN_USE'],
      ['Pending', undefined],
    ])
    expect(stopped.machines[0]).toMatchObject({ outcome: 'Open', isProtected: false })
    expect(reportText(stopped)).toMatch(/^web01 .* no$/m)
    await other.close()
    const report = await continuePlan(stopped.runId, options())
    expectBrought(report, ['web01'])
    expect(reportText(report)).toMatch(/^web01 .* yes$/m)
    expect(reportHtml(report)).toContain('<th>protected</th>')
  })
})

describe('a dry run of it', () => {
  it('says where the machine would replicate to, and that one without is not protected', async () => {
    await protect(['web01'])
    const reversed = await forecastPlan(plan(['web01']), 'Planned', { targets })
    expect(reversed).toMatchObject({
      isReady: true,
      machines: [{ forecast: { isProtectedAfterwards: true } }],
    })
    expect(forecastText(reversed)).toContain(`web01: replicates to ${place.path('home-web01')} afterwards`)
    expect(forecastText(reversed)).toMatch(/reverse web01\n.*boot web01/)
    const plain = await forecastPlan(plan(['web01'], { reverse: undefined }), 'Planned', { targets })
    expect(plain).toMatchObject({ isReady: true, machines: [{ forecast: { isProtectedAfterwards: false } }] })
    expect(forecastText(plain)).toContain('web01: is not protected afterwards: it has no "reverse"')
    expect(forecastText(plain)).not.toContain('reverse web01')
  })

  it('is not ready where the folder at home holds the replica of another machine', async () => {
    await protect(['web01', 'home'])
    const taken = { reverse: { state: 'away', home: 'replica-home' } }
    const forecast = await forecastPlan(plan(['web01'], taken), 'Planned', { targets })
    expect(forecast).toMatchObject({ isReady: false, machines: [{ error: { code: 'STORE_FOREIGN' } }] })
    await using replica = await openReplica({ directory: place.path('replica-home') })
    expect(await replica.state()).toBe('Replicating')
  })

  it('is not ready where the machine was failed over as unplanned; once that is reversed, the plan leads home', async () => {
    await protect(['web01'])
    const loaded = plan(['web01'])
    expect(await startPlan(loaded, 'Unplanned', options())).toMatchObject({ state: 'Completed' })
    const forecast = await forecastPlan(loaded, 'Planned', { targets })
    expect(forecast).toMatchObject({ isReady: false, machines: [{ error: { code: 'INVALID_STATE' } }] })
    const stopped = await startPlan(loaded, 'Planned', options())
    expect(stopped.steps.map(({ state, error }) => error?.code ?? state)).toEqual([
      'Done',
      'Done',
      'INVALID_STATE',
      'Pending',
    ])
    abandonPlan(stopped.runId, options())
    await reverseByHand('web01')
    expectBrought(await startPlan(loaded, 'Failback', options()), ['web01'])
    await expectProtected('state', 'web01', 'web01.raw', awayOf('web01'))
  })

  it('of a Failback says that there is no way home yet, before the machine went away', async () => {
    await protect(['web01'])
    const forecast = await forecastPlan(plan(['web01']), 'Failback', { targets })
    expect(forecast).toMatchObject({ isReady: false, machines: [{ error: { code: 'REPLICA_NOT_FOUND' } }] })
  })

  it.each(['Unplanned', 'Test'] as const)('of an %s run reverses nothing', async (kind) => {
    await protect(['web01'])
    const forecast = await forecastPlan(plan(['web01']), kind, { targets })
    expect(forecastText(forecast)).not.toContain('reverse web01')
    const protection = forecast.machines[0]?.forecast?.isProtectedAfterwards
    expect(protection).toBe(kind === 'Test' ? undefined : false)
  })
})

function told(file: string): Record<string, string> {
  const lines = readFileSync(place.path(file), 'utf8').trim().split('\n')
  return Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  )
}

/** What `secondsite reverse` does behind an unplanned failover, until both sides are equal. */
async function reverseByHand(name: string): Promise<void> {
  const [home, engine] = [await open('state'), await open('away')]
  await using replica = await openReplica({ directory: place.path(`replica-${name}`) })
  const directory = place.path(`home-${name}`)
  const former = { engine: home }
  const { machine } = await reverseReplication(replica, { engine, former, directory, loser: 'primary' })
  while (machine.state !== 'Replicating')
    await new Promise((resolve) => {
      setTimeout(resolve, 20)
    })
  await engine.close()
  await home.close()
}

/** A run in a process of its own that is ended with SIGKILL at a step. */
async function killed(kind: PlanRunKind, step: string): Promise<void> {
  const args = [child, place.path('runs'), place.path('plan.yaml'), kind, step]
  const one = spawn(process.execPath, args, { stdio: 'inherit' })
  const signal = await new Promise((resolve) => {
    one.once('exit', (_code, by) => resolve(by))
  })
  expect(signal).toBe('SIGKILL')
}
