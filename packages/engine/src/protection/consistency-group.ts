/**
 * A consistency group: machines that do one job together, and therefore share their cuts.
 *
 * The members replicate in common cycles. One is begun by whoever is due first, by policy or by hand; the others take part
 * in it, meet at the barrier, are cut as one, and ship each for itself. A member that cannot take part (suspended, in a
 * resynchronization, still shipping after half a minute) is named, and the others go on without it: their replicas get a
 * cut that is not the group's. Verbs of the group are refused when one member refuses, before anything has changed.
 */

import { asSecondsiteError, type ErrorCode, SecondsiteError } from '../errors.js'
import type { ReplicationHealth, ReplicationState } from '../states.js'
import type { GroupStore } from '../store/group-store.js'
import type { Group } from '../store/state-schema.js'
import { GroupBarrier } from './group-barrier.js'
import { worstHealth } from './health.js'
import type { GroupMembership } from './machine-context.js'
import type { ProtectedMachine } from './protected-machine.js'
import type { CycleReport, JobOptions } from './replication-work.js'

/** Options of {@link ConsistencyGroup.replicate}. */
export interface GroupCycleOptions extends Pick<JobOptions, 'signal'> {
  /** Hold the applications of all members at rest for the common cut; default false. */
  readonly applicationConsistent?: boolean
}

/** A member that took no part in a cycle of its group. */
export interface MissingMember {
  readonly machine: string
  readonly code: ErrorCode
}

/** Result of a cycle of a group. */
export interface GroupCycleReport {
  /** The id by which all replicas know this cut; null when a member took no part. */
  readonly groupPointId: string | null
  /** Unix milliseconds. */
  readonly cutTimeMs: number
  readonly members: readonly { readonly machine: string; readonly report: CycleReport }[]
  readonly missing: readonly MissingMember[]
}

/** What {@link ConsistencyGroup.measure} says. */
export interface GroupMeasurement {
  readonly group: string
  /** The worst of the members'. */
  readonly health: ReplicationHealth
  readonly members: readonly {
    readonly machine: string
    readonly state: ReplicationState
    readonly health: ReplicationHealth
  }[]
  /** The newest cut that all members shared; null before the first. */
  readonly lastPoint: { readonly groupPointId: string; readonly cutTimeMs: number } | null
  /** Members that took no part in the newest cycle of this process. */
  readonly missing: readonly MissingMember[]
}

/** One cycle of the group that is under way. */
interface Round {
  readonly barrier: GroupBarrier
  readonly applicationConsistent: boolean
  /** Settles when its point is remembered. */
  readonly noted: Promise<void>
}

export class ConsistencyGroup implements GroupMembership {
  readonly id: string
  readonly name: string
  readonly #store: GroupStore
  #members: readonly ProtectedMachine[]
  #lastPoint: GroupMeasurement['lastPoint']
  #missing: readonly MissingMember[] = []
  #round: Round | undefined

  /** @internal */
  constructor(store: GroupStore, row: Group, members: readonly ProtectedMachine[]) {
    this.#store = store
    this.id = row.groupId
    this.name = row.name
    this.#lastPoint =
      row.lastPointId === null ? null : { groupPointId: row.lastPointId, cutTimeMs: row.lastPointMs ?? 0 }
    this.#members = members
    for (const { asMember } of members) asMember.group = this
  }

  /** In the order in which they were added; without those whose protection has ended. */
  get members(): readonly ProtectedMachine[] {
    return this.#members.filter((machine) => !machine.isDisabled)
  }

