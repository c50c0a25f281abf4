/**
 * A failover: the replica's disks, writable at a chosen point within a second, tracked from their first write on.
 *
 * The images stay as they are until the commit. What is written goes into a layer over the point, so another point can be
 * chosen, or everything cancelled, by throwing the layer away. The commit then brings the images to what the layers show,
 * while they are written to.
 *
 * Steps, each in the store's rows before it takes effect: *RecoveryInProgress* with the row of the failover, layers made,
 * *FailedOverWaitingCompletion*. A death in the first begins the layers anew; later ones take them up.
 */

import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { ReplicationState } from '../states.js'
import type { FailoverKind, FailoverRow } from '../store/recovery-schema.js'
import { NbdExport, type NbdOptions } from '../track/nbd-export.js'
import { cutDisks, TrackedDisk } from '../track/tracked-disk.js'
import { type ChosenState, type KeptWrite, timeOf } from './choice.js'
import { identityOf, type RecoveryContext } from './context.js'
import { RecoveryDevice } from './device.js'
import type { FailoverHolder, HolderAnswer } from './failover-holder.js'
import { MachineRun, type StopOptions } from './runner.js'
import { FAILOVER_RUN } from './runner-record.js'
import { applyKept, disksAt, grown, viewOf } from './view.js'

/** A failover that has begun. */
export interface FailoverInfo {
  readonly kind: FailoverKind
  readonly state: ReplicationState
  readonly pointNumber: number
  /** Unix milliseconds that its disks began with. */
  readonly pointTimeMs: number
  readonly startedMs: number
  readonly committedMs: number | null
}

export class Failover implements AsyncDisposable {
  readonly row: FailoverRow
  /** Its disks, each write of them in a log. */
  readonly disks: readonly TrackedDisk[]
  readonly layers: readonly RecoveryDevice[]
  readonly #context: RecoveryContext
  readonly #below: readonly RecoveryDevice[]
  readonly #exports = new Set<NbdExport>()
  readonly #holder: FailoverHolder
  readonly #ended: Promise<void>
  #setEnded: () => void = () => {}
  #run: MachineRun | undefined
  #isClosed = false
  #closing: Promise<void> | undefined

