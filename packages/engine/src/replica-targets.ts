/**
 * The machines of recovery plans as replicas in folders: what `PlanTargets` asks, done by the verbs of a replica.
 *
 * A failover leaves its disks closed: whoever starts the machine, by the plan's `start` command, takes the failover up and
 * exports it, so that no plan's process has to live for a machine to run. A test copy lives in the process that made it;
 * so a Test run is carried out, looked at and cleaned up by one process, and these targets hold its copies until then.
 *
 * A replica that has been failed over already stays as it is, whoever did it: that makes the verb idempotent.
 */

import { resolve } from 'node:path'
import { type Clock, systemClock } from './clock.js'
import { Engine } from './engine.js'
import { isSecondsiteError, type JsonValue, SecondsiteError } from './errors.js'
import { runCommand } from './plan/command.js'
import type { PlanRunKind, PointChoice } from './plan/plan.js'
import type {
  FailoverFacts,
  FailoverForecast,
  PlanTarget,
  PlanTargets,
  TargetRequest,
  VerbContext,
} from './plan/targets.js'
import { systemRandom } from './random.js'
import type { RecoveryPointChoice } from './recovery/choice.js'
import type { Replica } from './recovery/replica.js'
import { environmentOf, type Handover, handoverOf } from './recovery/runner-handover.js'
import type { TestFailover } from './recovery/test-failover.js'
import { openReplica } from './replica.js'
import { formatBytes, SECOND_MS } from './units.js'

/** A test copy that a plan's process holds. */
interface HeldCopy {
  readonly replica: Replica
  readonly test: TestFailover
  /** Where its disks are exported. */
  address: string | undefined
}

/** Replicas in folders, as the machines of plans name them. */
export class ReplicaTargets implements PlanTargets, AsyncDisposable {
  readonly #clock: Clock
  readonly #copies = new Map<string, HeldCopy>()

  constructor(options: { readonly clock?: Clock } = {}) {
    this.#clock = options.clock ?? systemClock
  }

  /** Test copies that this process holds, by the name of their test failover, with the address of their export. */
  get heldCopies(): readonly { readonly name: string; readonly address: string | undefined }[] {
    return [...this.#copies.values()].map(({ test, address }) => ({ name: test.name, address }))
  }

  /** @throws {PLAN_INVALID} when the machine lacks a command for what will be asked; {REPLICA_NOT_FOUND} and the like */
  async resolve(request: TargetRequest): Promise<PlanTarget> {
    checkCommands(request)
    const directory = resolve(request.directory, request.machine.replica)
    const replica = await openReplica({ directory, clock: this.#clock })
    return new ReplicaTarget(request, replica, this.#copies, this.#clock)
  }

  /** Removes the test copies that are left: they end with their process anyway. */
  async close(): Promise<void> {
    for (const { replica } of this.#copies.values()) await replica.close()
    this.#copies.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
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
  readonly #replica: Replica
  readonly #copies: Map<string, HeldCopy>
  readonly #clock: Clock

  constructor(request: TargetRequest, replica: Replica, copies: Map<string, HeldCopy>, clock: Clock) {
    this.#request = request
    this.#replica = replica
    this.#copies = copies
    this.#clock = clock
  }

  async describe(kind: PlanRunKind, choice: PointChoice): Promise<FailoverForecast> {
    const isPlanned = kind === 'Planned' || kind === 'Failback'
    const { point, lossMs, receivedBytes, undoneBytes } = await this.#replica.explainFailover(pointOf(choice))
    const plain = { sequence: point.number, timeMs: point.cutTimeMs, kind: point.kind }
    return {
      point: plain,
      lossSeconds: isPlanned ? 0 : lossMs / SECOND_MS,
      // What the primary has not sent is known to the primary alone.
      lossBytes: isPlanned ? 0 : null,
      copyBytes: choice === 'Latest' ? receivedBytes : 0,
      estimatedMs: null,
      notes: notesOf(isPlanned, undoneBytes),
    }
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

  async boot(context: VerbContext): Promise<JsonValue | undefined> {
    const { machine } = this.#request
    if (context.kind === 'Test' && machine.testRun === true) return this.#runCopy(context)
    const started = context.kind === 'Test' ? await this.#exported(context) : {}
    if (machine.start === undefined) return started
    const { output } = await this.#run(machine.start, context, started)
    return { ...started, output }
  }

  async cleanupTest(context: VerbContext): Promise<void> {
    const copy = this.#copies.get(context.key)
    this.#copies.delete(context.key)
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

  /** Where the primary can be reached, its last cut is sent and proven; else somebody has prepared it before. */
  async #planned(context: VerbContext): Promise<FailoverFacts> {
    if ((await this.#replica.failoverInfo()) === undefined) await this.#prepare(context.signal)
    return this.#moved('Latest', 'Planned', false, context)
  }

  async #prepare(signal: AbortSignal): Promise<void> {
    const { name, directory } = this.#request
    const { state } = this.#request.machine
    if (state === undefined) return
    await using engine = await Engine.open({ stateDirectory: resolve(directory, state), clock: this.#clock })
    const primary = engine.machine(name)
    if (primary.state !== 'PreparedForFailover') await primary.prepareFailover({ signal })
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
    // One that a death has cut off is taken up to its end.
    else await replica.failover()
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
    const held = this.#copies.get(key)
    if (held !== undefined) return this.#testFacts(held.test)
    const replica = await openReplica({ directory: this.#replica.directory, clock: this.#clock })
    try {
      const test = await replica.startTestFailover({ point: pointOf(choice) })
      this.#copies.set(key, { replica, test, address: undefined })
      return await this.#testFacts(test)
    } catch (error) {
      this.#copies.delete(key)
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
  async #handover(kind: PlanRunKind, key: string, address = ''): Promise<Handover> {
    const { settings } = await this.#replica.failoverSettings()
    const [test, info] = [this.#copies.get(key)?.test, await this.#replica.failoverInfo()]
    const point = test?.info ?? info
    const facts = {
      kind: RUN_KIND[kind],
      machine: this.#request.name,
      replica: this.#replica.directory,
      run: '',
      point: { number: point?.pointNumber ?? 0, timeMs: point?.pointTimeMs ?? 0 },
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
    const copy = this.#copies.get(key)
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

  async #run(
    command: readonly string[],
    { kind, key, signal }: VerbContext,
    { address }: { readonly address?: string },
  ): Promise<{ readonly output: string }> {
    const { name, machine, directory } = this.#request
    const replica = this.#replica.directory
    const handover = await this.#handover(kind, key, address)
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
      },
      input: JSON.stringify(handover),
      timeoutMs: machine.timeoutSeconds * SECOND_MS,
      clock: this.#clock,
      signal,
      onSpawn: ignore,
    })
  }
}

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

function notesOf(isPlanned: boolean, undoneBytes: number): string[] {
  if (isPlanned) return ['the primary sends what it still holds before']
  return undoneBytes > 0 ? [`takes back ${formatBytes(undoneBytes)} of the newest state`] : []
}
