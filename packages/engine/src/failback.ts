/**
 * The way home as one verb: from a machine that runs at the second site to one that runs at home and is protected again.
 *
 * Four steps, each of them a verb that can be carried out by itself:
 *
 * 1. *reverse*: the active side replicates home. What is there is kept and only what differs will be sent.
 * 2. *synchronize*: that is sent while the active side runs, then what it has written meanwhile (FailbackInProgress).
 * 3. *finalize*: nobody writes there any more; the last cut is sent and proven, and the disks are writable at home, over
 *    images that are not changed yet (FailbackComplete). Until here {@link cancelFailback} takes the failback back.
 * 4. *return*: the failover home is committed, and replication turns round once more: home protects outward again.
 *
 * Which step is next is asked of both sides, never remembered here. So one that was stopped, or has died in the middle of a
 * step, goes on by calling it again, and so does one whose first steps were done by hand.
 */

import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import type { Engine } from './engine.js'
import { SecondsiteError, throwIfAborted } from './errors.js'
import type { PolicyInput } from './protection/policy.js'
import type { ProtectedMachine } from './protection/protected-machine.js'
import type { JobOptions } from './protection/replication-work.js'
import { identityOf } from './recovery/context.js'
import type { Replica } from './recovery/replica.js'
import { openReplica } from './replica.js'
import { reverseReplication } from './reverse.js'
import { explainReverse, type ReverseOutlook } from './reverse-outlook.js'
import type { FormerPrimary } from './reverse-plan.js'
import { writesOf } from './side-writes.js'
import { ReplicaStore } from './store/replica-store.js'
import type { ReplicationState } from './states.js'

/** The steps, in their order. */
export const FAILBACK_STEPS = ['reverse', 'synchronize', 'finalize', 'return'] as const
export type FailbackStep = (typeof FAILBACK_STEPS)[number]

/** What a failback is about. */
export interface FailbackPlace {
  /** The replica that was failed over. */
  readonly replica: Replica
  /** Engine of the side that is active now. */
  readonly away: Engine
  /** Engine at home: it protects the machine in the end. */
  readonly home: Engine
  /** Folder at home for the store of the way home. */
  readonly directory: string
  /**
   * The disks at home. Default those of the former primary, which {@link home} knows; otherwise, by their names, other ones: new
   * files, which are made, or old copies, which are compared.
   */
  readonly former?: FormerPrimary
}

export interface FailbackRequest extends FailbackPlace, JobOptions {
  /** Folder of the replica that home will have; default that which was failed over, whose images are there already. */
  readonly returnDirectory?: string
  /** The last step to carry out; default `return`. */
  readonly until?: FailbackStep
  /** Gives up what the former primary wrote and never sent; without it such writes are refused with SPLIT_BRAIN. */
  readonly loser?: 'primary'
  /** Also gives up recovery points that are locked. */
  readonly dropLocked?: boolean
  /** Settings of the machine at home; default those it has now. */
  readonly policy?: PolicyInput
  /** Whether both sides are read whole and compared before the active side ends; default true. */
  readonly verify?: boolean
  /** Told of each step as it begins and when it is done. */
  readonly onStep?: (step: FailbackStep, progress: 'begun' | 'done') => void
}

export interface FailbackReport {
  readonly machine: string
  /** Steps that this call has carried out. */
  readonly done: readonly FailbackStep[]
  /** The step that is next; null when the machine is home and protected. */
  readonly next: FailbackStep | null
  /** Bytes that this call has sent home, as encoded. */
  readonly sentBytes: number
  /** Bytes proven equal before the active side ended; 0 where that was not asked for, or not in this call. */
  readonly provenBytes: number
  /** Logs of what was given up. */
  readonly lostLogs: readonly string[]
  /** The machine as home protects it; null before that. */
  readonly protected: ProtectedMachine | null
}

/** What a failback would do. */
export interface FailbackOutlook {
  readonly machine: string
  /** The step that is next; null when nothing is left to be done. */
  readonly next: FailbackStep | null
  /** What would be compared and lost; null once replication is reversed. */
  readonly reverse: ReverseOutlook | null
  /** Bytes that would be compared or sent: those that differ at most. */
  readonly copyBytes: number
  readonly activeState: ReplicationState | null
  readonly homeState: ReplicationState | null
}

/** Says what is left to be done, what would be copied and what would be lost. */
export async function explainFailback(place: FailbackPlace): Promise<FailbackOutlook> {
  const trip = await Trip.of(place)
  try {
    const next = await trip.next()
    const reverse = next === 'reverse' ? await explainReverse(place.replica, trip.reversal) : null
    const written = trip.active && (await writesOf(trip.active, place.replica.context.pool))
    return {
      machine: trip.machine,
      next,
      reverse,
      copyBytes: next === null ? 0 : (reverse?.candidateBytes ?? written?.bytes ?? 0),
      activeState: trip.active?.state ?? null,
      homeState: (await trip.homeState()) ?? null,
    }
  } finally {
    await trip.close()
  }
}

