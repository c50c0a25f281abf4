/**
 * A machine whose states are remembered: after each cycle what its disks held, to be compared with what the replica
 * shows of that moment.
 */

import { readFileSync } from 'node:fs'
import {
  type Clock,
  type Engine,
  openReplica,
  type PolicyInput,
  type ProtectedMachine,
  type Replica,
} from '@secondsite/engine'
import { expect } from 'vitest'
import { MIB, Workplace } from './workplace.js'

/** A Wednesday at noon. */
export const NOON_MS = Date.UTC(2026, 10, 18, 12)
export const MINUTE_MS = 60_000
export const DISKS = ['os.raw', 'data.raw'] as const

/** What disks held at one cut. */
export interface Moment {
  readonly timeMs: number
  readonly disks: ReadonlyMap<string, Buffer>
}

/** A clock that is set by hand; what waits for it is never due by itself, so cycles run when they are asked for. */
export class SetClock implements Clock {
  #nowMs = NOON_MS

  nowMs(): number {
    return this.#nowMs
  }

  nowNs(): bigint {
    return BigInt(this.#nowMs) * 1_000_000n
  }

  async sleep(durationMs: number): Promise<void> {
    this.advance(durationMs)
  }

  setTimer(): () => void {
    return () => {}
  }

  advance(durationMs: number): void {
    this.#nowMs += durationMs
  }
}

/** Anything that disks can be read from. */
interface Shown {
  readonly disks: readonly {
    readonly name: string
    readonly sizeBytes: number
    read(offset: number, lengthBytes: number): Promise<Uint8Array>
  }[]
}

export class RecoveryPlace extends Workplace {
  readonly clock = new SetClock()
  readonly moments: Moment[] = []
  #clock: Clock = this.clock
  engine!: Engine
  machine!: ProtectedMachine
  replica!: Replica

  /** Protects two disks, copies them, and opens their replica. */
  async begin(policy: PolicyInput, clock: Clock = this.clock): Promise<void> {
    this.#clock = clock
    this.engine = await this.open({ clock })
    const disks = [this.makeDisk('os.raw', 2 * MIB), this.makeDisk('data.raw', MIB)]
    this.machine = await this.enable(this.engine, disks, policy)
    await this.machine.startInitialReplication()
    this.remember()
    this.replica = await this.openReplica()
  }

  openReplica(step?: (name: string) => void): Promise<Replica> {
    return openReplica({ directory: this.path('replica'), clock: this.#clock, ...(step ? { step } : {}) })
  }

  /** What the disks hold now, as of now. */
  remember(): Moment {
    const disks = new Map(DISKS.map((name) => [name, readFileSync(this.path(name))]))
    const moment = { timeMs: this.#clock.nowMs(), disks }
    this.moments.push(moment)
    return moment
  }

  /** Lets time pass, writes, and runs a cycle. */
  async cycle(minutes: number, writeCount = 8): Promise<Moment> {
    this.clock.advance(minutes * MINUTE_MS)
    await this.scribble(this.machine, writeCount)
    await this.machine.replicate()
    await this.engine.settled()
    return this.remember()
  }

  /** What the disks held at the cut of a point. */
  momentAt(timeMs: number): Moment {
    const moment = this.moments.find((one) => one.timeMs === timeMs)
    if (moment === undefined) throw new Error(`nothing was remembered at ${timeMs}`)
    return moment
  }

  async end(): Promise<void> {
    await this.replica?.close()
    await this.engine?.close()
    this.remove()
  }
}

/** Every byte of every disk is what it was at that moment. */
export async function expectShows(shown: Shown, moment: Moment): Promise<void> {
  expect(shown.disks.map(({ name }) => name).toSorted()).toEqual([...moment.disks.keys()].toSorted())
  for (const disk of shown.disks) {
    const expected = moment.disks.get(disk.name)
    const bytes = Buffer.from(await disk.read(0, disk.sizeBytes))
    expect(expected?.equals(bytes), `${disk.name} as of ${new Date(moment.timeMs).toISOString()}`).toBe(true)
  }
}
