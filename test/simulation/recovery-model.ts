/**
 * Seeded lives of a machine and its replica over the real engine and core: cycles, points, tests, failovers in every form
 * with every end, reversals, the way home, and deaths, against arrays of bytes by time.
 *
 * Invariants, looked at after every step:
 * 1. Every point that is listed reads as the disks stood at its cut; so do views and tests that stay open meanwhile.
 * 2. Every moment of which the writes are kept reads as the disks stood then, or is refused as not exact.
 * 3. The images are the newest applied cut until a commit, then what the failover's disks read.
 * 4. A failover's disks read as the chosen state and what was written to them since, also after a death.
 * 5. A verb that the model's table has not for the state is refused with INVALID_STATE and changes nothing.
 * 6. A reversal compares nothing if and only if nothing was written that one side lacks; afterwards both sides are equal.
 *    Where both sides were written to, it is refused until one is given up.
 *
 * A failing run prints its seed and its steps; SECONDSITE_SEED replays that one alone.
 */

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { type Failover, type ReplicationState, reverseReplication } from '@secondsite/engine'
import { expect } from 'vitest'
import {
  change,
  type Content,
  copyOf,
  expectShows,
  type PrimaryVerb,
  refusedByPrimary,
  refusedByReplica,
  type ReplicaVerb,
} from './recovery-model-oracle.js'
import { ReplicaChecks } from './recovery-model-replica.js'
import { World } from './recovery-model-world.js'

const KIB = 1024
const MINUTE_MS = 60_000
const stepCount = 30
/** A cycle that moves no data sends headers of a log and an index for each disk. */
const EMPTY_CYCLE_BYTES_MAX = 4 * KIB

/** Steps at which a cycle may die. */
const CYCLE_STEPS = [
  'cycle.before-cut',
  'cycle.after-cut',
  'cycle.before-queueing',
  'ship.before-sending',
  'spool.before-sync',
  'receive.before-marking',
  'apply.before-marking',
  'apply.before-saving',
  'apply.before-writing',
  'apply.before-watermark',
  'apply.before-keeping',
  'apply.before-cleaning',
  'ship.before-received',
  'ship.before-applied',
  'ship.before-release',
  'expire.before-files',
]

/** A failover that has begun. */
interface Begun {
  readonly failover: Failover
  readonly content: Map<string, Buffer>
  readonly isPlanned: boolean
  /** Whether the state chosen is the newest cut that the images hold. */
  readonly isNewest: boolean
  isWritten: boolean
  isCommitted: boolean
}

type Steps = readonly (readonly [weight: number, name: string, step: () => Promise<void>])[]

class Run {
  readonly world: World
  readonly trace: string[] = []
  readonly #checks: ReplicaChecks
  #primary: ReplicationState = 'Replicating'
  /** What the images hold; undefined after a death in the middle of a cycle. */
  #applied: Content | undefined
  /** Bytes written since the newest cut that was applied. */
  #unsentBytes = 0
  #begun: Begun | undefined
  #isEveryPointDue = true
  /** Whether the primary has the store: from its first conversation on. */
  #hasStore = true

  constructor(seed: number) {
    this.world = new World(seed)
    this.#checks = new ReplicaChecks(this.world)
  }

  async start(): Promise<void> {
    const { policy, sizesBytes } = this.world.settings
    this.trace.push(JSON.stringify({ policy, sizesBytes }))
    await this.world.begin()
    this.#isApplied()
    await this.#expectAll()
  }

  async step(): Promise<void> {
    const steps = this.#steps()
    const total = steps.reduce((sum, [weight]) => sum + weight, 0)
    let at = this.world.random.below(total)
    const [, name, action] = steps.find(([weight]) => (at -= weight) < 0) as Steps[number]
    this.#say(name)
    await action()
    await this.#expectAll()
  }

  /** Home again or not: both sides are brought together and compared by the engine itself. */
  async end(): Promise<void> {
    this.#say('end')
    if (this.#begun) await this.#reverse()
    await this.#mend()
    await this.#cycle()
    await this.#expectAll()
    expect(await (await this.world.machine()).verify()).toMatchObject({ equal: true })
    await this.#checks.closeAll()
    this.#expectTidy()
  }

  #say(text: string): void {
    this.trace.push(text)
  }

