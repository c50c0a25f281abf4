/**
 * What the model of recovery acts on: two sites with an engine each, the disks of one machine, and the replica at the side
 * that follows. A reversal swaps the sides.
 */

import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  Engine,
  type EngineOptions,
  type FailbackPlace,
  openReplica,
  type PolicyInput,
  type ProtectedMachine,
  type Replica,
  type ReplicationState,
} from '@secondsite/engine'
import { FaultyTransport, SeededRandom, type TransportFaults, WorkerPool } from '@secondsite/engine/testing'
import { expect } from 'vitest'
import { relayTo } from '../scenarios/relay.js'
import { KIB, Workplace } from '../scenarios/workplace.js'
import { type Content, expectBytes, History, ModelClock } from './recovery-model-oracle.js'

const MACHINE = 'web01'
const DISK_NAMES = ['os.raw', 'data.raw'] as const
/** The file that lets the hook fail. */
const HOOK_FAILS = 'hook-fails'

/** What differs between runs. */
export interface Settings {
  readonly policy: PolicyInput
  readonly sizesBytes: readonly number[]
  readonly keepsEveryWrite: boolean
  readonly frameBytes: number
  /** Whether cuts can be asked for at which the applications are at rest. */
  readonly hasHook: boolean
  /** Whether the line between the sites can fail. */
  readonly hasBadLine: boolean
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
  const [hasHook, hasBadLine] = [random.below(8) === 0, random.below(3) === 0]
  return { policy: { ...always, ...points }, sizesBytes, keepsEveryWrite, frameBytes, hasHook, hasBadLine }
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
  readonly #lines: (FaultyTransport | undefined)[] = [undefined, undefined]
  readonly #lineRandom: SeededRandom
  #hasSwapped = false
  /** The site whose disks guests write to. */
  active = 0
  history: History
  replica: Replica | undefined
  /** Where the primary's disks are, and the images of its replica. */
  #diskPaths: ReadonlyMap<string, string>
  #imagePaths: ReadonlyMap<string, string>
  /** Cuts at which the applications were at rest. */
  readonly restCutsMs: number[] = []
  /** The step before which the next thing that comes there dies. */
  armedStep: string | undefined

  constructor(seed: number) {
    this.random = new SeededRandom(seed)
    this.settings = settingsOf(this.random)
    this.clock = new ModelClock(this.settings.keepsEveryWrite)
    this.#place = new Workplace(seed)
    this.#lineRandom = new SeededRandom(this.random.uint32())
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

  /** A hook pair that freezes unless it is told to fail. */
  get #policy(): PolicyInput {
    const { policy, hasHook } = this.settings
    const freeze = ['/usr/bin/env', 'test', '!', '-e', this.#place.path(HOOK_FAILS)]
    const quiesce = { method: 'command' as const, freeze, thaw: ['/usr/bin/env', 'true'] }
    return hasHook ? { ...policy, quiesce } : policy
  }

  /** Lets the hook fail from now on, or succeed. */
  failHook(isFailing: boolean): void {
    if (isFailing) writeFileSync(this.#place.path(HOOK_FAILS), '')
    else rmSync(this.#place.path(HOOK_FAILS), { force: true })
  }

  /** What goes wrong on the line from the active site, from now on. */
  set lineFaults(faults: TransportFaults) {
    const line = this.#lines[this.active]
    if (line) line.faults = faults
  }

  #wrapTransport(site: number): Pick<EngineOptions, 'wrapTransport'> {
    if (!this.settings.hasBadLine) return {}
    return {
      wrapTransport: (inner) => {
        const line = new FaultyTransport({ serve: relayTo(inner), random: this.#lineRandom })
        this.#lines[site] = line
        return line
      },
    }
  }

  async engine(site: number): Promise<Engine> {
    this.#engines[site] ??= await Engine.open({
      ...this.#wrapTransport(site),
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
    const machine = await engine.enable({ name: MACHINE, disks, replica, policy: this.#policy })
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

  async closeReplica(): Promise<void> {
    await this.replica?.close()
    this.replica = undefined
  }

  /** Whether the active site has followed before, so that the machine can go home from it by the verb. */
  get canFailBack(): boolean {
    return this.active === 1 || this.#hasSwapped
  }

  /** What a failback is about while the machine runs at the active site. @param replica - that which was failed over */
  async wayHome(replica: Replica, away: number): Promise<FailbackPlace> {
    const home = 1 - away
    const [awayEngine, homeEngine] = [await this.engine(away), await this.engine(home)]
    return { replica, away: awayEngine, home: homeEngine, directory: this.storeOf(home) }
  }

  /** The replica that the active site has been. */
  openFormer(): Promise<Replica> {
    return openReplica({ directory: this.storeOf(this.active), clock: this.clock, threadsOf: threads })
  }

  async openReplica(): Promise<Replica> {
    await this.closeReplica()
    const options = { directory: this.storeOf(this.passive), clock: this.clock, threadsOf: threads }
    this.replica = await openReplica(options)
    return this.replica
  }

  get open(): Replica {
    if (this.replica === undefined) throw new Error('the replica is not open')
    return this.replica
  }

  /** A relationship of its own begins: `content` is what the primary holds, at the other site or where it was. */
  async beginAnew(content: Content, isSwapped: boolean): Promise<void> {
    this.#hasSwapped ||= isSwapped
    if (isSwapped) {
      this.active = this.passive
      ;[this.#diskPaths, this.#imagePaths] = [this.#imagePaths, this.#diskPaths]
    }
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
