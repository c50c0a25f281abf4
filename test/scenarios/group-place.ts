/** Three machines of one consistency group, what their disks held at its cuts, and their replicas. */

import { readFileSync } from 'node:fs'
import { type Engine, openReplica, type Replica } from '@secondsite/engine'
import { MINUTE_MS, type Moment, SetClock } from './recovery-oracle.js'
import { KIB, MIB, Workplace } from './workplace.js'

export const MEMBERS = ['web01', 'db01', 'mail01'] as const
/** Called with each step of a replica and the name of its machine. */
type MemberStep = (step: string, machine: string) => void

export class GroupPlace extends Workplace {
  readonly clock = new SetClock()
  /** By machine, one for each cut. */
  readonly moments: Record<string, Moment>[] = []
  readonly groupPointIds: string[] = []
  engine!: Engine
  replicas: Replica[] = []

  async begin(): Promise<void> {
    this.engine = await this.open({ clock: this.clock })
    const policy = { recoveryPoints: 24, recoveryPointIntervalSeconds: 60 }
    for (const name of MEMBERS) {
      const replica = { directory: this.replicaOf(name) }
      const disks = [this.makeDisk(`${name}.raw`, MIB)]
      const machine = await this.engine.enable({ name, disks, replica, policy })
      await machine.startInitialReplication()
    }
    await this.engine.createGroup({ name: 'shop', machines: [...MEMBERS] })
  }

  replicaOf(name: string): string {
    return this.path(`replica-${name}`)
  }

  /** Writes to every disk and cuts them as one. */
  async commonCut(): Promise<string> {
    this.clock.advance(5 * MINUTE_MS)
    for (const { disks } of this.engine.machines)
      await disks[0]?.write(4 * KIB * this.random.below(200), this.random.bytes(8 * KIB))
    const { groupPointId } = await this.engine.group('shop').replicate()
    await this.engine.settled()
    if (groupPointId === null) throw new Error('the cut is not one of the whole group')
    this.moments.push(Object.fromEntries(MEMBERS.map((name) => [name, this.#momentOf(name)])))
    this.groupPointIds.push(groupPointId)
    return groupPointId
  }

  #momentOf(name: string): Moment {
    const disks = new Map([[`${name}.raw`, readFileSync(this.path(`${name}.raw`))]])
    return { timeMs: this.clock.nowMs(), disks }
  }

  /** The replicas of all members, opened anew. */
  async openReplicas(step: MemberStep = () => {}): Promise<Replica[]> {
    await this.closeReplicas()
    for (const name of MEMBERS) {
      const directory = this.replicaOf(name)
      this.replicas.push(await openReplica({ directory, clock: this.clock, step: (at) => step(at, name) }))
    }
    return this.replicas
  }

  async closeReplicas(): Promise<void> {
    for (const replica of this.replicas) await replica.close()
    this.replicas = []
  }

  states(): Promise<string[]> {
    return Promise.all(this.replicas.map((replica) => replica.state()))
  }

  async end(): Promise<void> {
    await this.closeReplicas()
    await this.engine.close()
    this.remove()
  }
}
