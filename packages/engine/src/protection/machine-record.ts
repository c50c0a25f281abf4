/**
 * The row of a machine, and the only way to change it: by a transition of the state table, or by values beside the state.
 */

import { SecondsiteError } from '../errors.js'
import type { ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import { EVENT_OF_TRIGGER } from './events.js'
import type { MachineContext } from './machine-context.js'
import { type Facts, requireTransition, transition, type Trigger } from './machine.js'

const OPERATOR = 'engine'

export class MachineRecord {
  readonly #context: MachineContext
  #row: Machine
  #isRemoved = false

  constructor(context: MachineContext, row: Machine) {
    this.#context = context
    this.#row = row
  }

  get row(): Machine {
    return this.#row
  }

  get state(): ReplicationState {
    return this.#row.state
  }

  get isInitialReplicationDone(): boolean {
    return this.#row.isInitialReplicationDone === 1
  }

  /** Whether {@link remove} has been called. */
  get isRemoved(): boolean {
    return this.#isRemoved
  }

  /** Whether the present state takes `trigger`. */
  takes(trigger: Trigger): boolean {
    return transition('primary', this.state, trigger, this.#facts()).isAllowed
  }

  /** Where `trigger` leads. @throws {INVALID_STATE} with the verbs that the state takes */
  next(trigger: Trigger): ReplicationState {
    return requireTransition('primary', this.state, trigger, this.#facts(), this.#context.name)
  }

  /** @throws {INVALID_STATE} unless the state is one of `states` */
  require(states: readonly ReplicationState[], verb: string): void {
    if (states.includes(this.state)) return
    const machine = this.#context.name
    throw new SecondsiteError('INVALID_STATE', {
      message: `${verb} is not possible on ${machine} while its state is ${this.state}`,
      details: { machine, state: this.state, trigger: verb, allowedStates: states },
    })
  }

  /** Moves the state and sets `also` in one transaction, journaled. @throws {INVALID_STATE} */
  async transit(trigger: Trigger, { reason = 'asked for' } = {}, also: Partial<Machine> = {}): Promise<void> {
    const { machineId, store, resyncs, clock, events } = this.#context
    const to = this.next(trigger)
    const change = { machineId, trigger, from: this.state, to, operator: OPERATOR, reason }
    await store.transition(change, async (transaction) => {
      if (trigger === 'resyncComplete') await resyncs.completeResync(transaction, machineId, clock.nowMs())
      if (Object.keys(also).length === 0) return
      await transaction.updateTable('machines').set(also).where('machineId', '=', machineId).execute()
    })
    this.#row = { ...this.#row, ...also, state: to }
    const event = EVENT_OF_TRIGGER[trigger]
    if (event) await events.raise(this.#context, event, { reason })
  }

  /** Sets values beside the state. */
  async set(values: Partial<Machine>): Promise<void> {
    const { machineId, store } = this.#context
    await store.db.updateTable('machines').set(values).where('machineId', '=', machineId).execute()
    this.#row = { ...this.#row, ...values }
  }

  /** The row as it is in the database; as it was last, once it is removed. */
  async refresh(): Promise<Machine> {
    if (!this.#isRemoved) this.#row = await this.#context.store.machine(this.#context.machineId)
    return this.#row
  }

  /** Removes the row with all that hangs on it. @throws {INVALID_STATE} */
  async remove(trigger: Trigger = 'disable'): Promise<void> {
    const { machineId, store, events } = this.#context
    const to = this.next(trigger)
    const change = { machineId, trigger, from: this.state, to, operator: OPERATOR }
    await store.removeMachine({ ...change, reason: 'asked for' })
    this.#row = { ...this.#row, state: to }
    this.#isRemoved = true
    await events.raise(this.#context, 'disabled')
  }

  #facts(): Facts {
    return { isInitialReplicationDone: this.isInitialReplicationDone }
  }
}
