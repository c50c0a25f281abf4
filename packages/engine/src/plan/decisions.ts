/**
 * What becomes of the steps that stand in the way of a run that is to go on: a pure function of the run and the decision.
 *
 * Verbs of machines are repeated without asking, as they are idempotent. A command or a call that was cut off may or may
 * not have done its work, and only somebody who looks can tell; so it needs a decision, unless it says that repeating it
 * does no harm. What failed has ended in order: to continue is to try it again.
 */

import { SecondsiteError } from '../errors.js'
import type { StepDecision } from './journal-entries.js'
import { isSameProcess } from '../process-identity.js'
import { isError, isFinished, type RunView, type StepView, withEntry } from './run-view.js'
import { isRepeatable, stopsAtErrors } from './steps.js'

/** What is decided about a step. */
export interface Decision {
  readonly step: StepView
  readonly decision: StepDecision
}

/** The run as a new session finds it: what was in flight has been cut off. */
export function cutOffView(view: RunView): RunView {
  const session = { type: 'session', operator: '', processId: 0, n: 0, atMs: view.lastMs } as const
  return { ...withEntry(view, session), state: view.state }
}

/**
 * The decisions with which a run goes on.
 * @throws {PLAN_RUN_FINISHED, PLAN_DECISION_NEEDED, PLAN_ACTION_RUNNING, OPTION_OUT_OF_RANGE}
 */
export function decisionsFor(view: RunView, given: 'redo' | 'skip' | undefined): Decision[] {
  const steps = [...view.steps.values()]
  const waiting = steps.filter(({ state }) => state === 'Waiting')
  const failed = isRetried(view) ? steps.filter(isError) : []
  const interrupted = steps.filter(({ state }) => state === 'Interrupted')
  const uncertain = interrupted.filter(({ step }) => !isRepeatable(step))
  if (isOver(view, failed)) throw finished(view)
  if (given === 'skip') return skipped(view, [...waiting, ...failed, ...interrupted])
  refuseRunning(view, interrupted)
  if (given === undefined && uncertain[0] !== undefined) throw needed(view, uncertain[0])
  if (given === 'redo' && waiting.length > 0) throw nothingTo(view, 'redo')
  return [
    ...waiting.map((step): Decision => ({ step, decision: 'confirm' })),
    ...[...failed, ...uncertain].map((step): Decision => ({ step, decision: 'redo' })),
  ]
}

function isRetried({ run, state }: RunView): boolean {
  return stopsAtErrors(run.kind) || state === 'CompletedWithErrors'
}

function isOver({ state }: RunView, failed: readonly StepView[]): boolean {
  return isFinished(state) && !(state === 'CompletedWithErrors' && failed.length > 0)
}

function skipped(view: RunView, steps: readonly StepView[]): Decision[] {
  if (steps.length === 0) throw nothingTo(view, 'skip')
  return steps.map((step) => ({ step, decision: 'skip' }))
}

function refuseRunning({ run }: RunView, interrupted: readonly StepView[]): void {
  for (const { step, process } of interrupted) {
    if (process === null || !isSameProcess(process.processId, process.identity)) continue
    const { processId } = process
    throw new SecondsiteError('PLAN_ACTION_RUNNING', {
      message: `step ${step.id} (${step.title}) still runs as process ${processId}, which the run had started before it was cut off`,
      details: { run: run.runId, step: step.id, processId },
    })
  }
}

function needed({ run }: RunView, { step, attempts }: StepView): SecondsiteError {
  const startedMs = attempts.at(-1)?.startedMs ?? 0
  const since = new Date(startedMs).toISOString()
  return new SecondsiteError('PLAN_DECISION_NEEDED', {
    message: `step ${step.id} (${step.title}) was started at ${since} and cut off: nobody knows whether it was done`,
    details: { run: run.runId, step: step.id, startedMs },
  })
}

function nothingTo({ run, state }: RunView, decision: 'redo' | 'skip'): SecondsiteError {
  return new SecondsiteError('OPTION_OUT_OF_RANGE', {
    message: `run ${run.runId} is ${state} and has no step to ${decision}`,
    details: { run: run.runId, state, decision },
  })
}

/** The error of a run with which nothing more can be done. */
export function finished({ run, state }: RunView): SecondsiteError {
  return new SecondsiteError('PLAN_RUN_FINISHED', {
    message: `run ${run.runId} is over: it is ${state}`,
    details: { run: run.runId, state },
  })
}
