/**
 * The verbs of recovery plans: start, continue, abandon, list.
 *
 * Each holds the plan's lock while it works, so that two processes never work on one plan. A run that waits for somebody
 * holds nothing: it is its journal, until it is continued by any process.
 */

import { userInfo } from 'node:os'
import { type Clock, systemClock } from '../clock.js'
import type { LockedDirectory } from '../store/lock.js'
import { cutOffView, type Decision, decisionsFor, finished } from './decisions.js'
import { RunJournal } from './journal.js'
import { JOURNAL_VERSION } from './journal-entries.js'
import type { PlanRunKind } from './plan.js'
import type { LoadedPlan } from './plan-file.js'
import { type PlanReport, reportOf } from './report.js'
import {
  journalPath,
  listRuns,
  lockPlan,
  newRunId,
  type PlanRunSummary,
  planOfRun,
  readRun,
  refuseSecondRun,
  type UnreadableRun,
} from './run-folder.js'
import { isFinished, type RunView, viewOf, withEntry } from './run-view.js'
import { type PlanRunEvent, PlanSession } from './session.js'
import { stopsAtErrors } from './steps.js'
import type { PlanTargets } from './targets.js'

/** What every verb on runs needs. */
export interface PlanRunOptions {
  /** Folder in which runs are kept; created when it is not there. */
  readonly directory: string
  /** Finds the machines. */
  readonly targets: PlanTargets
  /** For the journal; default the user's name. */
  readonly operator?: string
  /** Stops the run softly: verbs and actions in flight are stopped, and the run can be continued. */
  readonly signal?: AbortSignal
  readonly clock?: Clock
  /** Told of every change of a step, after it is journaled, and of progress. */
  readonly onEvent?: (event: PlanRunEvent) => void
}

/**
 * Runs a plan until it ends, waits for somebody, stops at an error, or is stopped.
 *
 * Planned and Failback look for all machines before the first step: one that is not there refuses the whole run.
 * @returns the report; its state says how it ended
 * @throws {PLAN_RUN_IN_USE} when another process works on the plan
 * @throws {PLAN_RUN_UNFINISHED} when an earlier run waits to be continued or abandoned
 * @throws {STATE_DISK_FULL, IO_FAILED} when the journal cannot be written; what was done is in it
 */
export async function startPlan(
  loaded: LoadedPlan,
  kind: PlanRunKind,
  options: PlanRunOptions,
): Promise<PlanReport> {
  const { directory, clock = systemClock } = options
  const { plan } = loaded
  const lock = lockPlan(directory, plan.name)
  try {
    refuseSecondRun(directory, plan.name, kind)
    const startedMs = clock.nowMs()
    const runId = newRunId(directory, plan.name, kind, startedMs)
    const run = {
      type: 'run',
      version: JOURNAL_VERSION,
      runId,
      kind,
      plan,
      directory: loaded.directory,
    } as const
    const view = viewOf([{ n: 0, atMs: startedMs, ...run }]) as RunView
    const create = (): RunJournal => {
      const journal = RunJournal.create(journalPath(directory, runId))
      journal.append(run, startedMs)
      return journal
    }
    return await worked(options, view, create, undefined)
  } finally {
    lock.close()
  }
}

/** Options of {@link continuePlan}. */
export interface ContinueOptions extends PlanRunOptions {
  /**
   * `redo` carries a step out again of which nobody knows whether it was done; `skip` takes it, or one that failed or
   * waits, as done. Without, a run goes on where that needs no decision: what waits is confirmed, what failed is tried again.
   */
  readonly decision?: 'redo' | 'skip'
}

/**
 * Goes on with a run: after a manual step, which is thereby confirmed, after an error, a stop, or a crash. A run that
 * has ended with errors tries the failed steps again.
 * @throws {PLAN_DECISION_NEEDED} when an action was cut off in the middle and does not say that repeating it does no harm
 * @throws {PLAN_ACTION_RUNNING} when the command that was cut off runs on and would be started a second time
 * @throws {PLAN_RUN_FINISHED} when nothing is left to do
 * @throws {OPTION_OUT_OF_RANGE} when the decision fits no step
 * @throws {PLAN_RUN_NOT_FOUND, PLAN_RUN_DAMAGED, PLAN_RUN_IN_USE, STATE_DISK_FULL, IO_FAILED}
 */
