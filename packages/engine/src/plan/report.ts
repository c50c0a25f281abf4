/**
 * What a run has brought, with its times: the recovery time of each machine and of the whole, and what the points lose.
 *
 * The recovery time (RTO) counts from the start of the run to the moment at which a machine's last step is done, with all
 * waiting in it: that is how long its users had nothing. Beside it stands how much of that was waiting for somebody, and
 * how much nobody worked at all, between a stop or crash and its continuation.
 */

import type { JsonValue, PlainError } from '../errors.js'
import type { PlanGroupType, PlanRunKind, PointChoice } from './plan.js'
import {
  type PlanRunState,
  type RunView,
  type StepAttempt,
  type StepState,
  type StepView,
  verbsOn,
} from './run-view.js'
import type { MachineVerb } from './steps.js'
import type { FailoverFacts, PlanPoint } from './targets.js'

/** A step in a report. */
export interface ReportStep {
  readonly id: string
  readonly title: string
  readonly type: 'machine' | 'command' | 'http' | 'manual'
  readonly machine: string | null
  readonly groupNumber: number
  readonly groupName: string
  readonly groupType: PlanGroupType | 'Cleanup'
  readonly phase: 'before' | 'machines' | 'after'
  readonly state: StepState
  readonly attempts: readonly StepAttempt[]
  /** Time of all attempts together; of a manual step the time it waited. */
  readonly workedMs: number
  readonly result: JsonValue | null
  readonly error: PlainError | null
  /** Who confirmed, repeated or skipped it. */
  readonly decidedBy: string | null
  /** Why it was not tried. */
  readonly reason: string | null
  /** What has to be done, of a manual step. */
  readonly text: string | null
}

/** A machine in a report. */
export interface ReportMachine {
  readonly name: string
  readonly choice: PointChoice
  /** `Recovered` when all its steps are done; `NotRecovered` when one has failed; else `Open`. */
  readonly outcome: 'Recovered' | 'NotRecovered' | 'Open'
  /** From the start of the run to the machine's last step; `null` while it is not recovered. */
  readonly recoveryTimeMs: number | null
  readonly point: PlanPoint | null
  /** Recovery point: seconds of writes that are lost, where it is known. */
  readonly lossSeconds: number | null
  readonly lossBytes: number | null
  readonly copyBytes: number | null
  /** Whether it is protected where it is now; `null` of a test copy, and while that is not decided. */
  readonly isProtected: boolean | null
}

/** A process that worked on the run. */
export interface ReportSession {
  readonly startedMs: number
  /** `null` while it works, or when it was killed. */
  readonly endedMs: number | null
  readonly operator: string
  readonly processId: number
}

/** The report of a run. */
export interface PlanReport {
  readonly runId: string
  readonly plan: string
  readonly description: string | null
  readonly kind: PlanRunKind
  readonly state: PlanRunState
  readonly startedMs: number
  /** Time of the newest entry of the journal. */
  readonly lastMs: number
  /** From the start to the recovery of the last machine; `null` while one is not recovered. */
  readonly recoveryTimeMs: number | null
  /** Of the time until {@link lastMs}: waiting for somebody at manual steps. */
  readonly waitedMs: number
  /** Largest loss of all machines, in seconds; `null` while one is not known. */
  readonly lossSeconds: number | null
  readonly machines: readonly ReportMachine[]
  readonly steps: readonly ReportStep[]
  readonly sessions: readonly ReportSession[]
}

/** The report of what is known of a run. */
export function reportOf(view: RunView): PlanReport {
  const { run, startedMs, lastMs, state, sessions } = view
  const steps = [...view.steps.values()].map((step) => reportStep(step, lastMs))
  const machines = Object.keys(run.plan.machines).flatMap((name) => reportMachine(view, name))
  return {
    runId: run.runId,
    plan: run.plan.name,
    description: run.plan.description ?? null,
    kind: run.kind,
    state,
    startedMs,
    lastMs,
    recoveryTimeMs: largest(machines.map((machine) => machine.recoveryTimeMs)),
    waitedMs: steps.reduce((sum, step) => sum + (step.type === 'manual' ? step.workedMs : 0), 0),
    lossSeconds: largest(machines.map((machine) => machine.lossSeconds)),
    machines,
    steps,
    sessions,
  }
}

/** The largest of values that are all known. */
function largest(values: readonly (number | null)[]): number | null {
  const known = values.flatMap((value) => (value === null ? [] : [value]))
  return known.length === values.length && known.length > 0 ? Math.max(...known) : null
}

function reportStep(view: StepView, lastMs: number): ReportStep {
  const { step, state, attempts, result, error, decidedBy, reason } = view
  const { id, title, type, groupNumber, groupName, groupType, phase } = step
  const isOpen = state === 'Running' || state === 'Waiting'
  const workedMs = attempts.reduce((sum, one) => sum + attemptMs(one, isOpen ? lastMs : one.startedMs), 0)
  return {
    id,
    title,
    type,
    machine: step.type === 'machine' ? step.machine : null,
    groupNumber,
    groupName,
    groupType,
    phase,
    state,
    attempts,
    workedMs,
    result,
    error,
    decidedBy,
    reason,
    text: step.type === 'manual' ? step.text : null,
  }
}

function attemptMs({ startedMs, endedMs }: StepAttempt, openEndMs: number): number {
  return Math.max(0, (endedMs ?? openEndMs) - startedMs)
}

/** Verbs that bring a machine up; its removal after a test is no part of that. */
const RECOVERY_VERBS: readonly MachineVerb[] = ['failover', 'failback', 'boot']

function reportMachine(view: RunView, name: string): ReportMachine[] {
  const steps = verbsOn(view, name).filter(({ step }) => RECOVERY_VERBS.includes(step.verb))
  const moved = steps.find(({ step }) => step.verb !== 'boot')
  const reversal = verbsOn(view, name).find(({ step }) => step.verb === 'reverse')
  if (steps.length === 0) return []
  const outcome = outcomeOf(steps)
  const lastMs = Math.max(...steps.flatMap(({ attempts }) => attempts.map(({ endedMs }) => endedMs ?? 0)))
  const isTimed = outcome === 'Recovered' && lastMs > 0
  const facts = moved?.state === 'Done' ? (moved.result as FailoverFacts | null) : null
  return [
    {
      name,
      choice: moved?.step.choice ?? 'Latest',
      outcome,
      recoveryTimeMs: isTimed ? lastMs - view.startedMs : null,
      point: facts?.point ?? null,
      lossSeconds: facts?.lossSeconds ?? null,
      lossBytes: facts?.lossBytes ?? null,
      copyBytes: facts?.copyBytes ?? null,
      isProtected: view.run.kind === 'Test' ? null : protectionOf(moved, reversal),
    },
  ]
}

/** A step that was skipped may have been done by hand, so nothing is said of it. */
function protectionOf(moved: StepView | undefined, reversal: StepView | undefined): boolean | null {
  if (moved?.state !== 'Done') return null
  if (reversal === undefined || reversal.state === 'Failed') return false
  return reversal.state === 'Done' ? true : null
}

/** A step that was skipped was done by hand, as far as anybody knows. */
function outcomeOf(steps: readonly StepView[]): ReportMachine['outcome'] {
  if (steps.some(({ state }) => state === 'Failed' || state === 'Blocked')) return 'NotRecovered'
  return steps.every(({ state }) => state === 'Done' || state === 'Skipped') ? 'Recovered' : 'Open'
}
