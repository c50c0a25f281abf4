/**
 * Where runs are kept: `RUNS/PLAN/RUN.jsonl`, and beside them the lock that one process per plan holds.
 *
 * A run's id is the name of its plan, its start in UTC and its kind, so that a listing is in order and says what it is.
 */

import fs from 'node:fs'
import { join } from 'node:path'
import { fromSystemError, SecondsiteError } from '../errors.js'
import { type LockedDirectory, openLocked } from '../store/lock.js'
import { type JournalContent, readJournal } from './journal.js'
import type { PlanRunKind } from './plan.js'
import { isFinished, type PlanRunState, type RunView, viewOf } from './run-view.js'

const EXTENSION = '.jsonl'

/** `PLAN-20261121T101500Z-Test`, and a number behind it for a second one in the same second. */
const RUN_ID = /^([A-Za-z0-9][A-Za-z0-9._-]{0,63})-\d{8}T\d{6}Z-(Planned|Unplanned|Test|Failback)(-\d{1,4})?$/

/** Runs of one plan that start in the same second; more is a mistake of a script. */
const RUNS_PER_SECOND_MAX = 1000

/** A run in a listing. */
export interface PlanRunSummary {
  readonly runId: string
  readonly plan: string
  readonly kind: PlanRunKind
  readonly startedMs: number
  readonly lastMs: number
  readonly state: PlanRunState
}

/** A run that cannot be read, in a listing. */
export interface UnreadableRun {
  readonly runId: string
  readonly plan: string
  /** Code of the error that reading it gives. */
  readonly code: string
}

/** The folder of a plan's runs, ours until it is closed. @throws {PLAN_RUN_IN_USE} */
export function lockPlan(directory: string, plan: string): LockedDirectory {
  return openLocked(join(directory, plan), 'PLAN_RUN_IN_USE')
}

/** The name of the plan of a run. @throws {PLAN_RUN_NOT_FOUND} for what is no id of a run */
export function planOfRun(directory: string, runId: string): string {
  const [, plan] = RUN_ID.exec(runId) ?? []
  return plan ?? notFound(directory, runId)
}

/** Path of a run's journal. @throws {PLAN_RUN_NOT_FOUND} for what is no id of a run */
export function journalPath(directory: string, runId: string): string {
  return join(directory, planOfRun(directory, runId), `${runId}${EXTENSION}`)
}

/** A free id for a run that starts now; the plan must be locked. */
export function newRunId(directory: string, plan: string, kind: PlanRunKind, nowMs: number): string {
  const stamp = new Date(nowMs).toISOString().replaceAll(/[-:]|\.\d+/g, '')
  const first = `${plan}-${stamp}-${kind}`
  for (let number = 1; number <= RUNS_PER_SECOND_MAX; number += 1) {
    const runId = number === 1 ? first : `${first}-${number}`
    if (!fs.existsSync(journalPath(directory, runId))) return runId
  }
  throw new SecondsiteError('PLAN_RUN_UNFINISHED', {
    message: `${RUNS_PER_SECOND_MAX} runs of plan ${plan} have started in one second`,
    details: { plan, path: directory },
  })
}

/** A run, and the journal that it was read from. */
export interface JournaledRun {
  readonly view: RunView
  readonly content: JournalContent
}

/** What the journal of a run says. @throws {PLAN_RUN_NOT_FOUND, PLAN_RUN_DAMAGED, STORE_VERSION_NEWER, IO_FAILED} */
export function readRun(directory: string, runId: string): JournaledRun {
  const path = journalPath(directory, runId)
  if (!fs.existsSync(path)) return notFound(directory, runId)
  const content = readJournal(path)
  const view = viewOf(content.entries)
  if (view === undefined) return notFound(directory, runId)
  return { view, content }
}

function notFound(directory: string, runId: string): never {
  throw new SecondsiteError('PLAN_RUN_NOT_FOUND', {
    message: `there is no run ${JSON.stringify(runId)} in ${directory}`,
    details: { run: runId, path: directory },
  })
}

/** All runs of a plan, or of all plans, in the order of their start; a run of which a crash left nothing is none. */
export function listRuns(directory: string, plan?: string): (PlanRunSummary | UnreadableRun)[] {
  const plans = plan === undefined ? foldersIn(directory) : [plan]
  const runs = plans.flatMap((name) =>
    namesIn(join(directory, name)).flatMap((file) => summaryOf(directory, file)),
  )
  return runs.sort(
    (a, b) => startOf(a) - startOf(b) || a.runId.length - b.runId.length || compare(a.runId, b.runId),
  )
}

/** A run that cannot be read comes first, as somebody has to look at it. */
function startOf(run: PlanRunSummary | UnreadableRun): number {
  return 'startedMs' in run ? run.startedMs : 0
}

function compare(a: string, b: string): number {
  return a < b ? -1 : Number(a > b)
}

function summaryOf(directory: string, file: string): (PlanRunSummary | UnreadableRun)[] {
  if (!file.endsWith(EXTENSION)) return []
  const runId = file.slice(0, -EXTENSION.length)
  const [, plan] = RUN_ID.exec(runId) ?? []
  if (plan === undefined) return []
  try {
    const { run, startedMs, lastMs, state } = readRun(directory, runId).view
    return [{ runId, plan, kind: run.kind, startedMs, lastMs, state }]
  } catch (error) {
    if (!(error instanceof SecondsiteError)) throw error
    return error.code === 'PLAN_RUN_NOT_FOUND' ? [] : [{ runId, plan, code: error.code }]
  }
}

function foldersIn(directory: string): string[] {
  return entriesOf(directory).flatMap((entry) => (entry.isDirectory() ? [entry.name] : []))
}

function namesIn(directory: string): string[] {
  return entriesOf(directory).map((entry) => entry.name)
}

function entriesOf(path: string): fs.Dirent[] {
  try {
    return fs.readdirSync(path, { withFileTypes: true })
  } catch (error) {
    const coded = fromSystemError(error, { operation: 'list', path })
    if (coded.code === 'PATH_NOT_FOUND') return []
    throw coded
  }
}

/**
 * Refuses a second run of a plan while one is not finished. A test that waits for somebody stands in the way of other
 * tests only: a disaster does not wait for a drill. A run that cannot be read stands in nobody's way.
 * @throws {PLAN_RUN_UNFINISHED} naming it
 */
export function refuseSecondRun(directory: string, plan: string, kind: PlanRunKind): void {
  for (const run of listRuns(directory, plan)) {
    if (!('state' in run) || isFinished(run.state)) continue
    if (run.kind === 'Test' && kind !== 'Test') continue
    throw new SecondsiteError('PLAN_RUN_UNFINISHED', {
      message: `run ${run.runId} of plan ${plan} is not finished: it is ${run.state}`,
      details: { run: run.runId, plan, state: run.state },
    })
  }
}
