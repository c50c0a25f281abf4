/**
 * The engine: the machines that one state directory protects, and everything they share.
 *
 * Opening it takes up every machine where the last process left it, by whatever that ended. Replicas in a folder are
 * served in this process over the transport in memory; a network transport takes the same place.
 */

import { resolve } from 'node:path'
import { FolderReplica } from './apply/folder-replica.js'
import { type Clock, systemClock } from './clock.js'
import { closeInOrder } from './closing.js'
import { SecondsiteError, optionOutOfRange } from './errors.js'
import { FrozenCuts } from './frozen-cuts.js'
import { poolOf, WorkerPool } from './pool/pool.js'
import {
  type EventFilter,
  EventLog,
  type MachineEvent,
  type MachineEventListener,
} from './protection/events.js'
import type { ConsistencyGroup } from './protection/consistency-group.js'
import { Groups } from './protection/groups.js'
import type { MachineContext, OpenableDisk } from './protection/machine-context.js'
import { type Policy, type PolicyInput, parsePolicy } from './protection/policy.js'
import { ProtectedMachine } from './protection/protected-machine.js'
import { FreezeMarks } from './quiesce/freeze-marks.js'
import { withReplica } from './protection/replica-link.js'
import { pendingShrink } from './protection/shrinking.js'
import { type Random, systemRandom } from './random.js'
import type { ReplicationState } from './states.js'
import { DiskStore } from './store/disk-store.js'
import { ResyncStore } from './store/resync-store.js'
import type { Disk, Machine } from './store/state-schema.js'
import { StateStore } from './store/state-store.js'
import { type CheckedDisk, checkDisk, type DiskInput } from './track/disk-input.js'
import { closeDisks, TrackedDisk } from './track/tracked-disk.js'
import { hasTrackingFile, removeTrackingFiles } from './track/tracking-files.js'
import type { Transport } from './transport/channel.js'
import { MIB } from './units.js'
import { primaryWork, replicaWork, type StepObserver } from './works.js'

/** What {@link Engine.enable} needs. */
export interface EnableRequest {
  /** Letters, digits, dot, dash and underscore, at most 64; unique in the state directory. */
  readonly name: string
  /** Raw image files or block devices, at least one; they are cut together. */
  readonly disks: readonly DiskInput[]
  /** Where the replica is kept: a folder of its own, created when it is missing. */
  readonly replica: { readonly directory: string }
  readonly policy?: PolicyInput
}

/** What {@link Engine.createGroup} needs. */
export interface GroupRequest {
  /** As the name of a machine; unique among the groups of the state directory. */
  readonly name: string
  /** Names of protected machines, at least one. */
  readonly machines: readonly string[]
}

/** A machine that is protected without being copied, see {@link Engine.adopt}. */
export interface Adoption {
  readonly machineId: string
  readonly relationshipId: string
  readonly name: string
  readonly policy: PolicyInput
  readonly fencingNumber: number
  /** Folder of its replica, which is there. */
  readonly directory: string
  readonly disks: readonly {
    readonly diskId: string
    readonly name: string
    readonly path: string
    readonly trackingDirectory: string
    readonly sizeBytes: number
  }[]
  /** Whether the tracking files of the disks know of ranges that may differ. */
  readonly isResyncOwed: boolean
  /** Whether nothing is sent before `resume`, as the replica is not ready for it yet; default false. */
  readonly isHeld?: boolean
}

/** Options of {@link Engine.open}; all but the first are for tests and tuning. */
export interface EngineOptions {
  /** Folder of the engine's state, created when it is missing; one engine at a time. */
  readonly stateDirectory: string
  readonly clock?: Clock
  readonly random?: Random
  /** Worker threads, default the number of processors. */
  readonly threadCountMax?: number
  /** Uses the threads of that pool, which stays open longer, instead of its own. */
  readonly threadsOf?: WorkerPool
  /** Bytes of a frame before encoding, 4096 to 16 MiB, default 4 MiB. */
  readonly frameBytes?: number
  /** Bytes of data of one batch of initial replication, default 64 MiB. */
  readonly batchBytes?: number
  /** Bytes of a disk that one step of a comparison walks, default 256 MiB. */
  readonly windowBytes?: number
  /** Puts a transport of its own around that to the replica, to cut or corrupt it. */
  readonly wrapTransport?: (transport: Transport) => Transport
  /** Told of everything that {@link Engine.events} keeps. */
  readonly onEvent?: MachineEventListener
  /** Called with the name of each step just before it; a test ends the process there. */
  readonly step?: StepObserver
}

const NAME_RANGE = 'letters, digits, dot, dash, underscore, at most 64'
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/

