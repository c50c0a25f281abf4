/**
 * A process at work on a run: carries out what is left of it, stage by stage.
 *
 * Each step is journaled before and after, and the view that decides what comes next is made of the journal's entries
 * alone, so a session that goes on after a crash decides from the same facts as the one that was killed. A Planned or
 * Failback run stops at the first error: steps in flight are let finish, nothing more is begun. Unplanned and Test runs
 * go on; a machine whose failover failed is not started. When the journal cannot be written the session stops at once,
 * as what it did next would be known to nobody.
 */

import { resolve } from 'node:path'
import type { Clock } from '../clock.js'
import {
  asSecondsiteError,
  isSecondsiteError,
  type JsonValue,
  type PlainError,
  throwIfAborted,
  toPlainError,
} from '../errors.js'
import { SECOND_MS } from '../units.js'
import { runCommand } from './command.js'
import { environmentOf, factsOf } from './facts.js'
import { type ChoosingMachine, chooseGroupCuts, isGroupChoice } from './group-choice.js'
import { callHttp, checkVariables } from './http-call.js'
import type { RunJournal } from './journal.js'
import type { JournalEntry, SessionOutcome } from './journal-entries.js'
import type { PointChoice } from './plan.js'
import {
  isError,
  isSettled,
  type RunView,
  type StepState,
  type StepView,
  verbsOn,
  withEntry,
} from './run-view.js'
import {
  ACTION_TIMEOUT_SECONDS,
  type ActionStep,
  type MachineStep,
  type PlanStage,
  type PlanStep,
  stopsAtErrors,
} from './steps.js'
import type { FailoverFacts, PlanTarget, PlanTargets, TargetProgress, VerbContext } from './targets.js'

/** What happens in a run, for those who watch it. */
export type PlanRunEvent =
  | {
      readonly type: 'step'
      readonly atMs: number
      readonly step: PlanStep
      readonly state: StepState
      readonly error: PlainError | null
    }
  | { readonly type: 'progress'; readonly step: PlanStep; readonly progress: TargetProgress }

/** What a session works with. */
export interface SessionParts {
  /** Called once, by {@link PlanSession.begin}. */
  readonly openJournal: () => RunJournal
  readonly view: RunView
  readonly targets: PlanTargets
  readonly clock: Clock
  readonly operator: string
  readonly signal: AbortSignal
  readonly onEvent: (event: PlanRunEvent) => void
}

/** One process at work on one run. */
export class PlanSession {
  readonly #parts: SessionParts
  readonly #targets = new Map<string, Promise<PlanTarget>>()
  #view: RunView
  /** The choice of cuts that machines share, once it was needed. */
  #choosing: Promise<ReadonlyMap<string, unknown>> | undefined
  #journal: RunJournal | undefined
  /** What made the journal unwritable; from then on nothing is begun. */
  #broken: unknown

  constructor(parts: SessionParts) {
    this.#parts = parts
    this.#view = parts.view
  }

  /** The run as it is now. */
  get view(): RunView {
    return this.#view
  }

  /** Opens the journal, and the session in it. */
  begin(): void {
    this.#journal = this.#parts.openJournal()
    this.#append({ type: 'session', operator: this.#parts.operator, processId: process.pid })
  }

  /** Writes down what somebody has decided about a step. */
  decide(step: StepView, decision: 'confirm' | 'redo' | 'skip'): void {
    this.#append({ type: 'decided', step: step.step.id, decision, operator: this.#parts.operator })
  }

  /**
   * Looks for all that the run will need, before its first step.
   * @throws what `resolve` throws for a machine that is not there
   * @throws {PLAN_ACTION_FAILED} for a variable that a call needs and that is not set
   */
  async preflight(): Promise<void> {
    for (const { step } of this.#view.steps.values()) {
      if (step.type === 'machine') await this.#target(step.machine)
      else if (step.type === 'http' && step.action.http) checkVariables(step.action.http)
    }
  }

  /**
   * Carries out what is left, until the end, a manual step, an error that stops the run, or the signal.
   * @throws {STATE_DISK_FULL, IO_FAILED} when the journal cannot be written; the run can be continued
   */
  async carryOn(): Promise<RunView> {
    const outcome = await this.#stages()
    this.#append({ type: 'ended', outcome, operator: this.#parts.operator })
    return this.#view
  }

