/**
 * What is on disk about consistency groups: their names, their members, and the newest cut that all members share.
 */

import type { Kysely } from 'kysely'
import type { Group, NewGroup, StateSchema } from './state-schema.js'

export class GroupStore {
  readonly #db: Kysely<StateSchema>

  constructor(db: Kysely<StateSchema>) {
    this.#db = db
  }

  groups(): Promise<Group[]> {
    return this.#db.selectFrom('groups').selectAll().orderBy('name').execute()
  }

  /** Machine ids of the members, in the order in which they were added. */
  async members(groupId: string): Promise<string[]> {
    const query = this.#db.selectFrom('groupMembers').select('machineId').where('groupId', '=', groupId)
    return (await query.orderBy('position').execute()).map(({ machineId }) => machineId)
  }

  /** Adds a group with its members, or nothing of it. */
  async addGroup(group: NewGroup, machineIds: readonly string[]): Promise<void> {
    const { groupId } = group
    await this.#db.transaction().execute(async (transaction) => {
      await transaction.insertInto('groups').values(group).execute()
      const rows = machineIds.map((machineId, position) => ({ groupId, machineId, position }))
      if (rows.length > 0) await transaction.insertInto('groupMembers').values(rows).execute()
    })
  }

  async addMember(groupId: string, machineId: string): Promise<void> {
    const query = this.#db.selectFrom('groupMembers').select(({ fn }) => fn.max('position').as('last'))
    const { last } = await query.where('groupId', '=', groupId).executeTakeFirstOrThrow()
    const row = { groupId, machineId, position: (last ?? -1) + 1 }
    await this.#db.insertInto('groupMembers').values(row).execute()
  }

  async removeMember(groupId: string, machineId: string): Promise<void> {
    const query = this.#db.deleteFrom('groupMembers').where('groupId', '=', groupId)
    await query.where('machineId', '=', machineId).execute()
  }

  /** Forgets a group; its members stay what they are. */
  async removeGroup(groupId: string): Promise<void> {
    await this.#db.deleteFrom('groups').where('groupId', '=', groupId).execute()
  }

  /** Remembers the newest cut that all members share. */
  async setPoint(groupId: string, lastPointId: string, lastPointMs: number): Promise<void> {
    const query = this.#db.updateTable('groups').set({ lastPointId, lastPointMs })
    await query.where('groupId', '=', groupId).execute()
  }
}