  #steps(): Steps {
    if (this.#begun?.isCommitted) return this.#committedSteps()
    return this.#begun ? this.#failedOverSteps(this.#begun) : this.#followingSteps()
  }

  #followingSteps(): Steps {
    const { world } = this
    const checks = this.#checks
    return [
      [8, 'write', () => this.#write()],
      [8, 'cycle', () => this.#cycle()],
      [1, 'cycle that dies', () => this.#dyingCycle()],
      [1, 'resynchronize', () => this.#resynchronize()],
      [1, 'suspend', () => this.#suspend()],
      [1, 'reopen the engine', () => this.#reopenEngine(world.random.below(2) === 0)],
      [1, 'reopen the replica', () => this.#reopenReplica()],
      [3, 'view', () => checks.view()],
      [3, 'test', () => checks.test()],
      [1, 'restore', () => checks.restore()],
      [1, 'diff', () => checks.diff()],
      [1, 'lock', () => checks.lock()],
      [world.settings.keepsEveryWrite ? 4 : 0, 'moments', () => checks.moments()],
      [2, 'verb that is refused', () => this.#refused()],
      [1, 'prepare and cancel', () => this.#prepareAndCancel()],
      [2, 'planned failover', () => this.#planned()],
      [2, 'unplanned failover', () => this.#unplanned()],
    ]
  }

  #failedOverSteps(begun: Begun): Steps {
    const checks = this.#checks
    return [
      [4, 'write to the failover', () => this.#writeTo(begun)],
      [begun.isPlanned ? 0 : 2, 'write to the former primary', () => this.#write()],
      [1, 'cycle of the former primary', () => this.#fencedCycle()],
      [begun.isPlanned ? 0 : 2, 'change the point', () => this.#changePoint(begun)],
      [1, 'reopen the replica', () => this.#reopenReplica()],
      [1, 'view', () => checks.view()],
      [2, 'verb that is refused', () => this.#refused()],
      [2, 'cancel', () => this.#cancel(begun)],
      [2, 'commit', () => this.#commit(begun)],
      [1, 'reverse', () => this.#reverse()],
    ]
  }

  #committedSteps(): Steps {
    const begun = this.#begun as Begun
    return [
      [3, 'write to the new primary', () => this.#writeTo(begun)],
      [1, 'write to the former primary', () => (begun.isPlanned ? Promise.resolve() : this.#write())],
      [1, 'commit once more', () => this.world.open.commitFailover()],
      [1, 'reopen the replica', () => this.#reopenReplica()],
      [1, 'verb that is refused', () => this.#refused()],
      [3, 'reverse', () => this.#reverse()],
    ]
  }

  async #expectAll(): Promise<void> {
    const { world } = this
    world.expectDisks()
    if (world.isPrimaryAlive)
      expect((await world.machine()).state, 'state of the primary').toBe(this.#primary)
    await world.expectState(this.#replicaState())
    if (this.#begun) await expectShows(this.#begun.failover, this.#begun.content, 'the failover')
    if (this.#begun?.isCommitted) {
      world.expectImages(this.#begun.content)
      expect(await world.open.points(), 'points after the commit').toEqual([])
      return
    }
    if (this.#applied) world.expectImages(this.#applied)
    await this.#checks.expectAll(this.#isEveryPointDue)
    this.#isEveryPointDue = false
  }

  #replicaState(): ReplicationState {
    if (this.#begun) return this.#begun.isCommitted ? 'FailedOver' : 'FailedOverWaitingCompletion'
    return 'Replicating'
  }

  /** The images hold what the disks hold. */
  #isApplied(): void {
    this.#applied = copyOf(this.world.history.now)
    this.#unsentBytes = 0
    this.#isEveryPointDue = true
    this.#hasStore = true
  }

  async #write(): Promise<void> {
    const { random, history, settings } = this.world
    // Fewer than the logs may hold before they are brought together, which keeps no single write.
    if (this.#unsentBytes > Math.min(...settings.sizesBytes) / 3) return
    const machine = await this.world.machine()
    for (let count = 1 + random.below(3); count > 0; count -= 1) {
      this.#unsentBytes += await change(random, machine.disks, history.now)
      history.remember()
    }
    if (random.below(4) === 0) await machine.disks[0]?.flush()
  }

  async #cycle(): Promise<void> {
    await this.#mend()
    const { world } = this
    world.clock.pass(MINUTE_MS * world.random.below(90))
    const timeMs = world.clock.nowMs()
    const isEmpty = this.#unsentBytes === 0 && this.#applied !== undefined
    const report = await (await world.machine()).replicate()
    await world.settled()
    expect(report.cutTimeMs).toBeGreaterThanOrEqual(timeMs)
    if (isEmpty) expect(report.sentBytes, 'bytes of an empty cycle').toBeLessThan(EMPTY_CYCLE_BYTES_MAX)
    this.#isApplied()
    await this.#expectLatest(report.cutTimeMs)
  }

  async #expectLatest(cutTimeMs: number): Promise<void> {
    const latest = (await this.world.open.points()).at(-1)
    expect(latest).toMatchObject({ isLatest: true, cutTimeMs })
  }

  /** Whatever a step or a death left, the machine replicates again. */
  async #mend(): Promise<void> {
    const machine = await this.world.machine()
    if (machine.state === 'Suspended' || machine.state === 'Error') await machine.resume()
    if (machine.state === 'PreparedForFailover') await machine.cancelFailover()
    this.#primary = 'Replicating'
  }

  /** The process dies somewhere in a cycle; the next one finishes what was begun. */
  async #dyingCycle(): Promise<void> {
    await this.#mend()
    const { world } = this
    const step = CYCLE_STEPS[world.random.below(CYCLE_STEPS.length)] as string
    world.clock.pass(MINUTE_MS)
    world.armedStep = step
    const machine = await world.machine()
    const isDone = await machine.replicate().then(
      () => true,
      () => false,
    )
    await world.settled()
    this.#say(`  ${step}: ${isDone ? 'came through' : 'died'}`)
    this.#applied = undefined
    await this.#reopenEngine(true)
    this.#primary = (await world.machine()).state
    expect(['Replicating', 'Error']).toContain(this.#primary)
  }

  async #resynchronize(): Promise<void> {
    const { random, clock } = this.world
    clock.pass(MINUTE_MS)
    const machine = await this.world.machine()
    for (const disk of machine.disks)
      if (random.below(2) === 0) await disk.requireResync('ASKED_FOR', random.below(2) === 0)
    if (this.#primary === 'PreparedForFailover') await this.#mend()
    await machine.resynchronize({ restart: random.below(3) === 0 })
    await this.world.settled()
    this.#primary = 'Replicating'
    this.#isApplied()
  }

  async #suspend(): Promise<void> {
    await this.#mend()
    await (await this.world.machine()).suspend()
    this.#primary = 'Suspended'
  }

  async #reopenEngine(isDeath: boolean): Promise<void> {
    await this.world.end(this.world.active, isDeath)
    this.#hasStore = false
    await this.world.machine()
  }

  async #reopenReplica(): Promise<void> {
    this.#checks.forget(false)
    await this.world.openReplica()
    if (this.#begun === undefined) return
    const failover = await this.world.open.failover()
    if (failover === undefined) throw new Error('the failover is gone')
    this.#begun = { ...this.#begun, failover }
  }

  async #prepare(): Promise<void> {
    await this.#mend()
    const { world } = this
    world.clock.pass(MINUTE_MS)
    const report = await (await world.machine()).prepareFailover({ verify: world.random.below(2) === 0 })
    await world.settled()
    this.#primary = 'PreparedForFailover'
    this.#isApplied()
    expect(report.cutTimeMs).toBeGreaterThanOrEqual(world.history.timesMs.at(-1) ?? 0)
  }

  async #prepareAndCancel(): Promise<void> {
    await this.#prepare()
    await this.#refused()
    await (await this.world.machine()).cancelFailover()
    this.#primary = 'Replicating'
  }

  async #planned(): Promise<void> {
    await this.#prepare()
    const failover = await this.world.open.startFailover({ kind: 'Planned', fencePrimary: true })
    this.#fails(failover, this.world.history.now, true)
  }

  async #unplanned(): Promise<void> {
    const { world } = this
    const isDisaster = world.random.below(2) === 0
    if (isDisaster) await world.end(world.active, true)
    if (isDisaster) this.#hasStore = false
    else if (this.#hasStore)
      await expect(world.open.startFailover()).rejects.toMatchObject({ code: 'PRIMARY_ALIVE' })
    const point = await this.#checks.choose()
    this.#say(`  to ${JSON.stringify(point)}${isDisaster ? ', the primary is gone' : ''}`)
    // What a death left in the spool is applied by whoever owns the store: with the engine there, by its next cycle.
    if (!isDisaster && this.#applied === undefined) await this.#cycle()
    const found = await this.#checks.over(
      point,
      () => world.open.startFailover({ point, fencePrimary: !isDisaster }),
      ({ row }) => row.pointTimeMs,
    )
    if (found) this.#fails(found.opened, found.content, false)
    else await world.machine()
  }

  #fails(failover: Failover, content: Content, isPlanned: boolean): void {
    const applied = this.#applied
    const isNewest =
      applied !== undefined && [...content].every(([name, bytes]) => applied.get(name)?.equals(bytes))
    const state = { isWritten: false, isCommitted: this.#begun?.isCommitted ?? false }
    this.#begun = { failover, content: copyOf(content), isPlanned, isNewest, ...state }
    this.#isEveryPointDue = true
  }

  async #writeTo(begun: Begun): Promise<void> {
    const { random } = this.world
    for (let count = 1 + random.below(3); count > 0; count -= 1)
      await change(random, begun.failover.disks, begun.content)
    if (random.below(3) === 0) await begun.failover.disks[0]?.flush()
    begun.isWritten = true
  }

  /** The former primary is refused, and knows why. */
  async #fencedCycle(): Promise<void> {
    const machine = await this.world.machine()
    const isTried = machine.state === 'Replicating'
    const code = isTried ? 'REPLICA_FAILED_OVER' : 'INVALID_STATE'
    await expect(machine.replicate()).rejects.toMatchObject({ code })
    if (isTried) this.#primary = 'Error'
  }

  async #changePoint(begun: Begun): Promise<void> {
    const point = await this.#checks.choose()
    this.#say(`  to ${JSON.stringify(point)}`)
    const found = await this.#checks.over(
      point,
      () => this.world.open.changeRecoveryPoint(point),
      ({ row }) => row.pointTimeMs,
    )
    if (found) this.#fails(found.opened, found.content, begun.isPlanned)
  }

  async #cancel(begun: Begun): Promise<void> {
    await this.world.open.cancelFailover()
    this.#begun = undefined
    expect(await this.world.open.failover()).toBeUndefined()
    await this.world.machine()
    if (begun.isPlanned) await this.#mend()
  }

  async #commit(begun: Begun): Promise<void> {
    const { open } = this.world
    await this.#refuseCommit(() => open.commitFailover())
    await open.commitFailover({ dropLocked: true })
    begun.isCommitted = true
  }

  /** What somebody reads or has locked is not given up without a word. */
  async #refuseCommit(commit: () => Promise<unknown>): Promise<void> {
    if (await this.#checks.isLocked()) await expect(commit()).rejects.toMatchObject({ code: 'POINT_LOCKED' })
    else if (this.#checks.isRead) await expect(commit()).rejects.toMatchObject({ code: 'POINT_IN_USE' })
    await this.world.expectState('FailedOverWaitingCompletion')
    await this.#checks.closeAll()
  }

  async #reverse(): Promise<void> {
    const { world } = this
    const begun = this.#begun as Begun
    await this.#checks.closeAll()
    const former = { engine: await world.engine(world.active) }
    const request = {
      engine: await world.engine(world.passive),
      former,
      directory: world.storeOf(world.active),
      dropLocked: true,
    }
    const hasUnsent = this.#unsentBytes > 0 || this.#applied === undefined
    if (this.#unsentBytes > 0) await this.#refuseSplit(() => reverseReplication(world.open, request), begun)
    const report = await reverseReplication(world.open, {
      ...request,
      ...(hasUnsent ? { loser: 'primary' } : {}),
    })
    this.#say(`  ${report.candidateBytes} bytes to compare`)
    const isEqual = begun.isNewest && !begun.isWritten && !hasUnsent
    if (isEqual) expect(report.candidateBytes, 'candidates of an unmodified trip').toBe(0)
    expect(report.lostLogs.length > 0 || this.#unsentBytes === 0, 'what is given up is kept').toBe(true)
    await this.#beginAnew(begun.content, report.candidateBytes > 0)
  }

  async #refuseSplit(reverse: () => Promise<unknown>, begun: Begun): Promise<void> {
    await expect(reverse()).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
    await this.world.expectState(begun.isCommitted ? 'FailedOver' : 'FailedOverWaitingCompletion')
  }

  /** The sides have changed places. */
  async #beginAnew(content: Content, isResync: boolean): Promise<void> {
    const { world } = this
    this.#begun = undefined
    this.#checks.forget(true)
    await world.swap(content)
    const machine = await world.machine()
    expect(machine.state).toBe(isResync ? 'Resynchronizing' : 'Replicating')
    expect((await world.engine(world.passive)).machines).toEqual([])
    expect(await world.open.points()).toEqual([])
    this.#primary = 'Replicating'
    if (isResync) await machine.suspend()
    if (isResync) await machine.resynchronize()
    this.#isApplied()
    await this.#cycle()
  }

  /** A verb that the state does not take, of either side. */
  async #refused(): Promise<void> {
    const { random, open } = this.world
    const refused = refusedByReplica(await open.state())
    const verb = refused[random.below(refused.length)] as ReplicaVerb
    this.#say(`  ${verb}`)
    await expect(this.#askReplica(verb), verb).rejects.toMatchObject({ code: 'INVALID_STATE' })
    const machine = this.world.isPrimaryAlive ? await this.world.machine() : undefined
    const others = machine ? refusedByPrimary(machine.state) : []
    const other = others[random.below(others.length)] as PrimaryVerb | undefined
    if (machine === undefined || other === undefined) return
    this.#say(`  ${other}`)
    await expect(machine[other](), other).rejects.toMatchObject({ code: 'INVALID_STATE' })
  }

  async #askReplica(verb: ReplicaVerb): Promise<unknown> {
    const { world } = this
    if (verb === 'startFailover') return world.open.startFailover({ fencePrimary: true })
    if (verb === 'changeRecoveryPoint') return world.open.changeRecoveryPoint('LatestProcessed')
    if (verb !== 'reverseReplication') return world.open[verb]()
    const request = { engine: await world.engine(world.passive), former: { disks: {} } }
    return reverseReplication(world.open, { ...request, directory: world.path('nowhere') })
  }

  /** Nothing lies about that nobody needs. */
  #expectTidy(): void {
    const store = this.world.storeOf(this.world.passive)
    for (const folder of ['views', 'tests', 'spool']) {
      const left = readableNames(join(store, folder))
      expect(left, `left in ${folder}`).toEqual([])
    }
  }
}

function readableNames(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** Runs of the quick suite: as many as fit into a minute of one processor; the slow one has twenty times as many. */
const seedCount = process.env['SECONDSITE_SLOW'] ? 400 : 20

/** The seeds to run: the one given in SECONDSITE_SEED, or all. */
export function seedsToRun(): readonly number[] {
  const given = process.env['SECONDSITE_SEED']
  return given === undefined ? Array.from({ length: seedCount }, (_, index) => 1 + index) : [Number(given)]
}

/** One run from its seed to its end. */
export async function runOf(seed: number): Promise<void> {
  const run = new Run(seed)
  try {
    await run.start()
    for (let step = 0; step < stepCount; step += 1) await run.step()
    await run.end()
  } catch (error) {
    const replay = `SECONDSITE_SEED=${seed} npx vitest run test/simulation/recovery-model.test.ts`
    const reason = error instanceof Error ? error.message : String(error)
    throw new Error(`seed ${seed} (${replay}): ${reason}\n${run.trace.join('\n')}`, { cause: error })
  } finally {
    await run.world.remove()
  }
}
