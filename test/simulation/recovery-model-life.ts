/**
 * What every life of the recovery model knows and does while the machine replicates: writes, cycles, resynchronizations,
 * deaths in them, bad lines, hooks that fail.
 */

import { isSecondsiteError, type ReplicationState, reverseReplication } from '@secondsite/engine'
import type { TransportFaults } from '@secondsite/engine/testing'
import { expect } from 'vitest'
import type { Begun } from './recovery-model-failover.js'
import {
  change,
  type Content,
  copyOf,
  type PrimaryVerb,
  refusedByPrimary,
  refusedByReplica,
  type ReplicaVerb,
} from './recovery-model-oracle.js'
import { ReplicaChecks } from './recovery-model-replica.js'
import { World } from './recovery-model-world.js'

const KIB = 1024
export const MINUTE_MS = 60_000
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

/** Steps at which a resynchronization may die. */
const RESYNC_STEPS = [
  'resync.before-begin',
  'resync.before-batch',
  'resync.before-queueing',
  'resync.before-closing',
  'ship.before-applied',
  'apply.before-writing',
  'apply.before-watermark',
  'resync.before-finish',
]

export class Life {
  readonly world: World
  readonly trace: string[] = []
  protected readonly checks: ReplicaChecks
  protected primary: ReplicationState = 'Replicating'
  /** What the images hold; undefined after a death in the middle of a cycle. */
  protected applied: Content | undefined
  /** Bytes written since the newest cut that was applied. */
  protected unsentBytes = 0
  protected begun: Begun | undefined
  /** Whether the way home is announced to the replica. */
  protected isComingHome = false
  protected isEveryPointDue = true
  /** Whether the primary has the store: from its first conversation on. */
  protected hasStore = true

  constructor(seed: number) {
    this.world = new World(seed)
    this.checks = new ReplicaChecks(this.world)
  }

  protected say(text: string): void {
    this.trace.push(text)
  }

  /** The images hold what the disks hold. */
  protected isApplied(): void {
    this.applied = copyOf(this.world.history.now)
    this.unsentBytes = 0
    this.isEveryPointDue = true
    this.hasStore = true
  }

  protected async write(): Promise<void> {
    const { random, history, settings } = this.world
    // Fewer than the logs may hold before they are brought together, which keeps no single write.
    if (this.unsentBytes > Math.min(...settings.sizesBytes) / 3) return
    const machine = await this.world.machine()
    for (let count = 1 + random.below(3); count > 0; count -= 1) {
      this.unsentBytes += await change(random, machine.disks, history.now)
      history.remember()
    }
    if (random.below(4) === 0) await machine.disks[0]?.flush()
  }

  protected async cycle(): Promise<void> {
    await this.mend()
    const { world } = this
    world.clock.pass(MINUTE_MS * world.random.below(90))
    const timeMs = world.clock.nowMs()
    const isEmpty = this.unsentBytes === 0 && this.applied !== undefined
    const atRest = this.#hook()
    const report = await (await world.machine()).replicate({ applicationConsistent: atRest !== undefined })
    await world.settled()
    expect(report.cutTimeMs).toBeGreaterThanOrEqual(timeMs)
    expect(report.pointKind).toBe(atRest === true ? 'application-consistent' : 'crash-consistent')
    if (atRest) world.restCutsMs.push(report.cutTimeMs)
    if (isEmpty) expect(report.sentBytes, 'bytes of an empty cycle').toBeLessThan(EMPTY_CYCLE_BYTES_MAX)
    this.isApplied()
    await this.expectLatest(report.cutTimeMs)
  }

