/**
 * Seeded runs of the real engine over the real core, with a clock moved by hand, a transport that breaks, and deaths of the
 * process, against an oracle that is an array of bytes per disk.
 *
 * Invariants:
 * 1. What a disk reads is what was last written to it, whatever happened to logs, link and process.
 * 2. After a cycle, a resynchronization or an initial replication that succeeded, every replica equals the oracle; but
 *    for an initial replication during which the logs passed the threshold: that ends with a resynchronization owed.
 * 3. The death of the process never asks for a resynchronization.
 * 4. A failure has a code of the table, and the next success makes up for it.
 *
 * A failing run prints its seed; SECONDSITE_SEED replays that one alone.
 */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Engine, isSecondsiteError, type ProtectedMachine } from '@secondsite/engine'
import { FaultyTransport, ManualClock, SeededRandom } from '@secondsite/engine/testing'
import { describe, expect, it } from 'vitest'
import { relayTo } from '../scenarios/relay.js'
import { KIB, MIB, Workplace } from '../scenarios/workplace.js'

const names = ['os.raw', 'data.raw'] as const
const stepCount = 40
const seedCount = process.env['SECONDSITE_SLOW'] ? 400 : 12

class Run {
  readonly #random: SeededRandom
  readonly #place: Workplace
  readonly #clock = new ManualClock(Date.UTC(2026, 10, 21))
  readonly #oracle = new Map<string, Uint8Array>()
  #engine: Engine | undefined
  #transport: FaultyTransport | undefined
  readonly trace: string[] = []

  constructor(seed: number) {
    this.#random = new SeededRandom(seed)
    this.#place = new Workplace(seed)
  }

  async start(): Promise<void> {
    for (const name of names) this.#oracle.set(name, readFileSync(this.#place.makeDisk(name, 2 * MIB)))
    this.#engine = await this.#open()
    const policy = {
      resyncThresholdPercent: 30,
      replicationFrequencySeconds: 86_400,
      autoResynchronize: { enabled: false },
    }
    await this.#place.enable(
      this.#engine,
      names.map((name) => this.#place.path(name)),
      policy,
    )
  }

  async step(): Promise<void> {
    const kinds = [
      'write',
      'write',
      'write',
      'burst',
      'zero',
      'discard',
      'flush',
      'work',
      'work',
      'fault',
      'die',
      'pause',
    ]
    const kind = kinds[this.#random.below(kinds.length)] as string
    this.trace.push(`${kind} in ${this.#machine.state}`)
    switch (kind) {
      case 'write':
        return this.#write(1, 32 * KIB)
      case 'burst':
        return this.#write(30, 32 * KIB)
      case 'zero':
        return this.#zero('writeZeroes')
      case 'discard':
        return this.#zero('discard')
      case 'flush':
        return this.#disk().flush()
      case 'work':
        return this.#work()
      case 'fault':
        return this.#fault()
      case 'die':
        return this.#die()
      case 'pause':
        return this.#pause()
    }
  }

  /** Without faults everything converges. */
  async settle(): Promise<void> {
    this.trace.push('settle')
    if (this.#transport) this.#transport.faults = {}
    for (let round = 0; round < 4; round += 1) await this.#work()
    expect(this.#machine.state).toBe('Replicating')
    expect(await this.#machine.verify()).toMatchObject({ equal: true })
    await this.#expectDisks()
  }

  async end(): Promise<void> {
    await this.#engine?.close()
    this.#place.remove()
  }

  get #machine(): ProtectedMachine {
    if (this.#engine === undefined) throw new Error('no engine is open')
    return this.#engine.machine('web01')
  }

  #open(): Promise<Engine> {
    return this.#place.open({
      clock: this.#clock,
      random: this.#random,
      windowBytes: MIB,
      wrapTransport: (inner) => {
        const serve = relayTo(inner)
        this.#transport = new FaultyTransport({ serve, random: new SeededRandom(this.#random.uint32()) })
        return this.#transport
      },
    })
  }

  #disk(): ProtectedMachine['disks'][number] {
    return this.#machine.disks[this.#random.below(names.length)] as ProtectedMachine['disks'][number]
  }

