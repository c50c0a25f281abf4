/**
 * Random recovery plans, killed at every line of their journal and continued.
 *
 * A run is carried out once, and for each change of the world it is noted how many lines the journal had then. Every
 * prefix of the journal, with a torn piece of the next line behind it, is a state that a kill can leave; the world that
 * belongs to it has all changes that were made before the last line of the prefix, and of those made at that moment any
 * number. From each such state the run is continued. Invariants:
 *
 * - It comes to its end, with every step done, or skipped by decision.
 * - Verbs on machines that are journaled as done are not called again; each has changed the world exactly once.
 * - A call that says nothing of being idempotent is made exactly once: where it may have been made, the run asks.
 * - An idempotent call is made at least once, and not again when it is journaled as done.
 * - Runs that stop at errors change the world in the order of the plan.
 */

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import {
  continuePlan,
  isSecondsiteError,
  type LoadedPlan,
  type PlanReport,
  type PlanRunKind,
  type PlanStep,
  parsePlan,
  planStages,
  SecondsiteError,
  startPlan,
} from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PlanFolder, PlanWorld } from '../scenarios/plan-world.js'

const KINDS: readonly PlanRunKind[] = ['Planned', 'Unplanned', 'Test', 'Failback']
const seedCount = process.env['SECONDSITE_SLOW'] ? 400 : 12

let server: Server
let url = ''
/** Told of each call that arrives, by the id of its step. */
let onCall = (_step: string): void => undefined