export class Engine implements AsyncDisposable {
  readonly #options: EngineOptions
  readonly #store: StateStore
  readonly #pool: WorkerPool
  readonly #clock: Clock
  readonly #random: Random
  readonly #machines = new Map<string, ProtectedMachine>()
  readonly #replicas = new Map<string, FolderReplica>()
  readonly #events: EventLog
  readonly #groups: Groups
  readonly #cuts: FrozenCuts

  private constructor(options: EngineOptions, store: StateStore, pool: WorkerPool) {
    this.#options = options
    this.#store = store
    this.#pool = pool
    this.#clock = options.clock ?? systemClock
    this.#random = options.random ?? systemRandom
    this.#events = new EventLog(store, this.#clock, options.onEvent)
    this.#groups = new Groups(store, this.#clock, this.#random)
    const marks = new FreezeMarks(resolve(options.stateDirectory, 'frozen'))
    this.#cuts = new FrozenCuts(pool, marks, () => new WorkerPool({ threadCountMax: 1 }))
  }

  /**
   * Opens the engine of a state directory and takes up all its machines.
   *
   * A machine whose disks cannot be opened is there all the same, in state Error with the reason in
   * {@link ProtectedMachine.measure}; `resume` tries again. A replica that cannot be reached is tried again by itself.
   *
   * @example
   * await using engine = await Engine.open({ stateDirectory: './state' })
   * @throws {STATE_IN_USE, STORE_VERSION_NEWER, STORE_CORRUPT, STATE_DISK_FULL}
   */
  static async open(options: EngineOptions): Promise<Engine> {
    const store = StateStore.open(resolve(options.stateDirectory), options.clock ?? systemClock)
    const pool = poolOf(options)
    const engine = new Engine(options, store, pool)
    try {
      await engine.#cuts.thawLeft(await store.machines(), engine.#events)
      for (const row of await store.machines()) {
        const context = engine.#contextOf(row, await store.disks(row.machineId))
        engine.#machines.set(row.machineId, await ProtectedMachine.takeUp(context))
      }
      await engine.#groups.takeUp(engine.#machines)
      return engine
    } catch (error) {
      await engine.close()
      throw error
    }
  }

  /** The protected machines, by name. */
  get machines(): readonly ProtectedMachine[] {
    return [...this.#machines.values()].filter((machine) => !machine.isDisabled)
  }

  /** @throws {MACHINE_NOT_FOUND} */
  machine(name: string): ProtectedMachine {
    const machine = this.machines.find((one) => one.name === name)
    if (machine) return machine
    const known = this.machines.map((one) => one.name)
    throw new SecondsiteError('MACHINE_NOT_FOUND', {
      message: `no machine ${name}`,
      details: { machine: name, known },
    })
  }

  /**
   * Protects a machine: checks its disks and the replica, then tracks every write from here on.
   *
   * Nothing is copied yet; {@link ProtectedMachine.startInitialReplication} does that.
   * @throws {OPTION_OUT_OF_RANGE, MACHINE_EXISTS} of the request
   * @throws {DISK_NOT_FOUND, DISK_NOT_A_DISK, DISK_EMPTY, DISK_SIZE_UNALIGNED, DISK_IN_USE, DISK_SAME} of a disk
   * @throws {STORE_IN_USE, STORE_FOREIGN, REPLICA_DISK_FULL} of the replica; nothing of it has been changed
   */
  async enable(request: EnableRequest): Promise<ProtectedMachine> {
    const policy = parsePolicy(request.policy)
    const disks = checkRequest(request)
    const machineId = this.#random.uuid()
    const directory = resolve(request.replica.directory)
    const row = this.#machineRow(machineId, request.name, policy, directory)
    const rows = disks.map((disk, position) => {
      return { diskId: this.#random.uuid(), machineId, position, ...disk }
    })
    // A disk that is tracked by somebody else, now or before, keeps its files whatever fails here.
    const untracked = rows.filter(({ trackingDirectory, name }) => !hasTrackingFile(trackingDirectory, name))
    await this.#store.addMachine(row, rows, 'engine', 'asked for')
    try {
      const machine = await this.#take(await this.#store.machine(machineId))
      await this.#events.raise({ machineId, name: machine.name }, 'enabled', { replica: directory })
      return machine
    } catch (error) {
      await this.#forget(machineId)
      for (const disk of untracked) removeTrackingFiles(disk.trackingDirectory, disk.name)
      throw error
    }
  }

  /** The consistency groups, by name. */
  get groups(): readonly ConsistencyGroup[] {
    return this.#groups.all
  }

  /** @throws {GROUP_NOT_FOUND} */
  group(name: string): ConsistencyGroup {
    return this.#groups.get(name)
  }

  /**
   * Lets machines share their cuts from now on, whatever they are doing; a machine is in one group at most.
   * @throws {OPTION_OUT_OF_RANGE, GROUP_EXISTS, MACHINE_NOT_FOUND, MACHINE_IN_GROUP}
   */
  async createGroup(request: GroupRequest): Promise<ConsistencyGroup> {
    if (!NAME.test(request.name))
      throw optionOutOfRange({ path: 'name', value: request.name, range: NAME_RANGE })
    if (request.machines.length === 0)
      throw optionOutOfRange({ path: 'machines', value: '[]', range: 'at least one machine' })
    return this.#groups.create(
      request.name,
      request.machines.map((name) => this.machine(name)),
    )
  }

  /** Ends a group; its machines go on, each by itself. @throws {GROUP_NOT_FOUND} */
  async removeGroup(name: string): Promise<void> {
    await this.#groups.dissolve(name)
  }

  /**
   * Protects a machine whose replica has all of it, or owes the ranges that its tracking files know. Part of
   * `reverseReplication`; calling it again with the same ids does nothing.
   */
  async adopt(adoption: Adoption): Promise<ProtectedMachine> {
    const { disks, directory, isResyncOwed, fencingNumber, ...of } = adoption
    const known = this.#machines.get(of.machineId)
    if (known) return known
    const policy = parsePolicy(of.policy)
    const row = {
      ...this.#machineRow(of.machineId, of.name, policy, directory),
      relationshipId: of.relationshipId,
      fencingNumber,
      isInitialReplicationDone: 1,
      state: stateOfAdopted(adoption),
      resyncReason: isResyncOwed ? 'REPLICATION_REVERSED' : null,
    }
    const rows = disks.map((disk, position) => ({
      ...disk,
      machineId: of.machineId,
      position,
      isInitialDone: 1,
    }))
    await this.#store.addMachine(row, rows, 'operator', 'replication was reversed')
    const context = this.#contextOf(
      await this.#store.machine(of.machineId),
      await this.#store.disks(of.machineId),
    )
    const machine = await ProtectedMachine.takeUp(context)
    this.#machines.set(of.machineId, machine)
    await this.#events.raise({ machineId: of.machineId, name: of.name }, 'enabled', { replica: directory })
    return machine
  }

