/**
 * Seeded runs of the real engine over the real core, with a clock moved by hand, a transport that breaks, files that fail,
 * and deaths of the process, against an oracle that is an array of bytes per disk and knows every cut.
 *
 * Invariants:
 * 1. What a disk reads is what was last written to it, whatever happened to logs, link and process.
 * 2. After a cycle, a resynchronization or an initial replication that succeeded, every replica equals the oracle; but
 *    for an initial replication during which the logs passed the threshold: that ends with a resynchronization owed.
 * 3. The death of the process never asks for a resynchronization, unless a file had failed before.
 * 4. A failure has a code of the table, and the next success makes up for it.
 * 5. Between two successes the images together show exactly one of the cuts; but for an apply that the storage of the
 *    replica cut short, until it is done again.
 * 6. A write of the guest fails only if its disk does; then each sector holds the old or the new bytes.
 *
 * A failing run prints its seed; SECONDSITE_SEED replays that one alone.
 */

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Engine, isSecondsiteError, type ProtectedMachine } from '@secondsite/engine'
import {
  type ArmedFault,
  type FaultRule,
  FaultyFileSystem,
  FaultyTransport,
  ManualClock,
  SeededRandom,
} from '@secondsite/engine/testing'
import { expect } from 'vitest'
import { relayTo } from '../scenarios/relay.js'
import { KIB, MIB, Workplace } from '../scenarios/workplace.js'

const names = ['os.raw', 'data.raw'] as const
const SECTOR_BYTES = 512
const stepCount = 40
/**
 * Of each kind of run. One takes 2 s of processor time, half of it for engines opened anew with their workers: the slow 200
 * of both kinds, side by side, some 10 minutes on two cores that have nothing else to do.
 */
const seedCount = process.env['SECONDSITE_SLOW'] ? 200 : 10
/** A run that hangs is found by this; on cores that others keep busy one has taken a minute. */
export const RUN_LIMIT_MS = 600_000

/** Which files fail how; `os.raw` stands for either disk. The databases fail statements, all else system calls. */
const storageFaults: readonly (Omit<FaultRule, 'path'> & { readonly on: string })[] = [
  { on: '.', suffix: '.hrl', operation: 'write', error: 'ENOSPC' },
  { on: '.', suffix: '.hrl', operation: 'sync', error: 'EIO' },
  { on: '.', suffix: '.hrx', operation: 'write', error: 'EIO' },
  { on: 'os.raw', operation: 'write', error: 'EIO' },
  { on: 'os.raw', operation: 'read', error: 'EIO' },
  { on: 'os.raw', operation: 'sync', error: 'EIO' },
  { on: 'replica/os.raw.raw', operation: 'write', error: 'ENOSPC' },
  { on: 'replica/os.raw.raw', operation: 'sync', error: 'EIO' },
  { on: 'replica/spool', operation: 'write', error: 'ENOSPC' },
  { on: 'replica/spool', operation: 'sync', error: 'EIO' },
  { on: 'replica/spool', operation: 'open', error: 'EIO' },
  { on: 'replica/store.db', operation: 'write', error: 'ENOSPC' },
  { on: 'state/state.db', operation: 'write', error: 'EIO' },
]

class Run {
  readonly #random: SeededRandom
  readonly #place: Workplace
  readonly #clock = new ManualClock(Date.UTC(2026, 10, 21))
  readonly #oracle = new Map<string, Uint8Array>()
  #engine: Engine | undefined
  #transport: FaultyTransport | undefined
  readonly trace: string[] = []
  readonly #files = new FaultyFileSystem()
  readonly #hasStorageFaults: boolean
  #armed: { readonly on: string; readonly fault: ArmedFault }[] = []
  /** The digests of all disks at every cut that there may have been. */
  readonly #cuts = new Set<string>()
  #isEveryCutExact = false
  readonly #uncertain = new Set<string>()

