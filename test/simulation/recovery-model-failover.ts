/**
 * Failovers in the lives of the recovery model: their ends, reversals with either side as the loser, and the way home by the
 * verb, stopped after each of its steps.
 */

import {
  cancelFailback,
  type Failover,
  failback,
  type FailbackStep,
  reverseReplication,
} from '@secondsite/engine'
import { expect } from 'vitest'
import { Life, MINUTE_MS } from './recovery-model-life.js'
import { expectKept } from './recovery-model-lost.js'
import { change, type Content, copyOf } from './recovery-model-oracle.js'

/** A failover that has begun. */
export interface Begun {
  readonly failover: Failover
  readonly content: Map<string, Buffer>
  /** What the chosen state held. */
  readonly chosen: Content
  readonly isPlanned: boolean
  /** Whether it ends a failback. */
  readonly isFailback: boolean
  /** Whether the state chosen is the newest cut that the images hold. */
  readonly isNewest: boolean
  isWritten: boolean
  isCommitted: boolean
}

export class FailoverLife extends Life {
  protected async planned(): Promise<void> {
    await this.prepare()
    const failover = await this.world.open.startFailover({ kind: 'Planned', fencePrimary: true })
    this.fails(failover, this.world.history.now, true)
  }

  protected async unplanned(): Promise<void> {
    const { world } = this
    const isDisaster = world.random.below(2) === 0
    if (isDisaster) await world.end(world.active, true)
    if (isDisaster) this.hasStore = false
    else if (this.hasStore)
      await expect(world.open.startFailover()).rejects.toMatchObject({ code: 'PRIMARY_ALIVE' })
    const point = await this.checks.choose()
    this.say(`  to ${JSON.stringify(point)}${isDisaster ? ', the primary is gone' : ''}`)
    // What a death left in the spool is applied by whoever owns the store: with the engine there, by its next cycle.
    if (!isDisaster && this.applied === undefined) await this.cycle()
    const found = await this.checks.over(
      point,
      () => world.open.startFailover({ point, fencePrimary: !isDisaster }),
      ({ row }) => row.pointTimeMs,
    )
    if (found) this.fails(found.opened, found.content, false)
    else await world.machine()
  }

  protected fails(failover: Failover, content: Content, isPlanned: boolean): void {
    const applied = this.applied
    // A time is shown as an older point with the writes until then, which differs from the images wherever these were written.
    const isNewest =
      failover.row.untilNs === null &&
      applied !== undefined &&
      [...content].every(([name, bytes]) => applied.get(name)?.equals(bytes))
    const state = { isWritten: false, isCommitted: this.begun?.isCommitted ?? false }
    const copies = { content: copyOf(content), chosen: copyOf(content) }
    this.begun = { failover, ...copies, isPlanned, isNewest, isFailback: false, ...state }
    this.isEveryPointDue = true
  }

  protected async writeTo(begun: Begun): Promise<void> {
    const { random } = this.world
    for (let count = 1 + random.below(3); count > 0; count -= 1)
      await change(random, begun.failover.disks, begun.content)
    if (random.below(3) === 0) await begun.failover.disks[0]?.flush()
    begun.isWritten = true
  }

  /** The former primary is refused, and knows why. */
  protected async fencedCycle(): Promise<void> {
    const machine = await this.world.machine()
    const isTried = machine.state === 'Replicating'
    const code = isTried ? 'REPLICA_FAILED_OVER' : 'INVALID_STATE'
    await expect(machine.replicate()).rejects.toMatchObject({ code })
    if (isTried) this.primary = 'Error'
  }

  protected async changePoint(begun: Begun): Promise<void> {
    const point = await this.checks.choose()
    this.say(`  to ${JSON.stringify(point)}`)
    const found = await this.checks.over(
      point,
      () => this.world.open.changeRecoveryPoint(point),
      ({ row }) => row.pointTimeMs,
    )
    if (found) this.fails(found.opened, found.content, begun.isPlanned)
  }

  protected async cancel(begun: Begun): Promise<void> {
    await this.world.open.cancelFailover()
    this.begun = undefined
    expect(await this.world.open.failover()).toBeUndefined()
    await this.world.machine()
    if (begun.isPlanned) await this.mend()
  }

  protected async commit(begun: Begun): Promise<void> {
    const { open } = this.world
    await this.refuseCommit(() => open.commitFailover())
    await open.commitFailover({ dropLocked: true })
    begun.isCommitted = true
  }

  /** What somebody reads or has locked is not given up without a word. */
  protected async refuseCommit(commit: () => Promise<unknown>): Promise<void> {
    if (await this.checks.isLocked()) await expect(commit()).rejects.toMatchObject({ code: 'POINT_LOCKED' })
    else if (this.checks.isRead) await expect(commit()).rejects.toMatchObject({ code: 'POINT_IN_USE' })
    await this.world.expectState(this.begun?.isFailback ? 'FailbackComplete' : 'FailedOverWaitingCompletion')
    await this.checks.closeAll()
  }

