/**
 * A dry run: what a plan would do now, with sizes and times, and nothing is changed.
 *
 * Each machine is resolved and asked what its failover would take, lose and copy. A machine that cannot answer is told
 * with its error, as that is what a dry run is for. Times of machines in parallel do not add up; those of groups do.
 */

import { type PlainError, throwIfAborted, toPlainError } from '../errors.js'
import {
  type ChoosingMachine,
  type ChosenPoint,
  chooseGroupCuts,
  type GroupChoices,
  isGroupChoice,
} from './group-choice.js'
import { checkVariables } from './http-call.js'
import type { Plan, PlanRunKind, PointChoice } from './plan.js'
import type { LoadedPlan, PlanProblem } from './plan-file.js'
import { type MachineVerb, type PlanStage, type PlanStep, planStages, stepsOf } from './steps.js'
import type { FailoverForecast, PlanTargets } from './targets.js'

/** What would become of a machine. */
export interface MachineForecast {
  readonly name: string
  readonly choice: PointChoice
  /** What its failover would do; `null` when the machine cannot be asked, or is not failed over. */
  readonly forecast: FailoverForecast | null
  readonly error: PlainError | null
}

/** What a step would do. */
export interface StepForecast {
  readonly step: PlanStep
  /** What is known to stand in its way. */
  readonly error: PlainError | null
}

/** What a plan would do. */
export interface PlanForecast {
  readonly plan: string
  readonly kind: PlanRunKind
  readonly warnings: readonly PlanProblem[]
  readonly machines: readonly MachineForecast[]
  /** In the order in which they are reached; those of a stage run in parallel. */
  readonly stages: readonly (readonly StepForecast[])[]
  /** Largest loss of all machines, in seconds; `null` while one is not known. */
  readonly lossSeconds: number | null
  /** Loss of all machines, in bytes; `null` while one is not known. */
  readonly lossBytes: number | null
  /** What has to be copied, in bytes, as far as it is known. */
  readonly copyBytes: number
  /** Time of the failovers, machines in parallel as the plan allows; without actions, starts and people; `null` when unknown. */
  readonly estimatedMs: number | null
  /** Whether every machine and call is ready as far as can be told. */
  readonly isReady: boolean
}

/** Options of {@link forecastPlan}. */
export interface ForecastOptions {
  readonly targets: PlanTargets
  readonly signal?: AbortSignal
}

/**
 * Says what a run would do, without doing anything.
 * @throws {ABORTED}; the errors of machines are in the forecast
 */
export async function forecastPlan(
  loaded: LoadedPlan,
  kind: PlanRunKind,
  options: ForecastOptions,
): Promise<PlanForecast> {
  const { plan, warnings } = loaded
  const stages = planStages(plan, kind)
  const machines = await machineForecasts(loaded, kind, stages, options)
  const errors = new Map(machines.flatMap(({ name, error }) => (error ? [[name, error] as const] : [])))
  const steps = stages.map((stage) => stage.steps.map((step) => ({ step, error: stepError(step, errors) })))
  const forecasts = machines.flatMap(({ forecast }) => (forecast ? [forecast] : []))
  const isKnown = forecasts.length === machines.length && machines.length > 0
  return {
    plan: plan.name,
    kind,
    warnings,
    machines,
    stages: steps,
    lossSeconds: isKnown ? folded(forecasts, 'lossSeconds', Math.max) : null,
    lossBytes: isKnown ? folded(forecasts, 'lossBytes', (a, b) => a + b) : null,
    copyBytes: forecasts.reduce((sum, { copyBytes }) => sum + copyBytes, 0),
    estimatedMs: estimateOf(plan, stages, machines),
    isReady: steps.flat().every(({ error }) => error === null),
  }
}

async function machineForecasts(
  loaded: LoadedPlan,
  kind: PlanRunKind,
  stages: readonly PlanStage[],
  { targets, signal }: ForecastOptions,
): Promise<MachineForecast[]> {
  const moved = new Map<string, PointChoice>()
  const verbs = new Map<string, MachineVerb[]>()
  for (const step of stepsOf(stages)) {
    if (step.type !== 'machine') continue
    verbs.set(step.machine, [...(verbs.get(step.machine) ?? []), step.verb])
    if (step.verb === 'failover' || step.verb === 'failback') moved.set(step.machine, step.choice)
  }
  const choices = await groupChoices(loaded, kind, moved, targets)
  const found: MachineForecast[] = []
  // One after the other: a dry run must not weigh on replicas that are being replicated into.
  for (const [name, choice] of moved) {
    throwIfAborted(signal)
    const refused = choices.refused.get(name)
    const chosen = choices.chosen.find(({ machine }) => machine === name)
    const asked = { name, choice, chosen, verbs: verbs.get(name) ?? [] }
    if (refused) found.push({ name, choice, forecast: null, error: toPlainError(refused) })
    else found.push(await machineForecast(loaded, kind, asked, targets))
  }
  return found
}

