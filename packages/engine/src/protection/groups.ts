/**
 * The consistency groups of an engine, by name.
 */

import { SecondsiteError } from '../errors.js'
import type { Clock } from '../clock.js'
import type { Random } from '../random.js'
import { GroupStore } from '../store/group-store.js'
import type { StateStore } from '../store/state-store.js'
import { ConsistencyGroup, requireFree } from './consistency-group.js'
import type { ProtectedMachine } from './protected-machine.js'

export class Groups {
  readonly #store: GroupStore
  readonly #clock: Clock
  readonly #random: Random
  readonly #groups = new Map<string, ConsistencyGroup>()

  constructor(store: StateStore, clock: Clock, random: Random) {
    this.#store = new GroupStore(store.db)
    this.#clock = clock
    this.#random = random
  }

  get all(): readonly ConsistencyGroup[] {
    return [...this.#groups.values()]
  }

  /** Takes up all groups as the last process left them. */
  async takeUp(machines: ReadonlyMap<string, ProtectedMachine>): Promise<void> {
    for (const row of await this.#store.groups()) {
      const ids = await this.#store.members(row.groupId)
      const members = ids.flatMap((id) => machines.get(id) ?? [])
      this.#groups.set(row.name, new ConsistencyGroup(this.#store, row, members))
    }
  }

  /** @throws {GROUP_NOT_FOUND} */
  get(name: string): ConsistencyGroup {
    const group = this.#groups.get(name)
    if (group) return group
    const known = [...this.#groups.keys()]
    throw new SecondsiteError('GROUP_NOT_FOUND', {
      message: `no group ${name}`,
      details: { group: name, known },
    })
  }

  /** @throws {GROUP_EXISTS, MACHINE_IN_GROUP} */
  async create(name: string, machines: readonly ProtectedMachine[]): Promise<ConsistencyGroup> {
    if (this.#groups.has(name)) {
      const message = `there is a group ${name} already`
      throw new SecondsiteError('GROUP_EXISTS', { message, details: { group: name } })
    }
    for (const machine of machines) requireFree(machine)
    const row = { groupId: this.#random.uuid(), name, createdMs: this.#clock.nowMs() }
    const members = [...new Set(machines)]
    await this.#store.addGroup(
      row,
      members.map(({ id }) => id),
    )
    const group = new ConsistencyGroup(this.#store, { ...row, lastPointId: null, lastPointMs: null }, members)
    this.#groups.set(name, group)
    return group
  }

  /** Ends a group. @throws {GROUP_NOT_FOUND} */
  async dissolve(name: string): Promise<void> {
    await this.get(name).dissolve()
    this.#groups.delete(name)
  }
}
