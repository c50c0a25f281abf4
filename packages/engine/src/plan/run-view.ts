/**
 * What the entries of a journal make of a run: the state of each step and of the whole.
 */

import type { JsonValue, PlainError } from '../errors.js'
import type { ChosenPoint } from './group-choice.js'
import type { NumberedEntry, RunEntry, SessionOutcome } from './journal-entries.js'
import { type MachineStep, type PlanStage, type PlanStep, planStages, stepsOf } from './steps.js'

/**
 * State of a step. `Interrupted` was in flight when the run was stopped or killed; `Blocked` was not tried, as what it
 * stands on has failed.
 */
export type StepState =
  | 'Pending'
  | 'Running'
  | 'Waiting'
  | 'Interrupted'
  | 'Done'
  | 'Failed'
  | 'Skipped'
  | 'Blocked'

/** State of a run; `InProgress` without a process that works on it was killed, and is continued. */
export type PlanRunState = 'InProgress' | SessionOutcome

/** One try of a step. */
export interface StepAttempt {
  readonly startedMs: number
  /** `null` when it was cut off by a crash. */
  readonly endedMs: number | null
  readonly error: PlainError | null
}

/** The process of a command that was in flight. */
export interface SpawnedProcess {
  readonly processId: number
  readonly identity: string
}

/** What is known of a step. */
export interface StepView {
  readonly step: PlanStep
  readonly state: StepState
  readonly attempts: readonly StepAttempt[]
  /** Of the attempt that is done. */
  readonly result: JsonValue | null
  /** Of the last attempt that failed. */
  readonly error: PlainError | null
  /** Who confirmed or skipped it. */
  readonly decidedBy: string | null
  /** Why it was not tried. */
  readonly reason: string | null
  readonly process: SpawnedProcess | null
}

/** A process that worked on a run. */
export interface RunSession {
  readonly startedMs: number
  /** `null` while it works, and for ever when it was killed. */
  readonly endedMs: number | null
  readonly operator: string
  readonly processId: number
}

/** What is known of a run. */
export interface RunView {
  readonly run: RunEntry
  readonly startedMs: number
  /** Time of the newest entry. */
  readonly lastMs: number
  readonly state: PlanRunState
  readonly stages: readonly PlanStage[]
  readonly steps: Map<string, StepView>
  /** Ids of the steps of each machine, in order: plans of a thousand machines look them up for each step. */
  readonly machineSteps: ReadonlyMap<string, readonly string[]>
  readonly sessions: readonly RunSession[]
  /** What was chosen for machines of consistency groups. */
  readonly chosen: readonly ChosenPoint[]
}

/** The run that `entries` tell of; `undefined` when a crash left not even the first. */
export function viewOf(entries: readonly NumberedEntry[]): RunView | undefined {
  const [first] = entries
  if (first?.type !== 'run') return undefined
  const stages = planStages(first.plan, first.kind)
  const fresh = stepsOf(stages).map((step): [string, StepView] => [step.id, pendingStep(step)])
  let view: RunView = {
    run: first,
    startedMs: first.atMs,
    lastMs: first.atMs,
    state: 'InProgress',
    stages,
    steps: new Map(fresh),
    machineSteps: machineStepsOf(stages),
    sessions: [],
    chosen: [],
  }
  for (const entry of entries.slice(1)) view = withEntry(view, entry)
  return view
}

function machineStepsOf(stages: readonly PlanStage[]): Map<string, string[]> {
  const ids = new Map<string, string[]>()
  for (const step of stepsOf(stages)) {
    if (step.type !== 'machine') continue
    const known = ids.get(step.machine)
    if (known === undefined) ids.set(step.machine, [step.id])
    else known.push(step.id)
  }
  return ids
}

/** What is known of one verb on a machine. */
export interface VerbView extends StepView {
  readonly step: MachineStep
}

/** The verbs on a machine, in order. */
export function verbsOn(view: RunView, machine: string): VerbView[] {
  const ids = view.machineSteps.get(machine) ?? []
  return ids.map((id) => view.steps.get(id) as VerbView)
}

function pendingStep(step: PlanStep): StepView {
  return {
    step,
    state: 'Pending',
    attempts: [],
    result: null,
    error: null,
    decidedBy: null,
    reason: null,
    process: null,
  }
}

