/**
 * The barrier of a group whose members are all in this process: messages are calls, and the cut is one native call over
 * the disks of all members, under all their order locks at once.
 */

import type { CancelTimer } from '../clock.js'
import { asSecondsiteError, SecondsiteError, throwIfAborted } from '../errors.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { SECOND_MS } from '../units.js'
import { type CoordinatorMessage, GroupRound, type MemberMessage } from './group-round.js'
import { groupPointIdOf } from '../group-point-id.js'
import type { MachineContext } from './machine-context.js'
import type { CutPoint, MakeCut } from './shipping.js'

/** How long members wait for one that still ships an earlier cycle. */
export const PREPARE_LIMIT_MS = 30 * SECOND_MS

/** A member at the barrier. */
interface Waiting {
  readonly commit: PromiseWithResolvers<void>
  readonly cut: PromiseWithResolvers<CutPoint>
  disks: readonly TrackedDisk[]
}

/** How a member takes part in a round. */
export interface CutBarrier {
  /** Resolves when every member is here, or the time is up. @throws {ABORTED, GROUP_MEMBER_LATE} */
  gather(signal?: AbortSignal): Promise<void>
  /** Waits until all are ready, and is part of their cut. */
  readonly cut: MakeCut
  /** Says that its shipment of the cut is recorded, so that no death of the process can lose it. */
  recorded(): void
  /** Says that it takes no part any more. Before the cut it is then made without it, after it the point is incomplete. */
  left(error: unknown): void
}

export class GroupBarrier {
  readonly #round: GroupRound
  readonly #context: MachineContext
  readonly #waiting = new Map<string, Waiting>()
  readonly #cancel: CancelTimer
  readonly #ended = withResolvers<void>()
  /** Members of the cut that have not recorded it yet. */
  #unsettled: Set<string> | undefined
  #isRecorded = true
  #made: CutPoint | null = null
  #point: CutPoint | null = null

  /** @param context - of any member: clock, randomness and workers are the engine's */
  constructor(context: MachineContext, groupId: string, members: readonly string[]) {
    this.#context = context
    this.#round = new GroupRound(groupPointIdOf(groupId, context.random.uuid()), members)
    this.#cancel = context.clock.setTimer(PREPARE_LIMIT_MS, () => this.#answer(this.#round.expire()))
  }

  /** Whether a member that has not come yet may still do so. */
  get isOpen(): boolean {
    return this.#round.isPreparing
  }

  /** The cut that all members have recorded, or one of those that took part; null before that, and when one could not. */
  get point(): CutPoint | null {
    return this.#point
  }

  /** Resolves when every member has recorded the cut or failed to. */
  get ended(): Promise<void> {
    return this.#ended.promise
  }

  /** Machine ids of members that take no part, with the reason. */
  get refusals(): GroupRound['refusals'] {
    return this.#round.refusals
  }

  /** The member's end. */
  of(machineId: string): CutBarrier {
    return {
      gather: (signal) => this.#gather(machineId, signal),
      cut: (context) => this.#cut(machineId, context),
      recorded: () => this.#settle(machineId, true),
      left: (error) => {
        this.#tell({ type: 'refused', member: machineId, code: asSecondsiteError(error).code })
        this.#settle(machineId, false)
      },
    }
  }

  async #gather(member: string, signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal)
    if (!this.isOpen) throw this.#late(member)
    const waiting = { commit: withResolvers<void>(), cut: withResolvers<CutPoint>(), disks: [] }
    this.#waiting.set(member, waiting)
    const stop = (): void => waiting.commit.reject(asSecondsiteError(signal?.reason))
    signal?.addEventListener('abort', stop, { once: true })
    try {
      this.#tell({ type: 'prepared', member })
      await waiting.commit.promise
    } finally {
      signal?.removeEventListener('abort', stop)
    }
  }

  async #cut(member: string, { disks }: MachineContext): Promise<CutPoint> {
    const waiting = this.#waiting.get(member)
    if (waiting === undefined) throw this.#late(member)
    waiting.disks = disks
    this.#tell({ type: 'ready', member })
    return waiting.cut.promise
  }

  #tell(message: MemberMessage): void {
    this.#answer(this.#round.take(message))
  }

  #answer(message: CoordinatorMessage | null): void {
    if (!this.isOpen) this.#cancel()
    // Over without a cut; where there is one, its last member to record it ends the round.
    if (this.#round.isOver && message === null && this.#unsettled === undefined) this.#ended.resolve()
    if (message?.type === 'commit') this.#each(message.members, ({ commit }) => commit.resolve())
    if (message?.type === 'cut') void this.#make(message.members, message.groupPointId)
  }

  async #make(members: readonly string[], groupPointId: string | null): Promise<void> {
    const cutTimeMs = this.#context.clock.nowMs()
    const disks = members.flatMap((member) => this.#waiting.get(member)?.disks ?? [])
    this.#unsettled = new Set(members)
    try {
      await this.#context.work.cut(disks)
      const point = { cutTimeMs, pointKind: 'crash-consistent' as const, groupPointId }
      this.#made = point
      this.#each(members, ({ cut }) => cut.resolve(point))
    } catch (error) {
      this.#each(members, ({ cut }) => cut.reject(error))
    }
  }

  /** Shipments are recorded by each member: only when the last one is, the point is one of the group for ever. */
  #settle(member: string, isRecorded: boolean): void {
    if (!this.#unsettled?.delete(member)) return
    this.#isRecorded &&= isRecorded
    if (this.#unsettled.size > 0) return
    if (this.#isRecorded) this.#point = this.#made
    this.#ended.resolve()
  }

  #each(members: readonly string[], act: (waiting: Waiting) => void): void {
    for (const member of members) {
      const waiting = this.#waiting.get(member)
      if (waiting) act(waiting)
    }
  }

  #late(member: string): SecondsiteError {
    const message = 'the other members of the group did not wait for this one'
    return new SecondsiteError('GROUP_MEMBER_LATE', { message, details: { machineId: member } })
  }
}

/** Promise.withResolvers, which Node 20 does not have. Nobody need wait for it. */
interface PromiseWithResolvers<Value> {
  readonly promise: Promise<Value>
  readonly resolve: (value: Value) => void
  readonly reject: (reason: unknown) => void
}

function withResolvers<Value>(): PromiseWithResolvers<Value> {
  let resolve!: (value: Value) => void
  let reject!: (reason: unknown) => void
  const promise = new Promise<Value>((resolveIt, rejectIt) => {
    resolve = resolveIt
    reject = rejectIt
  })
  promise.catch(() => {})
  return { promise, resolve, reject }
}