  /**
   * Runs one cycle of all members now, with one cut over all their disks.
   * @throws {GROUP_MEMBER_REFUSES} naming the member that is not Replicating, or has no hook; nothing was cut
   * @throws what a member's shipping failed with, when all have ended; the point is there once that member has shipped
   */
  async replicate(options: GroupCycleOptions = {}): Promise<GroupCycleReport> {
    const { applicationConsistent = false } = options
    for (const member of this.members) this.#requireReady(member, applicationConsistent)
    const round = this.#begin(applicationConsistent)
    const running = this.members.map((member) => this.#takePart(member, round, options.signal))
    const settled = await Promise.allSettled(running)
    await round.noted
    const failed = settled.find((one) => one.status === 'rejected')
    if (failed) throw asSecondsiteError(failed.reason)
    const members = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    const { groupPointId = null, cutTimeMs = 0 } = round.barrier.point ?? {}
    return { groupPointId, cutTimeMs, members, missing: this.#missingOf(round.barrier) }
  }

  /** Pauses replication of all members. @throws {GROUP_MEMBER_REFUSES} naming who refuses; nothing has changed */
  async suspend(): Promise<void> {
    this.#requireAll('suspend')
    for (const member of this.members) await member.suspend()
  }

  /** Goes on with all members. @throws {GROUP_MEMBER_REFUSES} naming who refuses; nothing has changed */
  async resume(): Promise<void> {
    this.#requireAll('resume')
    for (const member of this.members) await member.resume()
  }

  /** Adds a machine, whatever either is doing; the next cycle is common. @throws {MACHINE_IN_GROUP} */
  async add(machine: ProtectedMachine): Promise<void> {
    requireFree(machine)
    await this.#store.addMember(this.id, machine.id)
    this.#members = [...this.members, machine]
    machine.asMember.group = this
  }

  /** Takes a machine out; it goes on by itself. @throws {GROUP_NOT_MEMBER} */
  async remove(machine: ProtectedMachine): Promise<void> {
    if (!this.members.includes(machine)) throw notMember(this.name, machine.name)
    await this.#store.removeMember(this.id, machine.id)
    this.#members = this.#members.filter((member) => member !== machine)
    machine.asMember.group = null
  }

  /** Health of the group, and which point all members share. */
  async measure(): Promise<GroupMeasurement> {
    const all = await Promise.all(this.members.map((member) => member.measure()))
    const members = all.map(({ machine, state, health }) => ({ machine, state, health }))
    const health = worstHealth(members.map((member) => member.health))
    return { group: this.name, health, members, lastPoint: this.#lastPoint, missing: this.#missing }
  }

  /** Ends the group; its members go on, each by itself. */
  async dissolve(): Promise<void> {
    await this.#store.removeGroup(this.id)
    for (const { asMember } of this.members) asMember.group = null
    this.#members = []
  }

  /** @internal A member is due: it takes part in the cycle that is being prepared, or begins one for all. */
  async dueCycle(machineId: string, signal: AbortSignal): Promise<CycleReport> {
    const own = this.members.find((member) => member.id === machineId)
    if (own === undefined) throw notMember(this.name, machineId)
    const round = this.#round?.barrier.isOpen ? this.#round : this.#beginDue(own)
    return own.asMember.cycle(round.barrier.of(machineId), round.applicationConsistent, signal)
  }

  /** Whoever is due first asks the others; one that is busy comes when it has ended what it does. */
  #beginDue(own: ProtectedMachine): Round {
    const round = this.#begin(this.members.some(({ asMember }) => asMember.isQuiesceDue))
    for (const member of this.members) {
      // A failure was remembered and counted by the member, and is retried by it.
      if (member !== own) this.#takePart(member, round).catch(() => {})
    }
    return round
  }

  #begin(applicationConsistent: boolean): Round {
    const [first] = this.members
    if (first === undefined) throw notMember(this.name, 'anybody')
    const ids = this.members.map(({ id }) => id)
    const barrier = new GroupBarrier(first.asMember.context, this.id, ids)
    const noted = barrier.ended.then(() => this.#note(barrier))
    noted.catch(() => {}) // Where the state cannot be written, the members fail and tell.
    const round = { barrier, applicationConsistent, noted }
    this.#round = round
    return round
  }

  async #takePart(
    member: ProtectedMachine,
    { barrier, applicationConsistent }: Round,
    signal?: AbortSignal,
  ): Promise<GroupCycleReport['members'][number]> {
    const report = await member.asMember.takePart(barrier.of(member.id), applicationConsistent, signal)
    return { machine: member.name, report }
  }

  /** Remembers what came of the cut. */
  async #note(barrier: GroupBarrier): Promise<void> {
    this.#missing = this.#missingOf(barrier)
    const { point } = barrier
    if (point === null || point.groupPointId === null) return
    const { groupPointId, cutTimeMs } = point
    this.#lastPoint = { groupPointId, cutTimeMs }
    await this.#store.setPoint(this.id, groupPointId, cutTimeMs)
  }

  #missingOf(barrier: GroupBarrier): MissingMember[] {
    return [...barrier.refusals].map(([machineId, code]) => {
      const machine = this.members.find(({ id }) => id === machineId)?.name ?? machineId
      return { machine, code }
    })
  }

  #requireReady(member: ProtectedMachine, applicationConsistent: boolean): void {
    const refusal = member.asMember.refusesCycle(applicationConsistent)
    if (refusal !== null) throw this.#refused('replicate', member, refusal)
  }

  #requireAll(verb: 'suspend' | 'resume'): void {
    for (const member of this.members) {
      const refusal = member.asMember.refuses(verb)
      if (refusal !== null) throw this.#refused(verb, member, refusal)
    }
  }

  #refused(verb: string, { name: machine }: ProtectedMachine, cause: SecondsiteError): SecondsiteError {
    const message = `${verb} is not possible on group ${this.name}: ${machine} refuses: ${cause.message}`
    const details = { group: this.name, machine, trigger: verb, reason: cause.code }
    return new SecondsiteError('GROUP_MEMBER_REFUSES', { message, details, cause })
  }
}

/** @throws {MACHINE_IN_GROUP} when the machine is in a group */
export function requireFree(machine: ProtectedMachine): void {
  const { groupName: group, name } = machine
  if (group === null) return
  const message = `${name} is in group ${group} already`
  throw new SecondsiteError('MACHINE_IN_GROUP', { message, details: { machine: name, group } })
}

function notMember(group: string, machine: string): SecondsiteError {
  const message = `${machine} is not in group ${group}`
  return new SecondsiteError('GROUP_NOT_MEMBER', { message, details: { group, machine } })
}
