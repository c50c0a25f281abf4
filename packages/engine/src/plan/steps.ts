/**
 * From a plan and a kind of run to the steps that are carried out: a pure function.
 *
 * Steps stand in stages. The stages follow each other, the steps of a stage run in parallel: an action is a stage of its
 * own, the machines of a group are one. A step's id says where in the plan it comes from, is the same each time, and is
 * what the journal speaks of.
 */

import type { Plan, PlanAction, PlanGroup, PlanGroupType, PlanRunKind, PointChoice } from './plan.js'

/** What a step does with a machine. */
export type MachineVerb = 'shutdown' | 'failover' | 'failback' | 'reverse' | 'boot' | 'cleanupTest'

/** Where a step belongs. */
interface StepPlace {
  /** Unique in the plan and stable: `2.before.1`, `2.db01`, `2.db01/reverse`. */
  readonly id: string
  /** For people. */
  readonly title: string
  /** From 1; the removal of test copies counts as a group behind the last. */
  readonly groupNumber: number
  readonly groupName: string
  readonly groupType: PlanGroupType | 'Cleanup'
  readonly phase: 'before' | 'machines' | 'after'
}

/** A verb on a machine. */
export interface MachineStep extends StepPlace {
  readonly type: 'machine'
  readonly machine: string
  readonly verb: MachineVerb
  readonly choice: PointChoice
}

/** A command or an HTTP call. */
export interface ActionStep extends StepPlace {
  readonly type: 'command' | 'http'
  readonly action: PlanAction
}

/** The run waits until somebody says that it is done. */
export interface ManualStep extends StepPlace {
  readonly type: 'manual'
  /** What has to be done. */
  readonly text: string
}

/** What a run is made of. */
export type PlanStep = MachineStep | ActionStep | ManualStep

/** Steps that run in parallel. */
export interface PlanStage {
  readonly steps: readonly PlanStep[]
}

/** Seconds of an action that names none. */
export const ACTION_TIMEOUT_SECONDS = 300

/** The stages of `plan`, run as `kind`. Groups of which nothing is left for this kind are left out. */
export function planStages(plan: Plan, kind: PlanRunKind): PlanStage[] {
  const stages = plan.groups.flatMap((group, index) => groupStages(plan, kind, group, index + 1))
  return [...stages, ...cleanupStages(plan, kind)]
}

/** All steps in the order in which they are reached. */
export function stepsOf(stages: readonly PlanStage[]): PlanStep[] {
  return stages.flatMap((stage) => stage.steps)
}

function groupStages(plan: Plan, kind: PlanRunKind, group: PlanGroup, number: number): PlanStage[] {
  const verb = verbOf(group.type, kind)
  const place = {
    groupNumber: number,
    groupName: group.name ?? `group ${number}`,
    groupType: group.type,
  }
  const actions = (phase: 'before' | 'after'): PlanStage[] =>
    group[phase].flatMap((action, index) => {
      if (action.on && !action.on.includes(kind)) return []
      return [{ steps: [actionStep(action, { ...place, phase, id: `${number}.${phase}.${index + 1}` })] }]
    })
  const members = verb === undefined ? [] : group.machines
  const stepOf = (machine: string, own: Pick<MachineStep, 'id' | 'verb'>): MachineStep => ({
    ...place,
    ...own,
    phase: 'machines',
    title: `${own.verb} ${machine}`,
    type: 'machine',
    machine,
    choice: pointOf(plan, kind, machine),
  })
  const steps = members.map((machine) => stepOf(machine, { id: `${number}.${machine}`, verb: verb! }))
  const isReversed = (machine: string): boolean => isMoved(verb) && reverses(plan, kind, machine)
  const reversals = members
    .filter(isReversed)
    .map((machine) => stepOf(machine, { id: `${number}.${machine}/reverse`, verb: 'reverse' }))
  const stages = [steps, reversals].filter(({ length }) => length > 0).map((list) => ({ steps: list }))
  return [...actions('before'), ...stages, ...actions('after')]
}

function isMoved(verb: MachineVerb | undefined): boolean {
  return verb === 'failover' || verb === 'failback'
}

/**
 * Whether replication is turned round behind the failover of a machine. An unplanned one may leave writes behind that
 * somebody has to decide about, and a test copy is nobody's primary.
 */
export function reverses({ machines }: Plan, kind: PlanRunKind, machine: string): boolean {
  return (kind === 'Planned' || kind === 'Failback') && machines[machine]?.reverse !== undefined
}

/** A test touches nothing of the source, so it shuts nothing down. */
function verbOf(type: PlanGroupType, kind: PlanRunKind): MachineVerb | undefined {
  if (type === 'Shutdown') return kind === 'Test' ? undefined : 'shutdown'
  if (type === 'Boot') return 'boot'
  return kind === 'Failback' ? 'failback' : 'failover'
}

/** Nothing may be lost in a planned failover and on the way home, so both take the newest point, whatever is chosen. */
function pointOf(plan: Plan, kind: PlanRunKind, machine: string): PointChoice {
  if (kind === 'Planned' || kind === 'Failback') return 'Latest'
  return plan.machines[machine]?.point ?? plan.point
}

function actionStep(action: PlanAction, place: Omit<StepPlace, 'title'>): PlanStep {
  const title = action.name ?? titleOf(action)
  if (action.manual !== undefined) return { ...place, title, type: 'manual', text: action.manual }
  return { ...place, title, type: action.http ? 'http' : 'command', action }
}

const TITLE_LENGTH_MAX = 64

function titleOf({ command, http, manual }: PlanAction): string {
  const text = command?.join(' ') ?? (http ? `${http.method} ${http.url}` : (manual ?? ''))
  const [line = ''] = text.trim().split('\n')
  return line.length > TITLE_LENGTH_MAX ? `${line.slice(0, TITLE_LENGTH_MAX - 1)}…` : line
}

function cleanupStages(plan: Plan, kind: PlanRunKind): PlanStage[] {
  if (kind !== 'Test' || plan.testCleanup === 'Keep') return []
  const copied = plan.groups.flatMap((group) => (group.type === 'Failover' ? group.machines : []))
  if (copied.length === 0) return []
  const number = plan.groups.length + 1
  const place = { groupNumber: number, groupName: 'remove the test copies', groupType: 'Cleanup' } as const
  const steps = copied.map((machine): MachineStep => {
    const title = `cleanupTest ${machine}`
    const id = `${number}.${machine}`
    return {
      ...place,
      phase: 'machines',
      id,
      title,
      type: 'machine',
      machine,
      verb: 'cleanupTest',
      choice: 'Latest',
    }
  })
  if (plan.testCleanup === 'Immediately') return [{ steps }]
  const text = 'Look at the test copies. Continue removes them.'
  const title = 'look at the test copies'
  const wait: ManualStep = {
    ...place,
    phase: 'before',
    id: `${number}.before.1`,
    title,
    type: 'manual',
    text,
  }
  return [{ steps: [wait] }, { steps }]
}

/** Whether a failed step ends a run of this kind. */
export function stopsAtErrors(kind: PlanRunKind): boolean {
  return kind === 'Planned' || kind === 'Failback'
}

/** Whether a step that was cut off may simply be carried out again: verbs of machines may, actions when they say so. */
export function isRepeatable(step: PlanStep): boolean {
  return step.type === 'machine' || step.type === 'manual' || step.action.idempotent
}