  /** Both sides change places, or one of them gives up. */
  protected async turnRound(): Promise<void> {
    const { world } = this
    const begun = this.begun as Begun
    await this.checks.closeAll()
    const request = {
      engine: await world.engine(world.passive),
      former: { engine: await world.engine(world.active) },
      directory: world.storeOf(world.active),
      dropLocked: true,
    }
    const isSplit = this.unsentBytes > 0
    if (isSplit) await this.#refuseSplit(() => reverseReplication(world.open, request), begun)
    if (isSplit && world.random.below(2) === 0) return this.#keepPrimary(begun, request)
    const hasUnsent = isSplit || this.applied === undefined
    if (!hasUnsent && world.random.below(2) === 0) return this.#failBackFrom(begun)
    const report = await reverseReplication(world.open, {
      ...request,
      ...(hasUnsent ? { loser: 'primary' } : {}),
    })
    this.say(`  ${report.candidateBytes} bytes to compare`)
    const isEqual = begun.isNewest && !begun.isWritten && !hasUnsent
    if (isEqual) expect(report.candidateBytes, 'candidates of an unmodified trip').toBe(0)
    if (this.applied)
      await expectKept(report.lostLogs, this.applied, world.history.now, world.freshFolder('kept'))
    await this.beginAnew(begun.content, report.candidateBytes > 0, true)
  }

  /** What was written since the failover is given up; the primary goes on. */
  async #keepPrimary(begun: Begun, request: Parameters<typeof reverseReplication>[1]): Promise<void> {
    const { world } = this
    this.say('  the replica gives up')
    const report = await reverseReplication(world.open, { ...request, loser: 'replica' })
    await expectKept(report.lostLogs, begun.chosen, begun.content, world.freshFolder('kept'))
    if (begun.isCommitted) return this.beginAnew(world.history.now, report.candidateBytes > 0, false)
    expect(report.candidateBytes, 'candidates of a cancelled failover').toBe(0)
    this.begun = undefined
    this.primary = (await world.machine()).state
    expect(this.primary).toBe('Replicating')
  }

  async #refuseSplit(reverse: () => Promise<unknown>, begun: Begun): Promise<void> {
    await expect(reverse()).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
    await this.world.expectState(begun.isCommitted ? 'FailedOver' : 'FailedOverWaitingCompletion')
  }

  /** The sides have changed places, or are where they were in a relationship of its own. */
  protected async beginAnew(content: Content, isResync: boolean, isSwapped: boolean): Promise<void> {
    const { world } = this
    this.begun = undefined
    this.isComingHome = false
    this.checks.forget(true)
    await world.beginAnew(content, isSwapped)
    const machine = await world.machine()
    expect(machine.state).toBe(isResync ? 'Resynchronizing' : 'Replicating')
    expect((await world.engine(world.passive)).machines).toEqual([])
    expect(await world.open.points()).toEqual([])
    this.primary = 'Replicating'
    if (isResync) await machine.suspend()
    if (isResync) await machine.resynchronize()
    this.isApplied()
    await this.cycle()
  }

  /** Home by the verb, all the way or until the reversal is done. */
  async #failBackFrom(begun: Begun): Promise<void> {
    const { world } = this
    const until: FailbackStep = begun.isFailback || world.random.below(2) === 0 ? 'reverse' : 'return'
    this.say(`  by the verb, until ${until}`)
    const place = await world.wayHome(world.open, world.passive)
    const report = await failback({ ...place, until, dropLocked: true })
    expect(report).toMatchObject({ lostLogs: [], next: until === 'return' ? null : 'synchronize' })
    if (until === 'return') return this.beginAnew(begun.content, false, false)
    const [machine] = place.away.machines
    return this.beginAnew(begun.content, machine?.state === 'Resynchronizing', true)
  }

  /** Steps of the way home, each of which may be the last one for now. */
  protected async failBack(): Promise<void> {
    const { world } = this
    const left = LAST_STEPS.slice(this.begun ? 2 : this.isComingHome ? 1 : 0)
    const until = left[world.random.below(left.length)] ?? 'return'
    this.say(`  until ${until}`)
    if (!this.begun) await this.mend()
    world.clock.pass(MINUTE_MS)
    const content = copyOf(this.begun?.content ?? world.history.now)
    const isWritten = this.begun?.isWritten ?? false
    await this.checks.closeAll()
    await world.closeReplica()
    await using former = await world.openFormer()
    const report = await failback({ ...(await world.wayHome(former, world.active)), until, dropLocked: true })
    await world.settled()
    expect(report.next).toBe(NEXT[until])
    if (until === 'return') return this.beginAnew(content, isWritten, true)
    await world.openReplica()
    this.isApplied()
    this.isComingHome = until === 'synchronize'
    if (until === 'finalize') await this.#isHome()
  }

  /** The disks are writable at home. */
  async #isHome(): Promise<void> {
    this.primary = 'PreparedForFailover'
    const failover = await this.world.open.failover()
    if (failover === undefined) throw new Error('no failover ends the failback')
    this.fails(failover, this.world.history.now, true)
    this.begun = { ...(this.begun as Begun), isFailback: true }
  }

  protected async cancelFailBack(): Promise<void> {
    const { world } = this
    await this.checks.closeAll()
    await world.closeReplica()
    await using former = await world.openFormer()
    await cancelFailback(await world.wayHome(former, world.active))
    await world.openReplica()
    this.begun = undefined
    this.isComingHome = false
    this.primary = 'Replicating'
  }
}

/** Steps after which a failback of a machine that replicates home may stop. */
const LAST_STEPS: readonly FailbackStep[] = ['synchronize', 'finalize', 'return']
const NEXT: Partial<Record<FailbackStep, FailbackStep | null>> = {
  synchronize: 'finalize',
  finalize: 'return',
  return: null,
}
