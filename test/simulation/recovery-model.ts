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
 *    Where both sides were written to, it is refused until one is given up, whose logs lead from what both had to what it had.
 * 7. A failback that was stopped goes on with the step that is next, and comes home; one that is taken back leaves all as it was.
 *
 * A failing run prints its seed and its steps; SECONDSITE_SEED replays that one alone.
 */

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { ReplicationState } from '@secondsite/engine'
import { expect } from 'vitest'
import { type Begun, FailoverLife } from './recovery-model-failover.js'
import { expectShows } from './recovery-model-oracle.js'

const stepCount = 25

type Steps = readonly (readonly [weight: number, name: string, step: () => Promise<void>])[]

class Run extends FailoverLife {
  async start(): Promise<void> {
    const { policy, sizesBytes } = this.world.settings
    this.trace.push(JSON.stringify({ policy, sizesBytes }))
    await this.world.begin()
    this.isApplied()
    await this.#expectAll()
  }

  async step(): Promise<void> {
    const steps = this.#steps()
    const total = steps.reduce((sum, [weight]) => sum + weight, 0)
    let at = this.world.random.below(total)
    const [, name, action] = steps.find(([weight]) => (at -= weight) < 0) as Steps[number]
    this.say(name)
    await action()
    await this.#expectAll()
  }

  /** Home again or not: both sides are brought together and compared by the engine itself. */
  async end(): Promise<void> {
    this.say('end')
    if (this.begun?.isFailback && !this.begun.isCommitted) await this.cancelFailBack()
    if (this.isComingHome) await this.cancelFailBack()
    if (this.begun) await this.turnRound()
    await this.mend()
    await this.cycle()
    await this.#expectAll()
    expect(await (await this.world.machine()).verify()).toMatchObject({ equal: true })
    await this.checks.closeAll()
    this.#expectTidy()
  }

  #steps(): Steps {
    if (this.begun?.isCommitted) return this.#committedSteps()
    if (this.begun?.isFailback) return this.#homeSteps(this.begun)
    if (this.begun) return this.#failedOverSteps(this.begun)
    return this.isComingHome ? this.#comingHomeSteps() : this.#followingSteps()
  }

  #followingSteps(): Steps {
    const { world } = this
    const checks = this.checks
    return [
      [8, 'write', () => this.write()],
      [8, 'cycle', () => this.cycle()],
      [1, 'cycle that dies', () => this.dyingCycle()],
      [1, 'resynchronize', () => this.resynchronize()],
      [1, 'resynchronization that dies', () => this.dyingResynchronization()],
      [world.settings.hasBadLine ? 3 : 0, 'cycle over a bad line', () => this.badLineCycle()],
      [world.canFailBack ? 3 : 0, 'failback', () => this.failBack()],
      [1, 'suspend', () => this.suspend()],
      [1, 'reopen the engine', () => this.reopenEngine(world.random.below(2) === 0)],
      [1, 'reopen the replica', () => this.reopenReplica()],
      [3, 'view', () => checks.view()],
      [3, 'test', () => checks.test()],
      [1, 'restore', () => checks.restore()],
      [1, 'diff', () => checks.diff()],
      [1, 'lock', () => checks.lock()],
      [world.settings.keepsEveryWrite ? 4 : 0, 'moments', () => checks.moments()],
      [2, 'verb that is refused', () => this.refused()],
      [1, 'prepare and cancel', () => this.prepareAndCancel()],
      [2, 'planned failover', () => this.planned()],
      [2, 'unplanned failover', () => this.unplanned()],
    ]
  }

  /** While the way home is announced. */
  #comingHomeSteps(): Steps {
    return [
      [3, 'write', () => this.write()],
      [2, 'cycle', () => this.cycle()],
      [1, 'cycle that dies', () => this.dyingCycle()],
      [1, 'reopen the engine', () => this.reopenEngine(this.world.random.below(2) === 0)],
      [1, 'reopen the replica', () => this.reopenReplica()],
      [1, 'view', () => this.checks.view()],
      [1, 'verb that is refused', () => this.refused()],
      [1, 'cancel the failback', () => this.cancelFailBack()],
      [4, 'failback', () => this.failBack()],
    ]
  }

  /** While the disks are writable at home, over images that are not changed yet. */
  #homeSteps(begun: Begun): Steps {
    return [
      [4, 'write to the failover', () => this.writeTo(begun)],
      [1, 'cycle of the former primary', () => this.fencedCycle()],
      [1, 'reopen the replica', () => this.reopenReplica()],
      [1, 'view', () => this.checks.view()],
      [1, 'verb that is refused', () => this.refused()],
      [1, 'cancel', () => this.cancel(begun)],
      [1, 'cancel the failback', () => this.cancelFailBack()],
      [1, 'commit', () => this.commit(begun)],
      [4, 'failback', () => this.failBack()],
    ]
  }

  #failedOverSteps(begun: Begun): Steps {
    const checks = this.checks
    return [
      [4, 'write to the failover', () => this.writeTo(begun)],
      [begun.isPlanned ? 0 : 2, 'write to the former primary', () => this.write()],
      [1, 'cycle of the former primary', () => this.fencedCycle()],
      [begun.isPlanned ? 0 : 2, 'change the point', () => this.changePoint(begun)],
      [1, 'reopen the replica', () => this.reopenReplica()],
      [1, 'view', () => checks.view()],
      [2, 'verb that is refused', () => this.refused()],
      [2, 'cancel', () => this.cancel(begun)],
      [2, 'commit', () => this.commit(begun)],
      [1, 'reverse', () => this.turnRound()],
    ]
  }

  #committedSteps(): Steps {
    const begun = this.begun as Begun
    return [
      [3, 'write to the new primary', () => this.writeTo(begun)],
      [1, 'write to the former primary', () => (begun.isPlanned ? Promise.resolve() : this.write())],
      [1, 'commit once more', () => this.world.open.commitFailover()],
      [1, 'reopen the replica', () => this.reopenReplica()],
      [1, 'verb that is refused', () => this.refused()],
      [3, 'reverse', () => this.turnRound()],
    ]
  }

  async #expectAll(): Promise<void> {
    const { world } = this
    world.expectDisks()
    if (world.isPrimaryAlive) expect((await world.machine()).state, 'state of the primary').toBe(this.primary)
    await world.expectState(this.#replicaState())
    if (this.begun) await expectShows(this.begun.failover, this.begun.content, 'the failover')
    if (this.begun?.isCommitted) {
      world.expectImages(this.begun.content)
      expect(await world.open.points(), 'points after the commit').toEqual([])
      return
    }
    if (this.applied) world.expectImages(this.applied)
    // Every point after each cut and in the end, one of them now and then.
    if (!this.isEveryPointDue && world.random.below(2) === 0) return
    await this.checks.expectAll(this.isEveryPointDue)
    this.isEveryPointDue = false
  }

  #replicaState(): ReplicationState {
    if (this.begun?.isCommitted) return 'FailedOver'
    if (this.begun) return this.begun.isFailback ? 'FailbackComplete' : 'FailedOverWaitingCompletion'
    return this.isComingHome ? 'FailbackInProgress' : 'Replicating'
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

/** Lives of the quick suite and of the slow one; each takes about 1.3 s of a processor. */
const seedCount = process.env['SECONDSITE_SLOW'] ? 500 : 80

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
