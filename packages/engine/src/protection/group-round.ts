/**
 * One cut over all machines of a consistency group: a barrier in two phases, as messages.
 *
 * 1. *prepare*: every member ends what is under way and says `prepared`, or `refused` with the reason.
 * 2. *commit*: those that are prepared bring their applications to rest, if that was asked for, and say `ready`. When the
 *    last one has, the cut is made over the disks of all of them, and told as `cut`.
 *
 * A member that does not answer in time, or fails on the way, has refused; the others go on without it, as their cycle is
 * due all the same. The cut is then not one of the whole group and has no id that replicas could take for one.
 *
 * This is the coordinator as a state machine: a message in, messages out, no time and no disks. In one process
 * `group-barrier.ts` delivers them by calls; a network transport would carry the same ones.
 */

import type { ErrorCode } from '../errors.js'

/** What members say to the coordinator. */
export type MemberMessage =
  /** Nothing else is under way, and nothing will be until the cut. */
  | { readonly type: 'prepared'; readonly member: string }
  /** It cannot take part any more, and why. */
  | { readonly type: 'refused'; readonly member: string; readonly code: ErrorCode }
  /** Its applications are at rest, or could not be brought to it; its disks wait for the cut. */
  | { readonly type: 'ready'; readonly member: string }

/** What the coordinator says to all members. */
export type CoordinatorMessage =
  /** The first phase is over for these. */
  | { readonly type: 'commit'; readonly members: readonly string[] }
  /** The cut is to be made over the disks of these; the id is null when somebody is missing. */
  | { readonly type: 'cut'; readonly members: readonly string[]; readonly groupPointId: string | null }

type Phase = 'preparing' | 'committing' | 'over'
type Progress = 'expected' | 'prepared' | 'ready' | 'refused'

export class GroupRound {
  readonly #groupPointId: string
  readonly #progress: Map<string, Progress>
  readonly #refusals = new Map<string, ErrorCode>()
  #phase: Phase = 'preparing'

  /** @param members - ids of all members of the group */
  constructor(groupPointId: string, members: readonly string[]) {
    this.#groupPointId = groupPointId
    this.#progress = new Map(members.map((member) => [member, 'expected']))
  }

  /** Whether members may still come. */
  get isPreparing(): boolean {
    return this.#phase === 'preparing'
  }

  /** Whether the cut has been ordered, or will not be. */
  get isOver(): boolean {
    return this.#phase === 'over'
  }

  /** Members that do not take part, with the reason. */
  get refusals(): ReadonlyMap<string, ErrorCode> {
    return this.#refusals
  }

  /** What follows from a member's message. One that comes too late, or from somebody else, changes nothing. */
  take(message: MemberMessage): CoordinatorMessage | null {
    const before = this.#progress.get(message.member)
    if (before === undefined || this.#phase === 'over') return null
    if (message.type === 'refused') this.#refuse(message.member, message.code)
    else if (message.type === 'prepared' && before === 'expected' && this.isPreparing) {
      this.#progress.set(message.member, 'prepared')
    } else if (message.type === 'ready' && before === 'prepared' && this.#phase === 'committing') {
      this.#progress.set(message.member, 'ready')
    }
    return this.#next()
  }

  /** The time of the first phase is up: who has not come has refused. */
  expire(): CoordinatorMessage | null {
    if (!this.isPreparing) return null
    for (const member of this.#in('expected')) this.#refuse(member, 'GROUP_MEMBER_LATE')
    return this.#next()
  }

  #refuse(member: string, code: ErrorCode): void {
    if (this.#progress.get(member) === 'refused') return
    this.#progress.set(member, 'refused')
    this.#refusals.set(member, code)
  }

  #next(): CoordinatorMessage | null {
    if (this.#in('expected').length > 0) return null
    const prepared = this.#in('prepared')
    if (this.#phase === 'preparing') {
      this.#phase = prepared.length === 0 ? 'over' : 'committing'
      return prepared.length === 0 ? null : { type: 'commit', members: prepared }
    }
    const ready = this.#in('ready')
    if (prepared.length > 0) return null
    this.#phase = 'over'
    if (ready.length === 0) return null
    const groupPointId = this.#refusals.size === 0 ? this.#groupPointId : null
    return { type: 'cut', members: ready, groupPointId }
  }

  #in(progress: Progress): string[] {
    return [...this.#progress].filter(([, one]) => one === progress).map(([member]) => member)
  }
}
