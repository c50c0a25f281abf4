/**
 * What the model of recovery acts on: two sites with an engine each, the disks of one machine, and the replica at the side
 * that follows. A reversal swaps the sides.
 */

import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  Engine,
  openReplica,
  type PolicyInput,
  type ProtectedMachine,
  type Replica,
  type ReplicationState,
} from '@secondsite/engine'
import { SeededRandom, WorkerPool } from '@secondsite/engine/testing'
import { expect } from 'vitest'
import { KIB, Workplace } from '../scenarios/workplace.js'
import { type Content, expectBytes, History, ModelClock } from './recovery-model-oracle.js'

const MACHINE = 'web01'
const DISK_NAMES = ['os.raw', 'data.raw'] as const

/** What differs between runs. */
export interface Settings {
  readonly policy: PolicyInput
  readonly sizesBytes: readonly number[]
  readonly keepsEveryWrite: boolean
  readonly frameBytes: number
}

export function settingsOf(random: SeededRandom): Settings {
  const keepsEveryWrite = random.below(3) === 0
  const sizesBytes = DISK_NAMES.slice(random.below(2)).map(
    () => 64 * KIB * (1 + random.below(3)) + 512 * random.below(20),
  )
  const always = {
    replicationFrequencySeconds: 86_400,
    resyncThresholdPercent: 100,
    autoResynchronize: { enabled: false },
    flushMode: random.below(2) === 0 ? ('disk' as const) : ('log' as const),
    compression: random.below(2) === 0 ? ('none' as const) : ('adaptive' as const),
  }
  const kept = { hours: 1, bytesMax: random.below(2) === 0 ? 0 : 200 * KIB }
  const points = keepsEveryWrite
    ? { recoveryPoints: 2, recoveryPointIntervalSeconds: 1, keepEveryWrite: kept }
    : pointRules(random)
  const frameBytes = KIB * (random.below(2) === 0 ? 16 : 64)
  return { policy: { ...always, ...points }, sizesBytes, keepsEveryWrite, frameBytes }
}

function pointRules(random: SeededRandom): PolicyInput {
  const recoveryPoints = random.below(5)
  const recoveryPointIntervalSeconds = random.below(2) === 0 ? 600 : 3600
  const retention = [{}, { hourly: 2, daily: 1 }, { lockHours: 1 }][random.below(3)] ?? {}
  return { recoveryPoints, recoveryPointIntervalSeconds, retention }
}

/**
 * Worker threads of all lives: a process has them once, while a life opens a dozen engines and replicas, and most of its time
 * would be spent on starting theirs.
 */
const threads = new WorkerPool({ threadCountMax: 2 })

export function endThreads(): Promise<void> {
  return threads.close()
}

export class World {
  readonly random: SeededRandom
  readonly settings: Settings
  readonly clock: ModelClock
  readonly #place: Workplace
  readonly #engines: (Engine | undefined)[] = [undefined, undefined]
  /** The site whose disks guests write to. */
  active = 0
  history: History
  replica: Replica | undefined
  /** Where the primary's disks are, and the images of its replica. */
  #diskPaths: ReadonlyMap<string, string>
  #imagePaths: ReadonlyMap<string, string>
  /** The step before which the next thing that comes there dies. */
  armedStep: string | undefined

