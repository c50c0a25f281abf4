/**
 * A machine as a member of a consistency group: whether it can take part in a common cycle, and how it does.
 */

import { asSecondsiteError, SecondsiteError } from '../errors.js'
import type { CutBarrier } from './group-barrier.js'
import type { Jobs } from './jobs.js'
import type { GroupMembership, MachineContext } from './machine-context.js'
import type { MachineRecord } from './machine-record.js'
import type { Trigger } from './machine.js'
import type { CycleReport, ReplicationWork } from './replication-work.js'
import type { Scheduler } from './scheduler.js'

/** What a member stands on. */
export interface MemberParts {
  readonly context: MachineContext
  readonly jobs: Jobs
  readonly record: MachineRecord
  readonly work: ReplicationWork
  readonly scheduler: Scheduler
  /** Why the disks are not open, if they are not. */
  fault(): SecondsiteError | undefined
}

export class GroupMember {
  readonly #parts: MemberParts

  constructor(parts: MemberParts) {
    this.#parts = parts
  }

  get id(): string {
    return this.#parts.context.machineId
  }

  get name(): string {
    return this.#parts.context.name
  }

  get context(): MachineContext {
    return this.#parts.context
  }

  get isGone(): boolean {
    return this.#parts.record.isRemoved
  }

  /** From now on its due cycles are those of the group; null: its own. */
  set group(group: GroupMembership | null) {
    this.#parts.context.group = group
  }

  /** Whether its policy wants the next cut to be application-consistent. */
  get isQuiesceDue(): boolean {
    return this.context.policy.quiesce !== null && this.#parts.work.isQuiesceDue
  }

  /** Why it does not take a verb; null when it does. */
  refuses(trigger: Trigger): SecondsiteError | null {
    return caught(() => this.#parts.record.next(trigger))
  }

  /** Why it cannot take part in a cycle now; null when it can. */
  refusesCycle(applicationConsistent: boolean): SecondsiteError | null {
    const { record, work } = this.#parts
    return (
      this.#parts.fault() ??
      caught(() => {
        record.require(['Replicating'], 'replicate')
        if (applicationConsistent) work.requireQuiesce()
      })
    )
  }

  /** Takes part when it has ended what it is doing. @throws as {@link cycle} */
  async takePart(barrier: CutBarrier, isQuiesced: boolean, signal?: AbortSignal): Promise<CycleReport> {
    const { jobs, scheduler } = this.#parts
    try {
      const refusal = this.refusesCycle(false)
      if (refusal !== null) throw refusal
      return await jobs.run(signal, (own) => {
        scheduler.began()
        return this.cycle(barrier, isQuiesced, own)
      })
    } catch (error) {
      barrier.left(error)
      throw error
    }
  }

  /** A cycle whose cut is made at the barrier; to be called in a job. Whatever fails before the cut is told there. */
  async cycle(barrier: CutBarrier, isQuiesced: boolean, signal: AbortSignal): Promise<CycleReport> {
    const { record, work } = this.#parts
    try {
      record.require(['Replicating'], 'replicate')
      const applicationConsistent = isQuiesced && this.context.policy.quiesce !== null
      return await work.cycle({ signal, applicationConsistent, barrier })
    } catch (error) {
      barrier.left(error)
      throw error
    }
  }
}

function caught(action: () => unknown): SecondsiteError | null {
  try {
    action()
    return null
  } catch (error) {
    return asSecondsiteError(error)
  }
}