export async function continuePlan(runId: string, options: ContinueOptions): Promise<PlanReport> {
  const { directory, decision } = options
  const lock = lockKnownPlan(directory, runId)
  try {
    const { view, content } = readRun(directory, runId)
    const decisions = decisionsFor(cutOffView(view), decision)
    return await worked(
      options,
      view,
      () => RunJournal.reopen(journalPath(directory, runId), content),
      decisions,
    )
  } finally {
    lock.close()
  }
}

/** Options of {@link abandonPlan}. */
export type AbandonOptions = Pick<PlanRunOptions, 'directory' | 'operator' | 'clock'>

/**
 * Ends a run that nobody will continue, so that the plan can be run again. Nothing is undone.
 * @throws {PLAN_RUN_FINISHED, PLAN_RUN_NOT_FOUND, PLAN_RUN_DAMAGED, PLAN_RUN_IN_USE, STATE_DISK_FULL, IO_FAILED}
 */
export function abandonPlan(runId: string, options: AbandonOptions): PlanReport {
  const { directory, clock = systemClock } = options
  const lock = lockKnownPlan(directory, runId)
  try {
    const { view, content } = readRun(directory, runId)
    if (isFinished(view.state)) throw finished(view)
    const journal = RunJournal.reopen(journalPath(directory, runId), content)
    try {
      const operator = options.operator ?? userName()
      const session = { type: 'session', operator, processId: process.pid } as const
      const begun = withEntry(view, journal.append(session, clock.nowMs()))
      const end = { type: 'ended', outcome: 'Abandoned', operator } as const
      return reportOf(withEntry(begun, journal.append(end, clock.nowMs())))
    } finally {
      journal.close()
    }
  } finally {
    lock.close()
  }
}

/** The report of a run, also while it is at work. @throws {PLAN_RUN_NOT_FOUND, PLAN_RUN_DAMAGED, STORE_VERSION_NEWER, IO_FAILED} */
export function planReport(runId: string, options: { readonly directory: string }): PlanReport {
  return reportOf(readRun(options.directory, runId).view)
}

/** All runs in a folder, of one plan or of all, in the order of their start. */
export function listPlanRuns(options: {
  readonly directory: string
  readonly plan?: string
}): (PlanRunSummary | UnreadableRun)[] {
  return listRuns(options.directory, options.plan)
}

/** An id of no run must not make a folder for its lock. */
function lockKnownPlan(directory: string, runId: string): LockedDirectory {
  readRun(directory, runId)
  return lockPlan(directory, planOfRun(directory, runId))
}

/** Carries a run on in a session of its own, after `decisions` about steps that stand in the way. */
async function worked(
  options: PlanRunOptions,
  view: RunView,
  openJournal: () => RunJournal,
  decisions: readonly Decision[] | undefined,
): Promise<PlanReport> {
  const session = new PlanSession({
    openJournal,
    view,
    targets: options.targets,
    clock: options.clock ?? systemClock,
    operator: options.operator ?? userName(),
    signal: options.signal ?? new AbortController().signal,
    onEvent: options.onEvent ?? ignore,
  })
  try {
    const isNew = decisions === undefined
    if (isNew && stopsAtErrors(view.run.kind)) await session.preflight()
    session.begin()
    for (const { step, decision } of decisions ?? []) session.decide(step, decision)
    return reportOf(await session.carryOn())
  } finally {
    await session.close()
  }
}

function ignore(): void {
  // Nobody listens.
}

/** In a container a user may have no name. */
function userName(): string {
  try {
    return userInfo().username
  } catch {
    return String(process.getuid?.() ?? 'unknown')
  }
}