/**
 * The run after one more entry. An entry about a step changes the map of `view` in place: with a copy for each entry a
 * journal of a thousand machines took 15 s to read. A session makes a map of its own.
 */
export function withEntry(view: RunView, entry: NumberedEntry): RunView {
  const next = { ...view, lastMs: entry.atMs }
  if (entry.type === 'run') return next
  if (entry.type === 'session') {
    const { operator, processId, atMs: startedMs } = entry
    const sessions = [...view.sessions, { startedMs, endedMs: null, operator, processId }]
    return { ...next, state: 'InProgress', steps: mapped(view.steps, cutOff), sessions }
  }
  if (entry.type === 'ended') {
    const sessions = view.sessions.map((session, index) =>
      index === view.sessions.length - 1 ? { ...session, endedMs: entry.atMs } : session,
    )
    return { ...next, state: entry.outcome, sessions }
  }
  if (entry.type === 'chosen') return { ...next, chosen: [...view.chosen, ...entry.points] }
  const before = view.steps.get(entry.step)
  if (before === undefined) return next
  view.steps.set(entry.step, stepAfter(before, entry))
  return next
}

function mapped(
  steps: ReadonlyMap<string, StepView>,
  change: (step: StepView) => StepView,
): Map<string, StepView> {
  return new Map([...steps].map(([id, step]) => [id, change(step)]))
}

/** The process that worked on it is gone. */
function cutOff(step: StepView): StepView {
  return step.state === 'Running' ? { ...step, state: 'Interrupted' } : step
}

type StepEntry = Extract<NumberedEntry, { readonly step: string }>

function stepAfter(step: StepView, entry: StepEntry): StepView {
  const { atMs } = entry
  switch (entry.type) {
    case 'started': {
      const attempt = { startedMs: atMs, endedMs: null, error: null }
      return { ...step, state: 'Running', attempts: [...step.attempts, attempt], process: null, reason: null }
    }
    case 'spawned':
      return { ...step, process: { processId: entry.processId, identity: entry.identity } }
    case 'done':
      return { ...ended(step, atMs, null), state: 'Done', result: entry.result ?? null, error: null }
    case 'failed':
      return { ...ended(step, atMs, entry.error), state: 'Failed', error: entry.error }
    case 'interrupted':
      return { ...ended(step, atMs, null), state: 'Interrupted' }
    case 'blocked':
      return { ...step, state: 'Blocked', reason: entry.reason }
    case 'waiting': {
      const attempt = { startedMs: atMs, endedMs: null, error: null }
      return { ...step, state: 'Waiting', attempts: [...step.attempts, attempt] }
    }
    case 'decided':
      return decided(step, entry)
  }
}

function decided(step: StepView, entry: Extract<StepEntry, { type: 'decided' }>): StepView {
  const decidedBy = entry.operator
  if (entry.decision === 'confirm') return { ...ended(step, entry.atMs, null), state: 'Done', decidedBy }
  if (entry.decision === 'redo') return { ...step, state: 'Pending', decidedBy }
  const closed = step.state === 'Waiting' ? ended(step, entry.atMs, null) : step
  return { ...closed, state: 'Skipped', decidedBy }
}

function ended(step: StepView, endedMs: number, error: PlainError | null): StepView {
  const last = step.attempts.at(-1)
  if (last === undefined) return step
  return { ...step, attempts: [...step.attempts.slice(0, -1), { ...last, endedMs, error }], process: null }
}

/** Whether nothing more happens with the step in this run, unless somebody decides otherwise. */
export function isSettled({ state }: StepView): boolean {
  return state === 'Done' || state === 'Failed' || state === 'Skipped' || state === 'Blocked'
}

/** Whether the step counts as an error of the run: it failed, and was not allowed to. */
export function isError({ state, step }: StepView): boolean {
  const mayFail = step.type !== 'machine' && step.type !== 'manual' && step.action.mayFail
  return state === 'Blocked' || (state === 'Failed' && !mayFail)
}

/** Whether a run in this state is over; one that ended with errors may still be continued. */
export function isFinished(state: PlanRunState): boolean {
  return state === 'Completed' || state === 'CompletedWithErrors' || state === 'Abandoned'
}