  #range(maxBytes: number): { offset: number; lengthBytes: number } {
    const lengthBytes = 512 * (1 + this.#random.below(maxBytes / 512))
    return { offset: 512 * this.#random.below((2 * MIB - lengthBytes) / 512), lengthBytes }
  }

  async #write(count: number, maxBytes: number): Promise<void> {
    for (let index = 0; index < count; index += 1) {
      const disk = this.#disk()
      const { offset, lengthBytes } = this.#range(maxBytes)
      const bytes = this.#random.bytes(lengthBytes)
      await disk.write(offset, bytes)
      this.#oracle.get(disk.name)?.set(bytes, offset)
    }
  }

  async #zero(verb: 'writeZeroes' | 'discard'): Promise<void> {
    const disk = this.#disk()
    const { offset, lengthBytes } = this.#range(128 * KIB)
    await disk[verb](offset, lengthBytes)
    this.#oracle.get(disk.name)?.fill(0, offset, offset + lengthBytes)
  }

  /** Does what the state is waiting for. What fails must be coded; what succeeds must have made both sides equal. */
  async #work(): Promise<void> {
    try {
      const isSuccess = await this.#advance()
      if (isSuccess) this.#expectReplicas()
    } catch (error) {
      if (!isSecondsiteError(error)) throw error
      this.trace.push(`  ${error.code}`)
    }
  }

  async #advance(): Promise<boolean> {
    const machine = this.#machine
    switch (machine.state) {
      case 'ReadyForInitialReplication':
        await machine.startInitialReplication()
        return this.#machine.state === 'Replicating'
      case 'InitialReplicationInProgress':
        await machine.cancelInitialReplication()
        await machine.startInitialReplication()
        return this.#machine.state === 'Replicating'
      case 'Replicating':
        await machine.replicate()
        return true
      case 'WaitingForStartResynchronize':
      case 'ResynchronizeSuspended':
        await machine.resynchronize()
        return true
      case 'Resynchronizing':
        await machine.cancelResynchronize()
        await machine.resynchronize({ restart: this.#random.below(3) === 0 })
        return true
      case 'Suspended':
      case 'Error':
        await machine.resume()
        return false
      default:
        throw new Error(`stuck in ${machine.state}`)
    }
  }

  async #fault(): Promise<void> {
    const faults = [
      { cutAfterMessages: 1 + this.#random.below(40) },
      { cutAfterBytes: 1 + this.#random.below(512 * KIB) },
      { corruptChance: 0.05 },
      { cutChance: 0.05 },
      { refusedConnects: 1 },
      {},
    ]
    if (this.#transport) this.#transport.faults = faults[this.#random.below(faults.length)] ?? {}
  }

  async #die(): Promise<void> {
    const owed = (await this.#machine.measure()).resyncReason
    await this.#engine?.abandon()
    this.#engine = await this.#open()
    await this.#expectDisks()
    const { resyncReason } = await this.#machine.measure()
    if (owed === null && resyncReason !== null) expect(resyncReason).toBe('LOG_THRESHOLD')
  }

  async #pause(): Promise<void> {
    const machine = this.#machine
    if (machine.state === 'Replicating' || machine.state === 'Resynchronizing') await machine.suspend()
  }

  #expectReplicas(): void {
    for (const [name, bytes] of this.#oracle) {
      const image = readFileSync(join(this.#place.path('replica'), `${name}.raw`))
      expect(image.equals(bytes), `${name} equals the oracle`).toBe(true)
    }
  }

  async #expectDisks(): Promise<void> {
    for (const disk of this.#machine.disks) {
      const bytes = Buffer.from(await disk.read(0, disk.sizeBytes))
      expect(
        bytes.equals(this.#oracle.get(disk.name) ?? new Uint8Array()),
        `${disk.name} reads what was written`,
      ).toBe(true)
    }
  }
}

const given = process.env['SECONDSITE_SEED']
const seeds =
  given === undefined ? Array.from({ length: seedCount }, (_, index) => 1000 + index) : [Number(given)]

describe('the engine under random faults', () => {
  it.each(seeds)('converges, seed %i', async (seed) => {
    const run = new Run(seed)
    try {
      await run.start()
      for (let step = 0; step < stepCount; step += 1) await run.step()
      await run.settle()
    } catch (error) {
      throw new Error(`seed ${seed}: ${run.trace.slice(-12).join(' | ')}`, { cause: error })
    } finally {
      await run.end()
    }
  })
})