beforeAll(async () => {
  server = createServer((request, response) => {
    onCall(String(request.headers['idempotency-key']).split('/')[1] ?? '')
    request.resume()
    response.end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
})

afterAll(async () => {
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
})

function randomPlan(random: SeededRandom): LoadedPlan {
  const machines = Array.from({ length: 1 + random.below(4) }, (_, index) => `m${index}`)
  const some = (): string[] => machines.filter(() => random.below(3) > 0)
  const actions = (): object[] => Array.from({ length: random.below(3) }, () => randomAction(random))
  const group = (type: string, members: string[]) => ({
    type,
    machines: members,
    before: actions(),
    after: [...actions(), { http: { url } }],
  })
  const split = random.below(machines.length + 1)
  const groups = [
    group('Shutdown', some()),
    group('Failover', machines.slice(0, split)),
    group('Failover', machines.slice(split)),
    group('Boot', some()),
  ].filter((one) => random.below(8) > 0 || one.type === 'Failover')
  return parsePlan(
    JSON.stringify({
      name: 'random',
      parallelMachines: 1 + random.below(4),
      testCleanup: ['Wait', 'Immediately', 'Keep'][random.below(3)],
      machines: Object.fromEntries(machines.map((name) => [name, { replica: name }])),
      groups,
    }),
  )
}

function randomAction(random: SeededRandom): object {
  const on = KINDS.filter(() => random.below(4) > 0)
  const kinds = on.length > 0 ? { on } : {}
  if (random.below(4) === 0) return { manual: 'Look at it.', ...kinds }
  return { http: { url }, idempotent: random.below(2) === 0, ...kinds }
}

/** What outlives a process: changes and calls, in order, and errors that are still to come. */
interface Effects {
  readonly made: string[]
  readonly failures: Set<string>
}

/** Machines and server that keep what is done to them in `effects`. */
function worldOver(effects: Effects, onEffect: (what: string) => void): PlanWorld {
  const tell = (what: string): void => {
    effects.made.push(what)
    onEffect(what)
  }
  const world = new PlanWorld({
    during: async (verb, machine) => {
      await Promise.resolve()
      if (effects.failures.delete(`${verb} ${machine}`))
        throw new SecondsiteError('REPLICA_INVALID_STATE', { message: 'not yet' })
    },
    onChange: tell,
  })
  world.changes.push(...effects.made.filter((what) => !what.startsWith('call ')))
  onCall = (step) => tell(`call ${step}`)
  return world
}

/** Continues until the end, and decides as somebody who looks whether a call was made. */
async function toTheEnd(
  first: PlanReport | string,
  options: { directory: string; targets: PlanWorld },
  effects: Effects,
): Promise<PlanReport> {
  let report = typeof first === 'string' ? undefined : first
  const runId = typeof first === 'string' ? first : first.runId
  let decision: 'redo' | 'skip' | undefined
  for (let round = 0; round < 50 && report?.state !== 'Completed'; round += 1) {
    try {
      report = await continuePlan(runId, { ...options, ...(decision && { decision }) })
      decision = undefined
    } catch (error) {
      if (!isSecondsiteError(error, 'PLAN_DECISION_NEEDED')) throw error
      decision = effects.made.includes(`call ${String(error.details['step'])}`) ? 'skip' : 'redo'
    }
  }
  return report ?? expect.unreachable('never continued')
}

interface Moment {
  readonly what: string
  readonly lineCount: number
}

interface Journey {
  readonly loaded: LoadedPlan
  readonly kind: PlanRunKind
  readonly runId: string
  readonly lines: readonly string[]
  readonly moments: readonly Moment[]
  /** Verbs that fail once. */
  readonly failures: readonly string[]
}

/** Carries a random plan out without a kill. */
async function journey(random: SeededRandom, folder: PlanFolder): Promise<Journey> {
  const loaded = randomPlan(random)
  const kind = KINDS[random.below(4)] ?? 'Test'
  const verbs = stepsOf(loaded, kind).flatMap((step) =>
    step.type === 'machine' ? [`${step.verb} ${step.machine}`] : [],
  )
  const failures = verbs.filter(() => random.below(6) === 0)
  const effects: Effects = { made: [], failures: new Set(failures) }
  const moments: Moment[] = []
  const targets = worldOver(effects, (what) => moments.push({ what, lineCount: linesIn(folder).length }))
  const options = { directory: folder.path, targets }
  const report = await toTheEnd(await startPlan(loaded, kind, options), options, effects)
  expect(report.state).toBe('Completed')
  return { loaded, kind, runId: report.runId, lines: linesIn(folder), moments, failures }
}

function stepsOf(loaded: LoadedPlan, kind: PlanRunKind): PlanStep[] {
  return planStages(loaded.plan, kind).flatMap(({ steps }) => steps)
}

/** Lines of the only journal in a folder. */
function linesIn(folder: PlanFolder): string[] {
  const [file = ''] = readdirSync(join(folder.path, 'random')).filter((name) => name.endsWith('.jsonl'))
  return readFileSync(join(folder.path, 'random', file), 'utf8')
    .split('\n')
    .slice(0, -1)
}

/** What a journal line says of a step. */
interface Said {
  readonly type: string
  readonly step?: string
}

function saidIn(lines: readonly string[]): Said[] {
  return lines.map((line) => JSON.parse(line.slice(9)) as Said)
}

/** The world and the journal as a kill leaves them when the journal has so many lines. */
function killed(one: Journey, lineCount: number, random: SeededRandom, folder: PlanFolder): Effects {
  const next = one.lines[lineCount] ?? ''
  const torn = next.slice(0, random.below(next.length + 1))
  const whole = one.lines.slice(0, lineCount).map((line) => `${line}\n`)
  mkdirSync(join(folder.path, 'random'))
  writeFileSync(join(folder.path, 'random', `${one.runId}.jsonl`), whole.join('') + torn)
  const before = one.moments.filter((moment) => moment.lineCount < lineCount)
  const now = one.moments.filter((moment) => moment.lineCount === lineCount)
  const made = [...before, ...now.slice(0, random.below(now.length + 1))].map(({ what }) => what)
  const failed = saidIn(one.lines.slice(0, lineCount)).flatMap(({ type, step }) =>
    type === 'failed' ? [step] : [],
  )
  const steps = stepsOf(one.loaded, one.kind)
  const past = steps.flatMap((step) =>
    step.type === 'machine' && failed.includes(step.id) ? [`${step.verb} ${step.machine}`] : [],
  )
  return {
    made,
    failures: new Set(one.failures.filter((verb) => !past.includes(verb) && !made.includes(verb))),
  }
}

function check(
  one: Journey,
  lineCount: number,
  effects: Effects,
  targets: PlanWorld,
  report: PlanReport,
): void {
  expect(report.state).toBe('Completed')
  expect(new Set(report.steps.map(({ state }) => state))).toEqual(
    new Set(report.steps.some(({ state }) => state === 'Skipped') ? ['Done', 'Skipped'] : ['Done']),
  )
  const done = saidIn(one.lines.slice(0, lineCount)).flatMap(({ type, step }) =>
    type === 'done' ? [step] : [],
  )
  const count = (what: string): number => effects.made.filter((other) => other === what).length
  for (const step of stepsOf(one.loaded, one.kind)) {
    if (step.type === 'machine') {
      const verb = `${step.verb} ${step.machine}`
      expect(count(verb), verb).toBe(1)
      if (done.includes(step.id))
        expect(targets.calls.filter((call) => call.startsWith(`${verb} `))).toEqual([])
    } else if (step.type === 'http') {
      const calls = count(`call ${step.id}`)
      if (!step.action.idempotent || done.includes(step.id)) expect(calls, step.id).toBe(1)
      else expect(calls, step.id).toBeGreaterThanOrEqual(1)
    }
  }
  if (one.kind === 'Planned' || one.kind === 'Failback') expectInOrder(one, effects)
}

/** Later stages change nothing before earlier ones are through; a repeated call may come late. */
function expectInOrder({ loaded, kind }: Journey, { made }: Effects): void {
  const stages = planStages(loaded.plan, kind)
  const stageOf = (what: string): number =>
    stages.findIndex(({ steps }) =>
      steps.some(
        (step) => what === (step.type === 'machine' ? `${step.verb} ${step.machine}` : `call ${step.id}`),
      ),
    )
  const order = [...new Set(made)].map(stageOf)
  expect(order).toEqual([...order].sort((a, b) => a - b))
}

describe('a random plan, killed at every line of its journal', () => {
  it.each(Array.from({ length: seedCount }, (_, index) => index + 1))('seed %i', async (seed) => {
    const random = new SeededRandom(seed)
    using origin = new PlanFolder()
    const one = await journey(random, origin)
    for (let lineCount = 1; lineCount < one.lines.length; lineCount += 1) {
      using folder = new PlanFolder()
      const effects = killed(one, lineCount, random, folder)
      const targets = worldOver(effects, () => undefined)
      const report = await toTheEnd(one.runId, { directory: folder.path, targets }, effects)
      check(one, lineCount, effects, targets, report)
    }
  })
})