/** What machines of consistency groups would get now; one that cannot be asked tells so by itself. */
async function groupChoices(
  { plan, directory }: LoadedPlan,
  kind: PlanRunKind,
  moved: ReadonlyMap<string, PointChoice>,
  targets: PlanTargets,
): Promise<GroupChoices> {
  const machines: ChoosingMachine[] = []
  for (const [name, choice] of moved) {
    const machine = plan.machines[name]
    if (machine === undefined || !isGroupChoice(choice)) continue
    try {
      const target = await targets.resolve({ name, machine, directory, kind, verbs: [] })
      try {
        machines.push({ machine: name, choice, cuts: (await target.groupCuts?.()) ?? [] })
      } finally {
        await target.close?.()
      }
    } catch {
      // Its own forecast will say why.
    }
  }
  return chooseGroupCuts(machines)
}

interface MovedMachine {
  readonly name: string
  readonly choice: PointChoice
  /** What came of a choice that is made with others. */
  readonly chosen: ChosenPoint | undefined
  readonly verbs: readonly MachineVerb[]
}

async function machineForecast(
  { plan, directory }: LoadedPlan,
  kind: PlanRunKind,
  { name, choice, chosen, verbs }: MovedMachine,
  targets: PlanTargets,
): Promise<MachineForecast> {
  const machine = plan.machines[name]
  if (machine === undefined) throw new TypeError(`the plan has no machine ${name}`)
  try {
    const target = await targets.resolve({ name, machine, directory, kind, verbs })
    try {
      const forecast = await target.describe(kind, chosen?.choice ?? choice)
      const own = chosen?.groupPointId === null ? [`is in no consistency group: ${choiceName(chosen)}`] : []
      const notes = [...(forecast.notes ?? []), ...own]
      return { name, choice, forecast: notes.length > 0 ? { ...forecast, notes } : forecast, error: null }
    } finally {
      await target.close?.()
    }
  } catch (error) {
    return { name, choice, forecast: null, error: toPlainError(error) }
  }
}

function choiceName({ choice }: ChosenPoint): string {
  return typeof choice === 'string' ? choice : 'a point of its own'
}

function stepError(step: PlanStep, errors: ReadonlyMap<string, PlainError>): PlainError | null {
  if (step.type === 'machine') return errors.get(step.machine) ?? null
  if (step.type !== 'http' || step.action.http === undefined) return null
  try {
    checkVariables(step.action.http)
    return null
  } catch (error) {
    return toPlainError(error)
  }
}

function folded(
  forecasts: readonly FailoverForecast[],
  key: 'lossSeconds' | 'lossBytes',
  fold: (a: number, b: number) => number,
): number | null {
  let total = 0
  for (const { [key]: value } of forecasts) {
    if (value === null) return null
    total = fold(total, value)
  }
  return total
}

/** Of each stage the time of its longest chain: machines are taken in order by whoever is free. */
function estimateOf(
  plan: Plan,
  stages: readonly PlanStage[],
  machines: readonly MachineForecast[],
): number | null {
  const times = new Map(machines.map(({ name, forecast }) => [name, forecast?.estimatedMs ?? null]))
  let totalMs = 0
  for (const { steps } of stages) {
    const free: number[] = Array.from({ length: Math.min(plan.parallelMachines, steps.length) }, () => 0)
    for (const step of steps) {
      if (step.type !== 'machine' || (step.verb !== 'failover' && step.verb !== 'failback')) continue
      const estimatedMs = times.get(step.machine) ?? null
      if (estimatedMs === null) return null
      const next = free.indexOf(Math.min(...free))
      free[next] = (free[next] ?? 0) + estimatedMs
    }
    totalMs += Math.max(0, ...free)
  }
  return totalMs
}
