/**
 * What the actions of a plan are told about the run: JSON on the standard input of commands and as the body of calls, and
 * the short of it as SECONDSITE_ variables.
 */

import type { JsonValue } from '../errors.js'
import type { RunView, StepView } from './run-view.js'
import type { MachineStep, PlanStep } from './steps.js'

/** Facts of a run as an action of it gets them. */
export function factsOf(view: RunView, step: PlanStep): JsonValue {
  const { run, startedMs } = view
  const { groupNumber, groupName, groupType, phase } = step
  return {
    plan: run.plan.name,
    run: run.runId,
    kind: run.kind,
    startedMs,
    step: step.id,
    group: { number: groupNumber, name: groupName, type: groupType, phase },
    machines: machineFacts(view),
  }
}

/** Of each machine the state of its verbs, and what its failover has brought. */
function machineFacts(view: RunView): { [machine: string]: JsonValue } {
  const facts: { [machine: string]: { [verb: string]: JsonValue } } = {}
  for (const one of view.steps.values()) {
    if (one.step.type !== 'machine') continue
    const { machine, verb } = one.step
    facts[machine] = { ...facts[machine], [verb]: verbFacts(one) }
  }
  return facts
}

function verbFacts({ state, result, error }: StepView): JsonValue {
  return { state, ...(result === null ? {} : { result }), ...(error === null ? {} : { error: error.code }) }
}

/** Variables of a command; lists are separated by blanks, as names of machines have none. */
export function environmentOf(view: RunView, step: PlanStep, attempt: number): Record<string, string> {
  const machines = [...view.steps.values()].filter((one) => one.step.type === 'machine')
  const members = machines.filter((one) => one.step.groupNumber === step.groupNumber)
  const failed = machines.filter(({ state }) => state === 'Failed' || state === 'Blocked')
  return {
    SECONDSITE_PLAN: view.run.plan.name,
    SECONDSITE_RUN: view.run.runId,
    SECONDSITE_KIND: view.run.kind,
    SECONDSITE_STEP: step.id,
    SECONDSITE_ATTEMPT: String(attempt),
    SECONDSITE_GROUP: step.groupName,
    SECONDSITE_GROUP_NUMBER: String(step.groupNumber),
    SECONDSITE_GROUP_TYPE: step.groupType,
    SECONDSITE_PHASE: step.phase,
    SECONDSITE_MACHINES: namesOf(members),
    SECONDSITE_FAILED_MACHINES: namesOf(failed),
  }
}

function namesOf(steps: readonly StepView[]): string {
  return [...new Set(steps.map(({ step }) => (step as MachineStep).machine))].join(' ')
}