/**
 * Brings the machine home; calling it again goes on where it stopped. With `until: 'synchronize'` the active side may run on,
 * and the next call brings the rest.
 *
 * @example
 * await failback({ replica, away, home, directory: './home-store', until: 'synchronize' }) // the guest runs over there
 * // shut the guest down over there, then:
 * const { protected: machine } = await failback({ replica, away, home, directory: './home-store' })
 * @throws {INVALID_STATE} where nothing was failed over
 * @throws {SPLIT_BRAIN} when the former primary holds writes that were never sent
 * @throws {MACHINE_RUNNING} when a client has a disk open where nobody may write any more
 */
export async function failback(request: FailbackRequest): Promise<FailbackReport> {
  const trip = await Trip.of(request)
  try {
    await trip.requireBegun()
    return await carryOut(trip, request)
  } finally {
    await trip.close()
  }
}

async function carryOut(trip: Trip, request: FailbackRequest): Promise<FailbackReport> {
  const { onStep, until = 'return', signal } = request
  const done: FailbackStep[] = []
  const total = { sentBytes: 0, provenBytes: 0, lostLogs: [] as string[] }
  for (;;) {
    throwIfAborted(signal)
    const next = await trip.next()
    const isOver = next === null || FAILBACK_STEPS.indexOf(next) > FAILBACK_STEPS.indexOf(until)
    if (isOver) return { machine: trip.machine, done, next, ...total, protected: trip.returned }
    onStep?.(next, 'begun')
    const { sentBytes = 0, provenBytes = 0, lostLogs = [] } = await trip[next](request)
    total.sentBytes += sentBytes
    total.provenBytes += provenBytes
    total.lostLogs.push(...lostLogs)
    done.push(next)
    onStep?.(next, 'done')
  }
}

/**
 * Takes a failback back that has not come to its last step: what was written at home since is thrown away, and the active
 * side replicates home as before.
 * @throws {INVALID_STATE} when there is none
 */
export async function cancelFailback(place: FailbackPlace): Promise<void> {
  const trip = await Trip.of(place)
  try {
    await trip.cancel()
  } finally {
    await trip.close()
  }
}

interface StepResult {
  readonly sentBytes?: number
  readonly provenBytes?: number
  readonly lostLogs?: readonly string[]
}

/** Both sides of a failback, and what each step does to them. */
class Trip {
  readonly machine: string
  readonly #place: FailbackPlace
  #home: Replica | undefined

  private constructor(place: FailbackPlace, machine: string) {
    this.#place = place
    this.machine = machine
  }

  static async of(place: FailbackPlace): Promise<Trip> {
    const { machine } = await identityOf(place.replica.context)
    return new Trip(place, machine)
  }

  get #directory(): string {
    return resolve(this.#place.directory)
  }