  constructor(seed: number) {
    this.random = new SeededRandom(seed)
    this.settings = settingsOf(this.random)
    this.clock = new ModelClock(this.settings.keepsEveryWrite)
    this.#place = new Workplace(seed)
    const names = DISK_NAMES.slice(0, this.settings.sizesBytes.length)
    this.#diskPaths = new Map(names.map((name, index) => [name, this.#makeDisk(name, index)]))
    this.#imagePaths = new Map(names.map((name) => [name, join(this.storeOf(1), `${name}.raw`)]))
    this.history = new History(this.clock, readAll(this.#diskPaths))
  }

  /** An image, a part of which is a hole. */
  #makeDisk(name: string, index: number): string {
    const path = this.#place.path(name)
    const sizeBytes = this.settings.sizesBytes[index] ?? 0
    mkdirSync(this.#place.folder, { recursive: true })
    writeFileSync(path, this.random.bytes(512 * this.random.below(sizeBytes / 512)))
    truncateSync(path, sizeBytes)
    return path
  }

  path(name: string): string {
    return this.#place.path(name)
  }

  /** The folder of the replica's store while a site follows. */
  storeOf(site: number): string {
    return this.#place.path(`store-${site}`)
  }

  get passive(): number {
    return 1 - this.active
  }

  /** Whether the engine of the active site is there. */
  get isPrimaryAlive(): boolean {
    return this.#engines[this.active] !== undefined
  }

  async engine(site: number): Promise<Engine> {
    this.#engines[site] ??= await Engine.open({
      stateDirectory: this.#place.path(`state-${site}`),
      clock: this.clock,
      threadsOf: threads,
      frameBytes: this.settings.frameBytes,
      batchBytes: 64 * KIB,
      windowBytes: 128 * KIB,
      step: (name) => this.#step(name),
    })
    return this.#engines[site]
  }

  #step(name: string): void {
    if (name !== this.armedStep) return
    this.armedStep = undefined
    throw new Error('died')
  }

  async machine(): Promise<ProtectedMachine> {
    return (await this.engine(this.active)).machine(MACHINE)
  }

  /** Protects the disks, and copies them. */
  async begin(): Promise<void> {
    const engine = await this.engine(0)
    const disks = [...this.#diskPaths.values()]
    const replica = { directory: this.storeOf(1) }
    const machine = await engine.enable({ name: MACHINE, disks, replica, policy: this.settings.policy })
    await machine.startInitialReplication()
    await this.settled()
    await this.openReplica()
  }

  /** The engine of a site ends, in order or as by a death. */
  async end(site: number, isDeath: boolean): Promise<void> {
    const engine = this.#engines[site]
    this.#engines[site] = undefined
    this.armedStep = undefined
    await (isDeath ? engine?.abandon() : engine?.close())
  }

  /** Waits for what the replica does beside cycles. */
  async settled(): Promise<void> {
    await this.#engines[this.active]?.settled()
  }

  async openReplica(): Promise<Replica> {
    await this.replica?.close()
    this.replica = undefined
    const options = { directory: this.storeOf(this.passive), clock: this.clock, threadsOf: threads }
    this.replica = await openReplica(options)
    return this.replica
  }

  get open(): Replica {
    if (this.replica === undefined) throw new Error('the replica is not open')
    return this.replica
  }

  /** The sides have changed places: `content` is what the new primary holds. */
  async swap(content: Content): Promise<void> {
    this.active = this.passive
    ;[this.#diskPaths, this.#imagePaths] = [this.#imagePaths, this.#diskPaths]
    this.history = new History(this.clock, content)
    await this.openReplica()
  }

  expectDisks(): void {
    expectFiles(this.#diskPaths, this.history.now, 'the disk of the primary')
  }

  expectImages(content: Content): void {
    expectFiles(this.#imagePaths, content, 'the image')
  }

  async expectState(state: ReplicationState): Promise<void> {
    expect(await this.open.state(), 'state of the replica').toBe(state)
  }

  async remove(): Promise<void> {
    await this.replica?.close()
    for (const site of [0, 1]) await this.end(site, false)
    this.#place.remove()
  }

  /** A folder that is not there. */
  freshFolder(name: string): string {
    rmSync(this.#place.path(name), { recursive: true, force: true })
    return this.#place.path(name)
  }
}

export function readAll(paths: ReadonlyMap<string, string>): Map<string, Buffer> {
  return new Map([...paths].map(([name, path]) => [name, readFileSync(path)]))
}

function expectFiles(paths: ReadonlyMap<string, string>, content: Content, what: string): void {
  for (const [name, bytes] of readAll(paths)) expectBytes(bytes, content.get(name), `${what} ${name}`)
}