  private constructor(
    context: RecoveryContext,
    row: FailoverRow,
    opened: OpenedLayers,
    holder: FailoverHolder,
  ) {
    this.#context = context
    this.#holder = holder
    this.#ended = new Promise((resolve) => {
      this.#setEnded = resolve
    })
    this.row = row
    this.disks = opened.disks
    this.layers = opened.layers
    this.#below = opened.below
  }

  /**
   * Opens the layers of a failover, or makes them anew where it has only just begun.
   * @param row - as it was read by the holder
   * @param holder - closed with the failover, or by the caller where this fails
   */
  static async open(
    context: RecoveryContext,
    row: FailoverRow,
    isNew: boolean,
    holder: FailoverHolder,
  ): Promise<Failover> {
    if (isNew) rmSync(folderOf(context), { recursive: true, force: true })
    return new Failover(context, row, await openLayers(context, row, isNew), holder)
  }

  /** What other processes ask of who has it open is carried out from here on. */
  answerWith(answer: HolderAnswer): void {
    this.#holder.answerWith(answer)
  }

  /** Exports its disks to NBD clients, each under its name, until the failover is closed. */
  async exportNbd(options: NbdOptions): Promise<NbdExport> {
    const nbd = await NbdExport.start(this.disks, options, this.#context.pool)
    this.#exports.add(nbd)
    return nbd
  }

  /**
   * Exports its disks and starts the machine from them, as the failover settings say; one that a process which died has left
   * running is taken up. It shuts down when the failover is closed.
   * @param options.listen - where they are exported; default a socket in the folder of the run
   * @throws {FAILOVER_SETTINGS_INVALID, RUNNER_NOT_FOUND, RUNNER_FAILED, RUNNER_DOMAIN_UNFIT} and those of {@link exportNbd}
   */
  async run({ listen }: { readonly listen?: string | undefined } = {}): Promise<MachineRun> {
    const { kind, pointNumber: number, pointTimeMs: timeMs } = this.row
    const { machine: defaultName } = await identityOf(this.#context)
    const named = { runId: FAILOVER_RUN, kind, defaultName, point: { number, timeMs } }
    const exportNbd = (options: NbdOptions): Promise<NbdExport> => this.exportNbd(options)
    this.#run = await MachineRun.start(this.#context, { ...named, disks: this.disks, exportNbd, listen })
    return this.#run
  }

  /** Stops the machine that {@link run} has started; without one it does nothing. @throws {RUNNER_STOP_FAILED} */
  async stopRun(options: StopOptions = {}): Promise<void> {
    await this.#run?.stop(options)
  }

  /** Shuts its machine down and ends its exports: nobody writes to its disks any more but who holds them here. */
  async endExports(): Promise<void> {
    await this.#run?.stop()
    for (const nbd of this.#exports) await nbd.close()
    this.#exports.clear()
  }

  /** Ends the open logs of all disks, so that everything written stands in sealed ones. */
  async sealLogs(): Promise<void> {
    await cutDisks(this.disks, this.#context.pool)
  }

  /** The images hold everything: its point is not read any more. */
  async leavePoint(): Promise<void> {
    for (const view of this.#below) await view.close()
  }

  /** Its disks cannot be used any more; `Replica.failover` opens them again. */
  get isClosed(): boolean {
    return this.#isClosed
  }

  /** Shuts its machine down and closes its disks in order; the failover stays. Calling it again does nothing. */
  async close(): Promise<void> {
    this.#closing ??= this.#close()
    try {
      await this.#closing
    } catch (error) {
      // A machine that does not stop can be asked again.
      if (!this.#isClosed) this.#closing = undefined
      throw error
    }
  }

  async #close(): Promise<void> {
    await this.endExports()
    this.#isClosed = true
    try {
      for (const disk of this.disks) await disk.close()
      for (const device of [...this.layers, ...this.#below]) await device.close()
    } finally {
      this.#holder.close()
      this.#setEnded()
    }
  }

  /** Resolves when it is closed: by its holder, or because another process has cancelled or moved it. */
  ended(): Promise<void> {
    return this.#ended
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

interface OpenedLayers {
  readonly below: RecoveryDevice[]
  readonly layers: RecoveryDevice[]
  readonly disks: TrackedDisk[]
}

/** Where layers and logs of the failover are. */
export function folderOf(context: RecoveryContext): string {
  return join(context.directory, 'failover')
}

async function openLayers(context: RecoveryContext, row: FailoverRow, isNew: boolean): Promise<OpenedLayers> {
  const opened: OpenedLayers = { below: [], layers: [], disks: [] }
  const trackingDirectory = join(folderOf(context), 'tracking')
  try {
    mkdirSync(trackingDirectory, { recursive: true })
    for (const shown of await disksAt(context, row.pointNumber)) {
      const disk = shown.row
      const base = await viewOf(context, row.untilNs === null ? shown : grown(shown), row.pointNumber)
      opened.below.push(base)
      const directory = join(folderOf(context), disk.name)
      const layer = await RecoveryDevice.overlay(base, disk.imagePath, directory, context.pool)
      opened.layers.push(layer)
      if (isNew && row.untilNs !== null) await applyKept(context, layer, chosenOf(row))
      opened.disks.push(await TrackedDisk.openOver(layer, trackingDirectory, context.pool))
    }
    return opened
  } catch (error) {
    for (const disk of opened.disks) await disk.close()
    for (const device of [...opened.layers, ...opened.below]) await device.close()
    throw error
  }
}

/** What a row says of the chosen state. */
export function rowOf(chosen: ChosenState) {
  const { state, untilNs, untilWrite } = chosen
  return {
    pointNumber: state.number,
    untilNs: untilNs === undefined ? null : String(untilNs),
    untilWriteJson: untilWrite === undefined ? null : JSON.stringify(untilWrite),
    pointTimeMs: timeOf(chosen),
  }
}

/** The chosen state of a row; of its point the number is all that is needed. */
function chosenOf({ pointNumber, pointTimeMs, untilNs, untilWriteJson }: FailoverRow): ChosenState {
  return {
    state: { number: pointNumber, kind: 'crash-consistent', cutTimeMs: pointTimeMs, isLatest: false },
    ...(untilNs === null ? {} : { untilNs: BigInt(untilNs) }),
    ...(untilWriteJson === null ? {} : { untilWrite: JSON.parse(untilWriteJson) as KeptWrite }),
  }
}

/** The verbs that begin a failover; the second one is the end of a failback. */
export type FailoverTrigger = 'startFailover' | 'finalizeFailback'

/** Begins a failover: from here on nothing of the primary is taken. @throws {INVALID_STATE} */
export async function beginFailover(
  context: RecoveryContext,
  kind: FailoverKind,
  chosen: ChosenState,
  trigger: FailoverTrigger,
): Promise<FailoverRow> {
  const { machine, state: from } = await identityOf(context)
  const to = context.next(from, trigger, machine)
  const row: FailoverRow = {
    onlyRow: 1,
    kind,
    ...rowOf(chosen),
    startedMs: context.clock.nowMs(),
    stateBefore: from,
    committedMs: null,
    undoneJson: null,
    reverseJson: null,
    isSettled: 0,
  }
  await move(context, trigger, from, to, async (transaction) => {
    await transaction.insertInto('failover').values(row).execute()
  })
  return row
}

/** The layers are there. */
export async function failoverStarted(context: RecoveryContext): Promise<void> {
  const { machine, state } = await identityOf(context)
  if (state !== 'RecoveryInProgress') return
  const before = (await context.recovery.failover())?.stateBefore
  await move(context, 'failoverStarted', state, context.next(state, 'failoverStarted', machine, before))
}

type InTransaction = NonNullable<Parameters<RecoveryContext['store']['transition']>[1]>

/** Moves the replica's state, journaled, with `also` in the same transaction. */
export function move(
  context: RecoveryContext,
  trigger: string,
  from: ReplicationState,
  to: ReplicationState,
  also?: InTransaction,
): Promise<void> {
  const change = { trigger, from, to, operator: 'operator', reason: 'asked for' }
  return context.store.transition(change, also)
}