  /** The machine as the active side protects it; undefined before the reversal, and in the end. */
  get active(): ProtectedMachine | undefined {
    const { away } = this.#place
    return away.machines.find((one) => one.name === this.machine && one.replicaDirectory === this.#directory)
  }

  /** The machine as home protects it, once that is away no more. */
  get returned(): ProtectedMachine | null {
    if (this.active) return null
    return this.#place.home.machines.find((one) => one.name === this.machine) ?? null
  }

  get reversal(): { readonly former: FormerPrimary; readonly directory: string } {
    const { former, home } = this.#place
    return { former: former ?? { engine: home }, directory: this.#directory }
  }

  async homeState(): Promise<ReplicationState | undefined> {
    return existsSync(ReplicaStore.fileOf(this.#directory)) ? (await this.#homeReplica()).state() : undefined
  }

  /** Asked of the states of both sides; the last step ends the store at home, so that is looked at first. */
  async next(): Promise<FailbackStep | null> {
    const home = await this.homeState()
    if (home === 'FailbackInProgress' || home === 'RecoveryInProgress') return 'finalize'
    if (home === 'FailbackComplete' || home === 'FailedOverWaitingCompletion' || home === 'FailedOver')
      return 'return'
    const replica = await this.#place.replica.state()
    if (['RecoveryInProgress', 'FailedOverWaitingCompletion', 'FailedOver'].includes(replica))
      return 'reverse'
    return this.active ? 'synchronize' : null
  }

  /** @throws {INVALID_STATE} where there is nothing to come home from */
  async requireBegun(): Promise<void> {
    const { context } = this.#place.replica
    const { state } = await identityOf(context)
    const isOver = (await this.homeState()) === 'Disabled'
    if ((await this.next()) === null && !isOver) context.next(state, 'reverseReplication', this.machine)
  }

  async reverse(request: FailbackRequest): Promise<StepResult> {
    const { loser, dropLocked, policy } = request
    const { away: engine, replica } = this.#place
    const { lostLogs } = await reverseReplication(replica, {
      engine,
      ...this.reversal,
      ...(loser ? { loser } : {}),
      ...(dropLocked ? { dropLocked } : {}),
      ...(policy ? { policy } : {}),
    })
    return { lostLogs }
  }

  async synchronize(request: FailbackRequest): Promise<StepResult> {
    const active = this.#requireActive()
    const job = jobOf(request)
    const resyncBytes = await catchUp(active, job)
    // One that somebody has prepared already has sent its last cut.
    const isPrepared = active.state === 'PreparedForFailover'
    const { sentBytes } = isPrepared ? { sentBytes: 0 } : await active.replicate({ ...job, ...PLAIN })
    await this.#step('failback.before-announcing')
    await (await this.#homeReplica()).failback()
    return { sentBytes: resyncBytes + sentBytes }
  }

  async finalize(request: FailbackRequest): Promise<StepResult> {
    const active = this.#requireActive()
    const home = await this.#homeReplica()
    const resyncBytes = await catchUp(active, jobOf(request))
    const isPrepared = active.state === 'PreparedForFailover'
    const { verify = true } = request
    const { sentBytes, provenBytes } = isPrepared
      ? { sentBytes: 0, provenBytes: 0 }
      : await active.prepareFailover({ ...jobOf(request), verify })
    await this.#step('failback.before-finalizing')
    if ((await home.state()) === 'RecoveryInProgress') await home.failover()
    else await home.finalizeFailback(request.signal ? { signal: request.signal } : {})
    return { sentBytes: resyncBytes + sentBytes, provenBytes }
  }

  async return(request: FailbackRequest): Promise<StepResult> {
    const home = await this.#homeReplica()
    const { away, home: engine, replica } = this.#place
    const { dropLocked = false } = request
    if ((await home.state()) === 'FailbackComplete') await home.commitFailover({ dropLocked })
    await this.#step('failback.before-returning')
    await reverseReplication(home, {
      engine,
      former: { engine: away },
      directory: request.returnDirectory ?? replica.directory,
      ...(request.policy ? { policy: request.policy } : {}),
    })
    return {}
  }

  async cancel(): Promise<void> {
    const home = await this.#homeReplica()
    const isPrepared = this.active?.state === 'PreparedForFailover'
    // Where a death has come between the two, home is done.
    if (!isPrepared || (await home.state()) !== 'Replicating') await home.cancelFailover()
    await this.#step('failback.before-cancelling')
    if (isPrepared) await this.active?.cancelFailover()
  }

  async close(): Promise<void> {
    await this.#home?.close()
    this.#home = undefined
  }

  #requireActive(): ProtectedMachine {
    if (this.active) return this.active
    throw new SecondsiteError('MACHINE_NOT_FOUND', {
      message: `the active side does not protect ${this.machine} to ${this.#directory}`,
      details: { machine: this.machine, path: this.#directory },
    })
  }

  async #homeReplica(): Promise<Replica> {
    const { clock, random, step, pool: threadsOf } = this.#place.replica.context
    this.#home ??= await openReplica({ directory: this.#directory, clock, random, step, threadsOf })
    return this.#home
  }

  async #step(name: string): Promise<void> {
    await this.#place.replica.context.step(name)
  }
}

/** A cycle that lets the applications go on. */
const PLAIN = { applicationConsistent: false } as const

function jobOf({ signal, onProgress }: JobOptions): JobOptions {
  return { ...(signal ? { signal } : {}), ...(onProgress ? { onProgress } : {}) }
}

/**
 * Brings the machine to Replicating, from wherever it is on the way. What works by itself is ended softly and taken up here,
 * where its end is seen.
 * @returns bytes sent
 */
async function catchUp(machine: ProtectedMachine, job: JobOptions): Promise<number> {
  let sentBytes = 0
  for (;;) {
    throwIfAborted(job.signal)
    switch (machine.state) {
      case 'Resynchronizing':
        await machine.suspend()
        break
      case 'Suspended':
      case 'Error':
        await machine.resume()
        break
      case 'WaitingForStartResynchronize':
      case 'ResynchronizeSuspended':
        sentBytes += (await machine.resynchronize(job))?.sentBytes ?? 0
        break
      default:
        return sentBytes
    }
  }
}
