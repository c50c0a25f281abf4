/**
 * The machines of recovery plans as replicas in folders: what `PlanTargets` asks, done by the verbs of a replica.
 *
 * A failover leaves its disks closed: whoever starts the machine, by the plan's `start` command, takes the failover up and
 * exports it, so that no plan's process has to live for a machine to run. A test copy lives in the process that made it;
 * so a Test run is carried out, looked at and cleaned up by one process, and these targets hold its copies until then.
 *
 * A replica that has been failed over already stays as it is, whoever did it: that makes the verb idempotent. So does one
 * whose replication was turned round behind that.
 */

import { type Clock, systemClock } from './clock.js'
import { isSecondsiteError, type JsonValue, SecondsiteError, throwIfAborted } from './errors.js'
import { runCommand } from './plan/command.js'
import type { PlanRunKind, PointChoice } from './plan/plan.js'
import { groupOfPoint } from './group-point-id.js'
import { isReversed, plannedFailover, requirePlannedKind } from './planned-failover.js'
import type {
  FailoverFacts,
  FailoverForecast,
  GroupCut,
  PlanTarget,
  PlanTargets,
  TargetRequest,
  VerbContext,
} from './plan/targets.js'
import { systemRandom } from './random.js'
import type { RecoveryPointChoice } from './recovery/choice.js'
import { settleImages } from './recovery/context.js'
import type { RecoveryPoint } from './recovery/points.js'
import type { Replica } from './recovery/replica.js'
import { environmentOf, type Handover, handoverOf } from './recovery/runner-handover.js'
import type { TestFailover } from './recovery/test-failover.js'
import { openReplica } from './replica.js'
import { recordedPlan } from './reverse-plan.js'
import { sidesOf, type TargetSides } from './replica-sides.js'
import { SharedEngines } from './shared-engines.js'
import { ReplicaStore } from './store/replica-store.js'
import { formatBytes, SECOND_MS } from './units.js'
import type { StepObserver } from './works.js'

/** A test copy that a plan's process holds. */
interface HeldCopy {
  readonly replica: Replica
  readonly test: TestFailover
  /** Where its disks are exported. */
  address: string | undefined
}

/** What the machines of a plan share. */
interface SharedParts {
  readonly clock: Clock
  readonly step: StepObserver
  /** Test copies, by the key of their machine's verbs. */
  readonly copies: Map<string, HeldCopy>
  readonly engines: SharedEngines
  /** Carries actions out one after the other. */
  readonly inTurn: <Result>(action: () => Promise<Result>) => Promise<Result>
}

/** Options of {@link ReplicaTargets}, for tests and tuning. */
export interface ReplicaTargetsOptions {
  readonly clock?: Clock
  /** Called with the name of each step just before it; a test ends the process there. */
  readonly step?: StepObserver
}

/** Replicas in folders, as the machines of plans name them. */
export class ReplicaTargets implements PlanTargets, AsyncDisposable {
  readonly #shared: SharedParts

  constructor({ clock = systemClock, step = () => {} }: ReplicaTargetsOptions = {}) {
    const engines = new SharedEngines({ clock, step })
    this.#shared = { clock, step, copies: new Map(), engines, inTurn: turns() }
  }