  /** Closes the journal and what `resolve` opened; whatever fails in that is not the run's. */
  async close(): Promise<void> {
    this.#journal?.close()
    const open = await Promise.allSettled(this.#targets.values())
    const targets = open.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    await Promise.allSettled(targets.map((target) => target.close?.()))
  }

  async #stages(): Promise<SessionOutcome> {
    const doesStop = stopsAtErrors(this.#view.run.kind)
    for (const stage of this.#view.stages) {
      await this.#stage(stage)
      if (this.#broken !== undefined) throw this.#broken
      const steps = this.#stepsOf(stage)
      if (steps.some(({ state }) => state === 'Waiting')) return 'WaitingForInput'
      if (doesStop && steps.some(isError)) return 'Failed'
      if (this.#parts.signal.aborted && !steps.every(isSettled)) return 'Aborted'
    }
    return [...this.#view.steps.values()].some(isError) ? 'CompletedWithErrors' : 'Completed'
  }

  #stepsOf(stage: PlanStage): StepView[] {
    return stage.steps.map((step) => this.#stepView(step))
  }

  #stepView(step: PlanStep): StepView {
    const view = this.#view.steps.get(step.id)
    if (view === undefined) throw new TypeError(`the run has no step ${step.id}`)
    return view
  }

  /** Works on the steps of a stage that are left, so many at once as the plan allows. */
  async #stage(stage: PlanStage): Promise<void> {
    const left = this.#stepsOf(stage).filter((one) => !isSettled(one))
    const work = async (): Promise<void> => {
      for (let one = left.shift(); one !== undefined && this.#mayBegin(stage); one = left.shift())
        await this.#stepOnce(one.step)
    }
    const workers = Math.min(this.#view.run.plan.parallelMachines, left.length)
    await Promise.all(Array.from({ length: workers }, work))
  }

  #mayBegin(stage: PlanStage): boolean {
    if (this.#broken !== undefined || this.#parts.signal.aborted) return false
    return !stopsAtErrors(this.#view.run.kind) || !this.#stepsOf(stage).some(isError)
  }

  async #stepOnce(step: PlanStep): Promise<void> {
    try {
      if (step.type === 'manual') this.#append({ type: 'waiting', step: step.id })
      else await this.#attempt(step)
    } catch (error) {
      // Only the journal throws here: what steps throw has become an entry.
      this.#broken ??= error
    }
  }

  async #attempt(step: MachineStep | ActionStep): Promise<void> {
    const reason = this.#blockedBecause(step)
    if (reason !== undefined) return this.#append({ type: 'blocked', step: step.id, reason })
    this.#append({ type: 'started', step: step.id })
    const end = await this.#endOf(step)
    this.#append(end)
  }

  /** Carries a step out and says what came of it. */
  async #endOf(step: MachineStep | ActionStep): Promise<JournalEntry> {
    try {
      const result = await (step.type === 'machine' ? this.#verb(step) : this.#action(step))
      return { type: 'done', step: step.id, ...(result === undefined ? {} : { result }) }
    } catch (thrown) {
      if (this.#broken !== undefined) throw thrown
      const error = asSecondsiteError(thrown)
      const isStopped = this.#parts.signal.aborted && isSecondsiteError(error, 'ABORTED')
      if (isStopped) return { type: 'interrupted', step: step.id }
      return { type: 'failed', step: step.id, error: toPlainError(error) }
    }
  }

  /** A machine that was not failed over is not started: it would run over there on whatever is there. */
  #blockedBecause(step: PlanStep): string | undefined {
    if (step.type !== 'machine' || step.verb !== 'boot') return undefined
    const failed = verbsOn(this.#view, step.machine).find(
      ({ step: { verb }, state }) =>
        (verb === 'failover' || verb === 'failback') && (state === 'Failed' || state === 'Blocked'),
    )
    return failed && `${failed.step.title} has failed`
  }

  async #verb(step: MachineStep): Promise<JsonValue | undefined> {
    const target = await this.#target(step.machine)
    const choice = step.verb === 'failover' ? await this.#choiceOf(step) : step.choice
    const { signal } = this.#parts
    // Nothing is awaited between this and the verb, which would not hear of an end that came before it.
    throwIfAborted(signal)
    const { kind, runId } = this.#view.run
    const onProgress = (progress: TargetProgress): void => this.#tell({ type: 'progress', step, progress })
    const { reference, point } = movedFacts(this.#view, step.machine)
    const key = `${runId}/${step.machine}`
    const context: VerbContext = {
      kind,
      key,
      signal,
      onProgress,
      ...(reference === undefined ? {} : { reference }),
      ...(point ? { point } : {}),
    }
    switch (step.verb) {
      case 'shutdown':
        await target.shutdown(context)
        return undefined
      case 'failover':
        return plainFacts(await target.failover(choice, context))
      case 'failback':
        return plainFacts(await target.failback(context))
      case 'reverse':
        return target.reverse(context)
      case 'boot':
        return target.boot(context)
      case 'cleanupTest':
        await target.cleanupTest(context)
        return undefined
    }
  }

  /** The point of a machine; that of its group is chosen when the first machine needs one, and once for all of them. */
  async #choiceOf({ machine, choice }: MachineStep): Promise<PointChoice> {
    if (!isGroupChoice(choice)) return choice
    const known = this.#view.chosen.find((one) => one.machine === machine)
    if (known) return known.choice
    this.#choosing ??= this.#choose()
    const errors = await this.#choosing
    const chosen = this.#view.chosen.find((one) => one.machine === machine)
    if (chosen) return chosen.choice
    throw errors.get(machine) ?? new TypeError(`nothing was chosen for ${machine}`)
  }

  /** A machine that cannot be asked fails by itself, and the others choose without it. @returns errors by machine */
  async #choose(): Promise<ReadonlyMap<string, unknown>> {
    const errors = new Map<string, unknown>()
    const machines: ChoosingMachine[] = []
    for (const { step } of this.#view.steps.values()) {
      if (step.type !== 'machine' || step.verb !== 'failover' || !isGroupChoice(step.choice)) continue
      const { machine, choice } = step
      if (this.#view.chosen.some((one) => one.machine === machine)) continue
      try {
        const cuts = await (await this.#target(machine)).groupCuts?.(this.#parts.signal)
        machines.push({ machine, choice, cuts: cuts ?? [] })
      } catch (error) {
        errors.set(machine, error)
      }
    }
    const { chosen, refused } = chooseGroupCuts(machines, this.#view.chosen)
    if (chosen.length > 0) this.#append({ type: 'chosen', points: [...chosen] })
    return new Map([...errors, ...refused])
  }

  /** A machine that could not be resolved is looked for again by its next step. */
  #target(name: string): Promise<PlanTarget> {
    const { plan, directory, kind } = this.#view.run
    const machine = plan.machines[name]
    if (machine === undefined) throw new TypeError(`the plan has no machine ${name}`)
    const known = this.#targets.get(name)
    if (known !== undefined) return known
    const verbs = verbsOn(this.#view, name).map(({ step }) => step.verb)
    const found = this.#parts.targets.resolve({ name, machine, directory, kind, verbs })
    this.#targets.set(name, found)
    found.catch(() => this.#targets.delete(name))
    return found
  }

  async #action(step: ActionStep): Promise<JsonValue> {
    const { action } = step
    const { clock, signal } = this.#parts
    const timeoutMs = (action.timeoutSeconds ?? ACTION_TIMEOUT_SECONDS) * SECOND_MS
    const facts = factsOf(this.#view, step)
    const common = { timeoutMs, clock, signal }
    if (action.http !== undefined) {
      const idempotencyKey = `${this.#view.run.runId}/${step.id}`
      return { ...(await callHttp({ ...common, http: action.http, idempotencyKey, facts })) }
    }
    const attempt = this.#stepView(step).attempts.length
    const result = await runCommand({
      ...common,
      command: action.command ?? [],
      directory: resolve(this.#view.run.directory, action.directory ?? '.'),
      environment: { ...action.environment, ...environmentOf(this.#view, step, attempt) },
      input: `${JSON.stringify(facts)}\n`,
      onSpawn: (spawned) => this.#append({ type: 'spawned', step: step.id, ...spawned }),
    })
    return { ...result }
  }

  /** Journals an entry, and takes it into the view only then. */
  #append(entry: JournalEntry): void {
    try {
      if (this.#journal === undefined) throw new TypeError('the session has not begun')
      this.#view = withEntry(this.#view, this.#journal.append(entry, this.#parts.clock.nowMs()))
    } catch (error) {
      this.#broken ??= error
      throw error
    }
    if (!('step' in entry) || entry.type === 'spawned') return
    const view = this.#view.steps.get(entry.step)
    if (view === undefined) return
    const { step, state, error } = view
    this.#tell({ type: 'step', atMs: this.#view.lastMs, step, state, error })
  }

  /** A listener that throws must not stop a failover. */
  #tell(event: PlanRunEvent): void {
    try {
      this.#parts.onEvent(event)
    } catch {
      // Whoever listens has to look after its own errors.
    }
  }
}

/** Journals hold plain data; what a target adds of its own stays behind. */
function plainFacts({ point, lossSeconds, lossBytes, copyBytes, reference }: FailoverFacts): JsonValue {
  const plainPoint = point && { sequence: point.sequence, timeMs: point.timeMs, kind: point.kind }
  const made = reference === undefined ? {} : { reference }
  return { point: plainPoint, lossSeconds, lossBytes, copyBytes, ...made }
}

/** What the failover of a machine has left for its later verbs. */
function movedFacts(view: RunView, machine: string): Partial<Pick<FailoverFacts, 'reference' | 'point'>> {
  const moved = verbsOn(view, machine).find(
    ({ step: { verb } }) => verb === 'failover' || verb === 'failback',
  )
  return (moved?.result ?? {}) as Partial<FailoverFacts>
}
