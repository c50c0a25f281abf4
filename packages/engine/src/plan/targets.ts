/**
 * What a recovery plan asks of the machines it names.
 *
 * The runner knows no replica, no disk and no hypervisor: it resolves each machine once and calls these verbs. All verbs
 * are idempotent: a verb that was done, or begun and cut off by a crash, is called again after the crash with the same
 * `key` and then finishes what is left, or says at once what it did the first time. A verb that is stopped by its signal
 * rejects with ABORTED and may be called again.
 */

import type { JsonValue } from '../errors.js'
import type { PlanMachine, PlanRunKind, PointChoice } from './plan.js'
import type { MachineVerb } from './steps.js'

/** Finds the machines of a plan. */
export interface PlanTargets {
  /**
   * The machine that a plan names; called once per machine and session, before its first verb.
   * @throws when the machine is not there, or cannot do what will be asked; a coded error, which then is the failure of
   * its steps
   */
  resolve(request: TargetRequest): Promise<PlanTarget>
}

/** Which machine is looked for, and what for. */
export interface TargetRequest {
  readonly name: string
  readonly machine: PlanMachine
  /** Folder at which relative paths of the plan start. */
  readonly directory: string
  readonly kind: PlanRunKind
  /** Verbs that the run will ask of it. */
  readonly verbs: readonly MachineVerb[]
}

/** A recovery point, as plans and reports show it. */
export interface PlanPoint {
  /** Number of the cut. */
  readonly sequence: number
  /** Unix time of the cut, in milliseconds. */
  readonly timeMs: number
  /** `crash-consistent`, `application-consistent`, `planned`. */
  readonly kind: string
}

/** What a failover takes and what it costs; of a forecast what is known before. */
export interface FailoverFacts {
  /** The point that is, or would be, taken. */
  readonly point: PlanPoint | null
  /** Seconds of writes that are lost; `null` when it cannot be known. */
  readonly lossSeconds: number | null
  /** Bytes of writes that are lost; `null` when it cannot be known. */
  readonly lossBytes: number | null
  /** Bytes that have to be copied first. */
  readonly copyBytes: number
  /** By what the machine finds again what it has made; journaled, and given to its later verbs. */
  readonly reference?: string
}

/** What a verb would do. */
export interface FailoverForecast extends FailoverFacts {
  /** Whether the machine is protected when the run has come to its end; absent of a test, which changes nothing of that. */
  readonly isProtectedAfterwards?: boolean
  /** How long it takes, in milliseconds; `null` when nothing was measured that would tell. */
  readonly estimatedMs: number | null
  /** What an operator should know before, one sentence each. */
  readonly notes?: readonly string[]
}

/** How far a verb has come. */
export interface TargetProgress {
  readonly doneBytes: number
  readonly totalBytes: number
}

/** What every verb gets. */
export interface VerbContext {
  readonly kind: PlanRunKind
  /** The same for all verbs on the machine in one run, before and after a crash; other runs have others. */
  readonly key: string
  /** What the failover of this run returned as its reference. */
  readonly reference?: string
  /** The point that the failover of this run has taken. */
  readonly point?: PlanPoint
  /** Aborted when the run is stopped. */
  readonly signal: AbortSignal
  /** May be called at any rate; only the newest is shown. */
  readonly onProgress: (progress: TargetProgress) => void
}

/** A cut that the machines of a consistency group share, as one of them can show it. */
export interface GroupCut {
  /** The same for all cuts of a group. */
  readonly groupId: string
  /** The same at each member. */
  readonly groupPointId: string
  /** Number of the cut at this machine. */
  readonly sequence: number
  /** What it was for this machine: `crash-consistent`, `application-consistent`. */
  readonly kind: string
}

/** A machine that a plan works on. */
export interface PlanTarget {
  /** What `failover` or `failback` would do now; changes nothing. */
  describe(kind: PlanRunKind, choice: PointChoice): Promise<FailoverForecast>
  /**
   * Cuts of its consistency group that it can show, oldest first; nothing of a machine that is in none. One that has been
   * failed over shows that cut alone. Absent where machines have no groups.
   * @param signal - of a run, which first takes in what was received; absent of a dry run, which changes nothing
   */
  groupCuts?(signal?: AbortSignal): Promise<readonly GroupCut[]>
  /** Stops the machine where it runs now; resolves when it is off, at once when it is off already. */
  shutdown(context: VerbContext): Promise<void>
  /** Fails over to the chosen point, as `context.kind` says: Planned, Unplanned or Test. */
  failover(choice: PointChoice, context: VerbContext): Promise<FailoverFacts>
  /** Brings the machine home, by a planned failover in the direction of home. */
  failback(context: VerbContext): Promise<FailoverFacts>
  /**
   * Turns replication round behind a failover or failback of this kind of run, so that the machine is protected where it is
   * now; says at once what it would have done when it is turned round already. Asked of machines with `reverse` alone.
   */
  reverse(context: VerbContext): Promise<JsonValue | undefined>
  /** Starts the machine, or the test copy, where the failover has brought it. May tell what it started. */
  boot(context: VerbContext): Promise<JsonValue | undefined>
  /** Stops and removes the test copy that `failover` of this run made; harmless when there is none. */
  cleanupTest(context: VerbContext): Promise<void>
  /** Gives up what `resolve` opened. */
  close?(): Promise<void>
}