  /** Test copies that this process holds, by the name of their test failover, with the address of their export. */
  get heldCopies(): readonly { readonly name: string; readonly address: string | undefined }[] {
    return [...this.#shared.copies.values()].map(({ test, address }) => ({ name: test.name, address }))
  }

  /** @throws {PLAN_INVALID} when the machine lacks a command for what will be asked; {REPLICA_NOT_FOUND} and the like */
  async resolve(request: TargetRequest): Promise<PlanTarget> {
    checkCommands(request)
    const sides = sidesOf(request)
    const { clock, step } = this.#shared
    const replica = await openReplica({ directory: sides.replica, clock, step })
    return new ReplicaTarget(request, sides, replica, this.#shared)
  }

  /** Removes the test copies that are left: they end with their process anyway. */
  async close(): Promise<void> {
    const { copies } = this.#shared
    for (const { replica } of copies.values()) await replica.close()
    copies.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

function turns(): SharedParts['inTurn'] {
  let last: Promise<unknown> = Promise.resolve()
  return (action) => {
    const next = last.then(action)
    last = next.catch(() => {})
    return next
  }
}

function checkCommands({ name, machine, kind, verbs }: TargetRequest): void {
  if (verbs.includes('shutdown') && machine.stop === undefined)
    throw lacking(name, 'stop', 'is shut down by a group')
  const isOurs = kind === 'Test' && (machine.testNbd !== undefined || machine.testRun === true)
  if (verbs.includes('boot') && machine.start === undefined && !isOurs)
    throw lacking(name, 'start', 'is started by a group')
}

function lacking(machine: string, setting: string, why: string): SecondsiteError {
  return new SecondsiteError('PLAN_INVALID', {
    message: `machine ${machine} ${why}, but has no "${setting}" command`,
    details: { machine, setting },
  })
}

class ReplicaTarget implements PlanTarget {
  readonly #request: TargetRequest
  readonly #sides: TargetSides
  readonly #replica: Replica
  readonly #shared: SharedParts

  constructor(request: TargetRequest, sides: TargetSides, replica: Replica, shared: SharedParts) {
    this.#request = request
    this.#sides = sides
    this.#replica = replica
    this.#shared = shared
  }

  async describe(kind: PlanRunKind, choice: PointChoice): Promise<FailoverForecast> {
    const isPlanned = kind === 'Planned' || kind === 'Failback'
    const { reverse } = this.#sides
    if (await this.#isReversed())
      return { ...MOVED, isProtectedAfterwards: true, estimatedMs: null, notes: [MOVED_NOTE] }
    if (reverse) await this.#requireReversible(reverse.home)
    const { point, lossMs, receivedBytes, undoneBytes } = await this.#replica.explainFailover(pointOf(choice))
    const plain = { sequence: point.number, timeMs: point.cutTimeMs, kind: point.kind }
    return {
      point: plain,
      lossSeconds: isPlanned ? 0 : lossMs / SECOND_MS,
      // What the primary has not sent is known to the primary alone.
      lossBytes: isPlanned ? 0 : null,
      copyBytes: choice === 'Latest' ? receivedBytes : 0,
      ...(kind === 'Test' ? {} : { isProtectedAfterwards: reverse !== undefined }),
      estimatedMs: null,
      notes: isPlanned ? plannedNotes(this.#sides) : unplannedNotes(kind, undoneBytes),
    }
  }

  async groupCuts(signal?: AbortSignal): Promise<readonly GroupCut[]> {
    const { context } = this.#replica
    const row = await context.recovery.failover()
    if (row === undefined && signal) await settleImages(context, signal)
    const cuts = groupCutsOf(await this.#replica.points())
    if (row === undefined) return cuts
    const own = cuts.filter(({ sequence }) => row.untilNs === null && sequence === row.pointNumber)
    // At a state of its own it shares none with the others, and must not be taken for a machine of no group.
    const elsewhere = cuts
      .slice(-1)
      .map((cut) => ({ ...cut, groupPointId: `failover to ${row.pointNumber}`, sequence: row.pointNumber }))
    return own.length > 0 ? own : elsewhere
  }

  async shutdown(context: VerbContext): Promise<void> {
    await this.#run(this.#request.machine.stop ?? [], context, {})
  }

  async failover(choice: PointChoice, context: VerbContext): Promise<FailoverFacts> {
    if (context.kind === 'Test') return this.#test(choice, context)
    if (context.kind === 'Planned') return this.#planned(context)
    const { fencePrimary } = this.#request.machine
    return this.#moved(choice, 'Unplanned', fencePrimary, context)
  }

  failback(context: VerbContext): Promise<FailoverFacts> {
    return this.#planned(context)
  }

  /** One machine at a time: members of a consistency group take the group along. */
  async reverse({ signal }: VerbContext): Promise<JsonValue | undefined> {
    const { state, reverse } = this.#sides
    if (state === undefined || reverse === undefined)
      throw new TypeError('asked of machines with reverse alone')
    const { engines, inTurn } = this.#shared
    return inTurn(() => {
      // Others may have been waited for meanwhile.
      throwIfAborted(signal)
      return engines.use(state, (home) =>
        engines.use(reverse.state, async (engine) => {
          const request = { engine, former: { engine: home }, directory: reverse.home, signal }
          const { machine, candidateBytes, lostLogs } = await plannedFailover(this.#replica, request)
          return {
            state: machine.state,
            replica: machine.replicaDirectory,
            candidateBytes,
            lostLogs: [...lostLogs],
          }
        }),
      )
    })
  }

  async boot(context: VerbContext): Promise<JsonValue | undefined> {
    const { machine } = this.#request
    if (context.kind === 'Test' && machine.testRun === true) return this.#runCopy(context)
    const started = context.kind === 'Test' ? await this.#exported(context) : {}
    if (machine.start === undefined) return started
    const { output } = await this.#run(machine.start, context, started)
    return { ...started, output }
  }

  async cleanupTest(context: VerbContext): Promise<void> {
    const copy = this.#shared.copies.get(context.key)
    this.#shared.copies.delete(context.key)
    await copy?.replica.close()
    if (context.reference === undefined) return
    try {
      await this.#replica.stopTestFailover(context.reference)
    } catch (error) {
      if (!isSecondsiteError(error, 'TEST_FAILOVER_NOT_FOUND')) throw error
    }
  }

  close(): Promise<void> {
    return this.#replica.close()
  }

  /** Whether a run before this one, or somebody, has brought it all the way. */
  async #isReversed(): Promise<boolean> {
    const { reverse } = this.#sides
    return reverse !== undefined && isReversed(this.#replica, reverse.home)
  }

  /** What a reversal would refuse, as far as it can be told without the engines. */
  async #requireReversible(home: string): Promise<void> {
    const info = await this.#replica.failoverInfo()
    const { name } = this.#request
    if (info) return requirePlannedKind(info, name)
    await ReplicaStore.requireFree(home, name, this.#shared.clock)
  }

  /** Where the primary can be reached, its last cut is sent and proven; else somebody has prepared it before. */
  async #planned(context: VerbContext): Promise<FailoverFacts> {
    if (await this.#isReversed()) return MOVED
    if ((await this.#replica.failoverInfo()) === undefined) await this.#prepare(context.signal)
    return this.#moved('Latest', 'Planned', false, context)
  }

  async #prepare(signal: AbortSignal): Promise<void> {
    const { state } = this.#sides
    if (state === undefined) return
    await this.#shared.engines.use(state, async (engine) => {
      const primary = engine.machine(this.#request.name)
      if (primary.state !== 'PreparedForFailover') await primary.prepareFailover({ signal })
    })
  }

  async #moved(
    choice: PointChoice,
    kind: 'Planned' | 'Unplanned',
    fencePrimary: boolean,
    { signal }: VerbContext,
  ): Promise<FailoverFacts> {
    const replica = this.#replica
    const point = pointOf(choice)
    if ((await replica.failoverInfo()) === undefined)
      await replica.startFailover({ point, kind, fencePrimary, signal })
    // One that a death has cut off is taken up to its end; once its reversal has begun, that is what goes on.
    else if ((await recordedPlan(replica.context)) === undefined) await replica.failover()
    await replica.closeFailover()
    const info = await replica.failoverInfo()
    if (info === undefined) throw new TypeError('a failover that was started is there')
    const points = await replica.points()
    const pointKind = points.find(({ number }) => number === info.pointNumber)?.kind ?? 'crash-consistent'
    const isPlanned = kind === 'Planned'
    return {
      point: { sequence: info.pointNumber, timeMs: info.pointTimeMs, kind: pointKind },
      lossSeconds: isPlanned ? 0 : Math.max(0, info.startedMs - info.pointTimeMs) / SECOND_MS,
      lossBytes: isPlanned ? 0 : null,
      copyBytes: 0,
    }
  }

  /** A replica of its own holds the copy, as the session closes this one. */
  async #test(choice: PointChoice, { key }: VerbContext): Promise<FailoverFacts> {
    const held = this.#shared.copies.get(key)
    if (held !== undefined) return this.#testFacts(held.test)
    const replica = await openReplica({ directory: this.#replica.directory, clock: this.#shared.clock })
    try {
      const test = await replica.startTestFailover({ point: pointOf(choice) })
      this.#shared.copies.set(key, { replica, test, address: undefined })
      return await this.#testFacts(test)
    } catch (error) {
      this.#shared.copies.delete(key)
      await replica.close()
      throw error
    }
  }

  async #testFacts({ id, info }: TestFailover): Promise<FailoverFacts> {
    const points = await this.#replica.points()
    const kind = points.find(({ number }) => number === info.pointNumber)?.kind ?? 'crash-consistent'
    const lossSeconds = Math.max(0, info.startedMs - info.pointTimeMs) / SECOND_MS
    const point = { sequence: info.pointNumber, timeMs: info.pointTimeMs, kind }
    return { point, lossSeconds, lossBytes: null, copyBytes: 0, reference: id }
  }

  /** What the commands of the machine are told; without an address where somebody else exports the disks. */
  async #handover({ kind, key, point: moved }: VerbContext, address = ''): Promise<Handover> {
    const { settings } = await this.#replica.failoverSettings()
    const [test, info] = [this.#shared.copies.get(key)?.test, await this.#replica.failoverInfo()]
    const known = test?.info ?? info
    const point = known ? { number: known.pointNumber, timeMs: known.pointTimeMs } : pointFactsOf(moved)
    const facts = {
      kind: RUN_KIND[kind],
      machine: this.#request.name,
      replica: this.#replica.directory,
      run: '',
      point,
      address,
      disks: [],
      defaultName: test?.name ?? this.#request.name,
    }
    return handoverOf(settings, facts, systemRandom)
  }

  /** The machine ends with its copy. */
  async #runCopy(context: VerbContext): Promise<JsonValue> {
    const copy = this.#copyOf(context)
    const run = copy.test.info.run ?? (await copy.test.run({ listen: this.#request.machine.testNbd })).info
    copy.address = run.address
    const { name, method, address, folder, processId } = run
    return { name, method, address, folder, processId }
  }

  #copyOf({ key, reference = '' }: VerbContext): HeldCopy {
    const copy = this.#shared.copies.get(key)
    if (copy !== undefined) return copy
    throw new SecondsiteError('TEST_FAILOVER_NOT_FOUND', {
      message: `the test copy of ${this.#request.name} has ended with the process that held it`,
      details: { machine: this.#request.name, testId: reference, path: this.#replica.directory },
    })
  }

  async #exported(context: VerbContext): Promise<{ readonly address?: string }> {
    const copy = this.#copyOf(context)
    const { testNbd } = this.#request.machine
    if (testNbd === undefined) return {}
    copy.address ??= (await copy.test.exportNbd({ listen: testNbd })).address
    return { address: copy.address }
  }

  /** Who protects the machine where it is now, for the command that serves its disks; one path a line. */
  async #protection(): Promise<Record<string, string>> {
    const { reverse } = this.#sides
    if (reverse === undefined || !(await this.#isReversed())) return {}
    const disks = await this.#replica.context.store.disks()
    return {
      SECONDSITE_STATE: reverse.state,
      SECONDSITE_HOME: reverse.home,
      SECONDSITE_DISKS: disks.map(({ imagePath }) => imagePath).join('\n'),
    }
  }

  async #run(
    command: readonly string[],
    context: VerbContext,
    { address }: { readonly address?: string },
  ): Promise<{ readonly output: string }> {
    const { kind, key, signal } = context
    const { name, machine, directory } = this.#request
    const replica = this.#replica.directory
    const handover = await this.#handover(context, address)
    return runCommand({
      command,
      directory,
      environment: {
        ...environmentOf(handover, key),
        SECONDSITE_MACHINE: name,
        SECONDSITE_KIND: kind,
        SECONDSITE_RUN: key.split('/')[0] ?? '',
        SECONDSITE_REPLICA: replica,
        ...(address === undefined ? {} : { SECONDSITE_NBD: address }),
        ...(await this.#protection()),
      },
      input: JSON.stringify(handover),
      timeoutMs: machine.timeoutSeconds * SECOND_MS,
      clock: this.#shared.clock,
      signal,
      onSpawn: ignore,
    })
  }
}

/** A machine that is where the run brings it. */
const MOVED = { point: null, lossSeconds: 0, lossBytes: 0, copyBytes: 0 } as const
const MOVED_NOTE = 'is there already, and protected'

/** A plan brings a machine home as it brought it away. */
const RUN_KIND = { Test: 'Test', Planned: 'Planned', Unplanned: 'Unplanned', Failback: 'Planned' } as const

function ignore(): void {
  // These commands are repeated without asking, as the verbs are; nobody has to know whether one still runs.
}

function pointOf(choice: PointChoice): RecoveryPointChoice {
  if (typeof choice === 'string') return choice
  if (choice.sequence !== undefined) return { point: choice.sequence }
  return { timeMs: Date.parse(choice.time ?? '') }
}

function groupCutsOf(points: readonly RecoveryPoint[]): GroupCut[] {
  return points.flatMap(({ number: sequence, kind, groupPointId, damage }) => {
    if (groupPointId === null || damage !== null) return []
    return [{ groupId: groupOfPoint(groupPointId), groupPointId, sequence, kind }]
  })
}

function pointFactsOf(point: VerbContext['point']): Handover['point'] {
  return { number: point?.sequence ?? 0, timeMs: point?.timeMs ?? 0 }
}

function plannedNotes({ reverse }: TargetSides): string[] {
  const first = 'the primary sends what it still holds before'
  if (reverse === undefined) return [first, 'is not protected afterwards: it has no "reverse"']
  return [first, `replicates to ${reverse.home} afterwards, with nothing owed`]
}

function unplannedNotes(kind: PlanRunKind, undoneBytes: number): string[] {
  const undone = undoneBytes > 0 ? [`takes back ${formatBytes(undoneBytes)} of the newest state`] : []
  return kind === 'Test' ? undone : [...undone, 'is not protected afterwards, until replication is reversed']
}