  constructor(seed: number, hasStorageFaults = false) {
    this.#hasStorageFaults = hasStorageFaults
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
      ...(this.#hasStorageFaults ? ['storage', 'storage', 'heal'] : []),
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
        return this.#guest(() => this.#disk().flush())
      case 'work':
        return this.#work()
      case 'fault':
        return this.#fault()
      case 'die':
        return this.#die()
      case 'pause':
        return this.#guest(() => this.#pause())
      case 'storage':
        return this.#failStorage()
      case 'heal':
        return this.#heal()
    }
  }

  /** Without faults everything converges. */
  async settle(): Promise<void> {
    this.trace.push('settle')
    if (this.#transport) this.#transport.faults = {}
    // A disk that failed a sync is not believed before it was opened again.
    if (this.#hasStorageFaults) {
      this.#heal()
      await this.#die()
      if (this.#transport) this.#transport.faults = {}
    }
    for (let round = 0; round < 4; round += 1) await this.#work()
    expect(this.#machine.state).toBe('Replicating')
    expect(await this.#machine.verify()).toMatchObject({ equal: true })
    await this.#expectDisks()
  }

  async end(): Promise<void> {
    this.#files.heal()
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
      const isDone = await this.#guest(() => disk.write(offset, bytes))
      if (isDone) this.#oracle.get(disk.name)?.set(bytes, offset)
      this.#settled(disk.name, offset, lengthBytes, isDone)
    }
  }

  async #zero(verb: 'writeZeroes' | 'discard'): Promise<void> {
    const disk = this.#disk()
    const { offset, lengthBytes } = this.#range(128 * KIB)
    const isDone = await this.#guest(() => disk[verb](offset, lengthBytes))
    if (isDone) this.#oracle.get(disk.name)?.fill(0, offset, offset + lengthBytes)
    this.#settled(disk.name, offset, lengthBytes, isDone)
  }

  /** Does what the state is waiting for. What fails must be coded; what succeeds must have made both sides equal. */
  async #work(): Promise<void> {
    this.#cuts.add(digestOf([...this.#oracle.values()]))
    try {
      const isSuccess = await this.#advance()
      if (isSuccess) this.#expectReplicas()
      if (isSuccess) this.#isEveryCutExact = true
    } catch (error) {
      if (!isSecondsiteError(error)) throw error
      this.trace.push(`  ${error.code}`)
      // An apply that was cut short is done again from its start; until then an image lies between two cuts.
      if (this.#hasStruck('replica/')) this.#isEveryCutExact = false
    }
    if (this.#isEveryCutExact) this.#expectSomeCut()
  }

  /** What did not work is still a state of the disk at some cut, never a mixture. */
  #expectSomeCut(): void {
    const images = names.map((name) => readFileSync(join(this.#place.path('replica'), `${name}.raw`)))
    expect(this.#cuts.has(digestOf(images)), 'the images show one of the cuts').toBe(true)
  }

  /** Does what a guest or an operator asks for. Without storage faults nothing of it may fail. */
  async #guest(action: () => Promise<void>): Promise<boolean> {
    try {
      await action()
      return true
    } catch (error) {
      if (!isSecondsiteError(error) || !this.#hasStruck('')) throw error
      this.trace.push(`  ${error.code}`)
      return false
    }
  }

  /** A sector of a failed write is uncertain until the next write of it: it may change once more when a log is redone. */
  #settled(name: string, offset: number, lengthBytes: number, isDone: boolean): void {
    for (let at = offset; at < offset + lengthBytes; at += SECTOR_BYTES) {
      if (isDone) this.#uncertain.delete(`${name} ${at}`)
      else this.#uncertain.add(`${name} ${at}`)
    }
    this.#learnUncertain()
  }

  /** What the disk holds of uncertain sectors is the truth. */
  #learnUncertain(): void {
    if (this.#uncertain.size === 0) return
    const disks = new Map(names.map((name) => [name as string, readFileSync(this.#place.path(name))]))
    for (const sector of this.#uncertain) {
      const [name = '', offset] = sector.split(' ')
      const at = Number(offset)
      const bytes = disks.get(name)?.subarray(at, at + SECTOR_BYTES)
      if (bytes) this.#oracle.get(name)?.set(bytes, at)
    }
  }

  #failStorage(): void {
    const { on, ...rule } = storageFaults[
      this.#random.below(storageFaults.length)
    ] as (typeof storageFaults)[number]
    const name = on.replace('os.raw', names[this.#random.below(names.length)] as string)
    const afterBytes = this.#random.below(2) === 0 ? 0 : this.#random.below(on.endsWith('.db') ? 12 : 100_000)
    const times = this.#random.below(3)
    const path = this.#place.path(name)
    this.#armed.push({ on: name, fault: this.#files.fail({ ...rule, path, afterBytes, times }) })
    this.trace.push(
      `  ${rule.operation} of ${name}${rule.suffix ?? ''} fails after ${afterBytes}, ${times} times`,
    )
  }

  /** Rules stay known after they are gone: what they broke may last. */
  #heal(): void {
    this.#files.heal()
  }

  #hasStruck(prefix: string): boolean {
    return this.#armed.some(({ on, fault }) => on.startsWith(prefix) && fault.strikes > 0)
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
        return this.#machine.state === 'Replicating'
      case 'Resynchronizing':
        await machine.cancelResynchronize()
        await machine.resynchronize({ restart: this.#random.below(3) === 0 })
        return this.#machine.state === 'Replicating'
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
    if (this.#hasStorageFaults) return this.#dieAmongFaults()
    const owed = (await this.#machine.measure()).resyncReason
    await this.#engine?.abandon()
    this.#engine = await this.#open()
    await this.#expectDisks()
    const { resyncReason } = await this.#machine.measure()
    if (owed === null && resyncReason !== null) expect(resyncReason).toBe('LOG_THRESHOLD')
  }

  /** What fails may keep the engine or a disk from being opened; once it works again both are. */
  async #dieAmongFaults(): Promise<void> {
    await this.#engine?.abandon()
    this.#engine = undefined
    this.#engine = await this.#open().catch((error: unknown) => {
      if (!isSecondsiteError(error)) throw error
      this.trace.push(`  not opened: ${error.code}`)
      this.#heal()
      return this.#open()
    })
    if (this.#machine.disks.length < names.length) {
      this.trace.push('  without its disks')
      this.#heal()
      await this.#machine.resume()
    }
    this.#learnUncertain()
    for (const name of names) {
      const bytes = readFileSync(this.#place.path(name))
      expect(bytes.equals(this.#oracle.get(name) ?? new Uint8Array()), `${name} has what was written`).toBe(
        true,
      )
    }
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

function digestOf(parts: readonly Uint8Array[]): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest('hex')
}

/** Seeds of the slow suite that found something: 1086, disks left open behind one that could not be closed. */
const telling = [1086]

/** The seeds to run: the one given in SECONDSITE_SEED, or all. */
export function seedsToRun(): readonly number[] {
  const given = process.env['SECONDSITE_SEED']
  if (given !== undefined) return [Number(given)]
  const all = Array.from({ length: seedCount }, (_, index) => 1000 + index)
  return [...new Set([...all, ...telling])]
}

/** One run from its seed to its end. */
export async function runOf(seed: number, hasStorageFaults: boolean): Promise<void> {
  const run = new Run(seed, hasStorageFaults)
  try {
    await run.start()
    for (let step = 0; step < stepCount; step += 1) await run.step()
    await run.settle()
  } catch (error) {
    const replay = `SECONDSITE_SEED=${seed} npx vitest run test/simulation`
    throw new Error(`seed ${seed} (${replay}): ${run.trace.slice(-16).join(' | ')}`, { cause: error })
  } finally {
    await run.end()
  }
}