  /** Ends a machine whose replica has become the primary, and lets go of the replica's folder. Part of `reverseReplication`. */
  async retire(machine: ProtectedMachine): Promise<void> {
    const directory = machine.replicaDirectory
    await machine.retire()
    await this.#replicas.get(directory)?.close()
    this.#replicas.delete(directory)
  }

  /** What happened to machines, oldest first; also of those that are not protected any more. */
  events(filter: EventFilter = {}): Promise<MachineEvent[]> {
    return this.#events.list(filter)
  }

  /** Waits until the replicas in folders have done what they do beside cycles, such as letting go of expired points. */
  async settled(): Promise<void> {
    for (const replica of this.#replicas.values()) await replica.settled()
  }

  /**
   * Closes machines, replicas, workers and the state directory, in this order, each of them whatever becomes of the others; calling
   * it again does nothing.
   * @throws what kept the only one that failed from being closed in order; {CLOSE_FAILED} with the failures of several. Nothing
   *   is open or locked any more
   */
  async close(): Promise<void> {
    await this.#closeAll((machine) => (machine.isDisabled ? Promise.resolve() : machine.close()))
  }

  /** Drops everything as the death of the process would; for tests. */
  async abandon(): Promise<void> {
    await this.#closeAll((machine) => machine.abandon())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #closeAll(closeMachine: (machine: ProtectedMachine) => Promise<void>): Promise<void> {
    const machines = [...this.#machines.values()]
    const replicas = [...this.#replicas.values()]
    this.#machines.clear()
    this.#replicas.clear()
    await closeInOrder([
      ...machines.map((machine) => () => closeMachine(machine)),
      ...replicas.map((replica) => () => replica.close()),
      () => this.#cuts.close(),
      () => this.#pool.close(),
      () => this.#store.close(),
    ])
  }

  #machineRow(machineId: string, name: string, policy: Policy, directory: string) {
    return {
      machineId,
      name,
      relationshipId: this.#random.uuid(),
      side: 'primary' as const,
      mode: 'Primary' as const,
      state: 'ReadyForInitialReplication' as const,
      policyJson: JSON.stringify(policy),
      replicaJson: JSON.stringify({ directory }),
      createdMs: this.#clock.nowMs(),
      resyncReason: null,
      resyncStartMs: null,
      errorJson: null,
      retryAtMs: null,
      lastReceivedMs: null,
      lastAppliedMs: null,
      lastAppliedCutMs: null,
    }
  }

  /** Opens what a new machine stands on, and the machine. */
  async #take(row: Machine): Promise<ProtectedMachine> {
    const context = this.#contextOf(row, await this.#store.disks(row.machineId))
    context.disks = await context.openDisks()
    try {
      // A replica that belongs to somebody else is refused before anything is done.
      const folder = this.#replicaOf(row)
      if (!this.#isReplicaOfAnother(row)) await folder.takeNew()
      const replica = { ...context, transport: folder }
      await withReplica(replica, undefined, async () => {})
      const machine = await ProtectedMachine.take(context)
      this.#machines.set(row.machineId, machine)
      return machine
    } catch (error) {
      await closeDisks(context.disks).catch(() => undefined)
      throw error
    }
  }

  #openDisk(
    { path, name, diskId, trackingDirectory, isExpected, shrinkJson }: OpenableDisk,
    policy: Policy,
  ): Promise<TrackedDisk> {
    const shrink = pendingShrink({ shrinkJson })
    const size = shrink ? { acceptedShrinkBytes: shrink.toBytes, isGrowthDeferred: true } : {}
    const { flushMode } = policy
    const options = { path, name, diskId, trackingDirectory, flushMode, isExpected, ...size }
    return TrackedDisk.open(options, this.#pool)
  }

  async #openDisks(rows: readonly Disk[], policy: Policy): Promise<TrackedDisk[]> {
    const disks: TrackedDisk[] = []
    try {
      for (const row of rows) {
        // The replica has some of it, so it was tracked.
        const isExpected = row.isInitialDone === 1 || row.initialNextOffset > 0
        disks.push(await this.#openDisk({ ...row, isExpected }, policy))
      }
      return disks
    } catch (error) {
      await closeDisks(disks).catch(() => undefined)
      throw error
    }
  }

  #replicaOf(row: Machine): FolderReplica {
    const { directory } = JSON.parse(row.replicaJson) as { directory: string }
    const known = this.#replicas.get(directory)
    if (known) return known
    const isNew = row.state === 'ReadyForInitialReplication'
    const work = replicaWork(this.#pool, this.#options.step ?? (() => {}))
    const replica = new FolderReplica({ directory, isNew, clock: this.#clock, work })
    this.#replicas.set(directory, replica)
    return replica
  }

  /** Whether a machine that is protected already has its replica in the folder of a new one. */
  #isReplicaOfAnother({ replicaJson }: Machine): boolean {
    const { directory } = JSON.parse(replicaJson) as { directory: string }
    return this.machines.some((machine) => machine.replicaDirectory === directory)
  }

  #contextOf(row: Machine, disks: readonly Disk[]): MachineContext {
    const { frameBytes = 4 * MIB, batchBytes = 64 * MIB, windowBytes = 256 * MIB } = this.#options
    const { machineId, name } = row
    const policy = parsePolicy(JSON.parse(row.policyJson) as PolicyInput)
    const transport = this.#replicaOf(row)
    const context: MachineContext = {
      machineId,
      name,
      diskPaths: disks.map(({ path }) => path),
      disks: [],
      copies: new Map(),
      shrinking: new Map(),
      recreating: new Set(),
      openDisks: async () => this.#openDisks(await this.#store.disks(machineId), context.policy),
      openDisk: (disk) => this.#openDisk(disk, context.policy),
      policy,
      group: null,
      store: this.#store,
      members: new DiskStore(this.#store.db),
      resyncs: new ResyncStore(this.#store.db),
      events: this.#events,
      transport: this.#options.wrapTransport?.(transport) ?? transport,
      work: primaryWork({
        machineId,
        pool: this.#pool,
        cuts: this.#cuts,
        compression: () => context.policy.compression,
        step: this.#options.step ?? (() => {}),
      }),
      clock: this.#clock,
      random: this.#random,
      frameBytes,
      batchBytes,
      windowBytes,
    }
    return context
  }

  /** Undoes the rows of a machine that could not be enabled. */
  async #forget(machineId: string): Promise<void> {
    const { state: from } = await this.#store.machine(machineId)
    const change = {
      machineId,
      trigger: 'disable',
      from,
      to: 'Disabled' as const,
      operator: 'engine',
      reason: 'enable failed',
    }
    await this.#store.removeMachine(change)
  }
}

function stateOfAdopted({ isResyncOwed, isHeld = false }: Adoption): ReplicationState {
  if (isHeld) return isResyncOwed ? 'ResynchronizeSuspended' : 'Suspended'
  return isResyncOwed ? 'WaitingForStartResynchronize' : 'Replicating'
}

/** @throws {OPTION_OUT_OF_RANGE} and what {@link checkDisk} refuses */
function checkRequest({ name, disks }: EnableRequest): CheckedDisk[] {
  if (!NAME.test(name)) throw optionOutOfRange({ path: 'name', value: name, range: NAME_RANGE })
  if (disks.length === 0) throw optionOutOfRange({ path: 'disks', value: '[]', range: 'at least one disk' })
  const checked: CheckedDisk[] = []
  for (const disk of disks)
    checked.push(
      checkDisk(
        disk,
        checked.map(({ path }) => path),
      ),
    )
  return checked
}