  /** Whether the applications are at rest at the next cut; undefined where nobody asks for that. */
  #hook(): boolean | undefined {
    const { random, settings } = this.world
    if (!settings.hasHook || random.below(2) === 0) return undefined
    const isFailing = random.below(3) === 0
    this.world.failHook(isFailing)
    this.say(`  at rest: ${!isFailing}`)
    return !isFailing
  }

  /** A cycle over a line that cuts, damages and repeats; the next one finishes what was begun. */
  protected async badLineCycle(): Promise<void> {
    await this.mend()
    const { world } = this
    world.clock.pass(MINUTE_MS)
    const machine = await world.machine()
    world.lineFaults = faultsOf(world)
    const done = await machine.replicate().catch((error: unknown) => error)
    world.lineFaults = {}
    await world.settled()
    const isDone = !(done instanceof Error)
    this.say(`  ${isDone ? 'came through' : isSecondsiteError(done) ? done.code : 'failed'}`)
    if (!isDone && !isSecondsiteError(done)) throw done
    if (isDone) this.isApplied()
    else this.applied = undefined
    this.primary = machine.state
    expect(['Replicating', 'Error']).toContain(this.primary)
  }

  protected async expectLatest(cutTimeMs: number): Promise<void> {
    const latest = (await this.world.open.points()).at(-1)
    expect(latest).toMatchObject({ isLatest: true, cutTimeMs })
  }

  /** Whatever a step or a death left, the machine replicates again. */
  protected async mend(): Promise<void> {
    const machine = await this.world.machine()
    if (machine.state === 'Suspended' || machine.state === 'Error') await machine.resume()
    if (machine.state === 'PreparedForFailover') await machine.cancelFailover()
    this.primary = 'Replicating'
  }

  /** The process dies somewhere in a cycle; the next one finishes what was begun. */
  protected async dyingCycle(): Promise<void> {
    await this.mend()
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
    this.say(`  ${step}: ${isDone ? 'came through' : 'died'}`)
    if (isDone) this.isApplied()
    else this.applied = undefined
    await this.reopenEngine(true)
    this.primary = (await world.machine()).state
    expect(['Replicating', 'Error']).toContain(this.primary)
  }

  protected async resynchronize(): Promise<void> {
    const { random, clock } = this.world
    clock.pass(MINUTE_MS)
    const machine = await this.world.machine()
    for (const disk of machine.disks)
      if (random.below(2) === 0) await disk.requireResync('ASKED_FOR', random.below(2) === 0)
    if (this.primary === 'PreparedForFailover') await this.mend()
    await machine.resynchronize({ restart: random.below(3) === 0 })
    await this.world.settled()
    this.primary = 'Replicating'
    this.isApplied()
  }

  /** The process dies somewhere in a resynchronization; the next one goes on there, or begins anew. */
  protected async dyingResynchronization(): Promise<void> {
    await this.mend()
    const { random, clock } = this.world
    clock.pass(MINUTE_MS)
    const machine = await this.world.machine()
    for (const disk of machine.disks) await disk.requireResync('ASKED_FOR', random.below(2) === 0)
    const step = RESYNC_STEPS[random.below(RESYNC_STEPS.length)] as string
    this.world.armedStep = step
    const isDone = await machine.resynchronize().then(
      () => true,
      () => false,
    )
    await this.world.settled()
    this.say(`  ${step}: ${isDone ? 'came through' : 'died'}`)
    this.applied = undefined
    await this.reopenEngine(true)
    await this.checks.expectAll(true)
    await this.#catchUp(random.below(3) === 0)
    await this.world.settled()
    this.primary = 'Replicating'
    this.isApplied()
  }

  /** From wherever a death has left a resynchronization to its end. */
  async #catchUp(isCancelled: boolean): Promise<void> {
    const machine = await this.world.machine()
    if (machine.state === 'Resynchronizing') await machine.suspend()
    if (isCancelled && machine.state === 'ResynchronizeSuspended') await machine.cancelResynchronize()
    if (machine.state === 'Suspended' || machine.state === 'Error') await machine.resume()
    if (machine.state === 'Replicating') await machine.replicate()
    else await machine.resynchronize()
  }

  protected async suspend(): Promise<void> {
    await this.mend()
    await (await this.world.machine()).suspend()
    this.primary = 'Suspended'
  }

  protected async reopenEngine(isDeath: boolean): Promise<void> {
    await this.world.end(this.world.active, isDeath)
    this.hasStore = false
    await this.world.machine()
  }

  protected async reopenReplica(): Promise<void> {
    this.checks.forget(false)
    await this.world.openReplica()
    if (this.begun === undefined) return
    const failover = await this.world.open.failover()
    if (failover === undefined) throw new Error('the failover is gone')
    this.begun = { ...this.begun, failover }
  }

  protected async prepare(): Promise<void> {
    await this.mend()
    const { world } = this
    world.clock.pass(MINUTE_MS)
    const report = await (await world.machine()).prepareFailover({ verify: world.random.below(2) === 0 })
    await world.settled()
    this.primary = 'PreparedForFailover'
    this.isApplied()
    expect(report.cutTimeMs).toBeGreaterThanOrEqual(world.history.timesMs.at(-1) ?? 0)
  }

  protected async prepareAndCancel(): Promise<void> {
    await this.prepare()
    await this.refused()
    await (await this.world.machine()).cancelFailover()
    this.primary = 'Replicating'
  }

  /** A verb that the state does not take, of either side. */
  protected async refused(): Promise<void> {
    const { random, open } = this.world
    const refused = refusedByReplica(await open.state())
    const verb = refused[random.below(refused.length)] as ReplicaVerb
    this.say(`  ${verb}`)
    await expect(this.askReplica(verb), verb).rejects.toMatchObject({ code: 'INVALID_STATE' })
    const machine = this.world.isPrimaryAlive ? await this.world.machine() : undefined
    const others = machine ? refusedByPrimary(machine.state) : []
    const other = others[random.below(others.length)] as PrimaryVerb | undefined
    if (machine === undefined || other === undefined) return
    this.say(`  ${other}`)
    await expect(machine[other](), other).rejects.toMatchObject({ code: 'INVALID_STATE' })
  }

  protected async askReplica(verb: ReplicaVerb): Promise<unknown> {
    const { world } = this
    if (verb === 'startFailover') return world.open.startFailover({ fencePrimary: true })
    if (verb === 'finalizeFailback') return world.open.finalizeFailback()
    if (verb === 'changeRecoveryPoint') return world.open.changeRecoveryPoint('LatestProcessed')
    if (verb !== 'reverseReplication') return world.open[verb]()
    const request = { engine: await world.engine(world.passive), former: { disks: {} } }
    return reverseReplication(world.open, { ...request, directory: world.path('nowhere') })
  }
}

function faultsOf({ random }: World): TransportFaults {
  const faults: readonly TransportFaults[] = [
    { cutAfterMessages: 1 + random.below(30) },
    { cutAfterBytes: 1 + random.below(100 * KIB) },
    { corruptChance: 0.05 },
    { duplicateChance: 0.2 },
    { cutChance: 0.05 },
  ]
  return faults[random.below(faults.length)] ?? {}
}
