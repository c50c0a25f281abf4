/**
 * A recovery point, opened for reading: all disks of the machine as they were at one cut, or at one time.
 *
 * A point is held in the store's rows until each disk has pinned it in its undo folder; from then on the pin keeps it. A
 * time between two points is the older point with the kept logs on top, up to that time, in a layer that is thrown away.
 */

import { join } from 'node:path'
import { isSecondsiteError, SecondsiteError } from '../errors.js'
import { imageLost, lostImages } from '../store/image-file.js'
import { noPoint, sizesOf } from '../store/recovery-store.js'
import { undoFolder } from '../store/undo-folder.js'
import type { ReplicaDisk } from '../store/replica-schema.js'
import { NbdExport, type NbdOptions } from '../track/nbd-export.js'
import { type ChosenState, type KeptWrite, type StateInTime, timeOf } from './choice.js'
import { HOLD_MS, identityOf, type RecoveryContext, settleImages } from './context.js'
import { RecoveryDevice } from './device.js'
import { makeViewFolder, type ViewFolder } from './view-folder.js'

export class PointView implements AsyncDisposable {
  /** The point that is shown, or that the time shown leads forward from. */
  readonly state: StateInTime
  /** Unix nanoseconds, where a time between two points is shown. */
  readonly untilNs: bigint | undefined
  /** The write behind which it ends, where one was asked for. */
  readonly untilWrite: KeptWrite | undefined
  readonly disks: readonly RecoveryDevice[]
  readonly #context: RecoveryContext
  readonly #below: readonly RecoveryDevice[]
  readonly #folder: ViewFolder | undefined
  readonly #exports = new Set<NbdExport>()

  private constructor(context: RecoveryContext, chosen: ChosenState, opened: OpenedView) {
    this.state = chosen.state
    this.untilNs = chosen.untilNs
    this.untilWrite = chosen.untilWrite
    this.disks = opened.disks
    this.#below = opened.below
    this.#folder = opened.folder
    this.#context = context
  }

  /**
   * @param isBase - whether somebody rolls it forward: kept logs may reach to the end that a disk got later
   * @throws {POINT_NOT_FOUND, UNDO_DAMAGED, REPLICA_IMAGE_LOST, STORE_BUSY}
   */
  static async open(context: RecoveryContext, chosen: ChosenState, isBase = false): Promise<PointView> {
    const state = await hold(context, chosen.state)
    const opened = await openDisks(context, { ...chosen, state }, isBase)
    const view = new PointView(context, { ...chosen, state }, opened)
    try {
      await requireStill(context, state.number)
      return view
    } catch (error) {
      await view.close()
      throw error
    }
  }

  /** Unix milliseconds that it shows. */
  get timeMs(): number {
    return timeOf({ state: this.state, ...(this.untilNs === undefined ? {} : { untilNs: this.untilNs }) })
  }

  /** Exports its disks to NBD clients, read-only, until the export or the view is closed. */
  async exportNbd(options: NbdOptions): Promise<NbdExport> {
    const nbd = await NbdExport.start(this.disks, { ...options, readOnly: true }, this.#context.pool)
    this.#exports.add(nbd)
    return nbd
  }

  /** Lets the point go. Calling it again does nothing. */
  async close(): Promise<void> {
    for (const nbd of this.#exports) await nbd.close()
    for (const device of [...this.disks, ...this.#below]) await device.close()
    this.#folder?.remove()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

interface OpenedView {
  readonly disks: readonly RecoveryDevice[]
  readonly below: readonly RecoveryDevice[]
  readonly folder: ViewFolder | undefined
}

/** The newest state becomes a point for its view; that waits until nobody writes to the images. */
async function hold(context: RecoveryContext, state: StateInTime): Promise<StateInTime> {
  // By its number first: where an apply was cut short, it is a point already, and what comes of the apply is another one.
  const held = await context.recovery.hold(state.number, HOLD_MS).catch((error: unknown) => {
    if (state.isLatest && isSecondsiteError(error, 'POINT_NOT_FOUND')) return undefined
    throw error
  })
  if (held) return state
  for (;;) {
    const point = await context.recovery.hold('latest', HOLD_MS)
    if (point) return { ...state, number: point.pointNumber, kind: point.kind, cutTimeMs: point.cutTimeMs }
    await settleImages(context)
  }
}

/** Who lets a point go says so in the rows first and looks for pins afterwards, so one that is pinned and still there stays. */
async function requireStill(context: RecoveryContext, number: number): Promise<void> {
  const { state } = await identityOf(context)
  const isCommitted = state === 'FailedOver' || state === 'Disabled'
  const points = isCommitted ? [] : await context.recovery.points()
  if (points.some(({ pointNumber }) => pointNumber === number)) return
  throw noPoint(context.directory, `point ${number} is not there any more`, { point: number })
}

async function openDisks(
  context: RecoveryContext,
  chosen: ChosenState,
  isBase: boolean,
): Promise<OpenedView> {
  const point = chosen.state.number
  const isBetween = chosen.untilNs !== undefined
  const rows = await disksAt(context, point)
  const below: RecoveryDevice[] = []
  try {
    for (const row of rows) below.push(await viewOf(context, isBetween || isBase ? grown(row) : row, point))
    if (!isBetween) return { disks: below, below: [], folder: undefined }
    return await rollForward(context, rows, below, chosen)
  } catch (error) {
    for (const device of below) await device.close()
    throw error
  }
}

/** A disk as a point shows it. */
export interface DiskAtPoint {
  readonly row: ReplicaDisk
  /** Its size then; the image may be smaller or larger now. */
  readonly sizeBytes: number
}

/** The disks that a point shows: those that had an image then, and whose image was not lost since. */
export async function disksAt(context: RecoveryContext, point: number): Promise<DiskAtPoint[]> {
  const rows = await context.store.disks()
  const known = (await context.recovery.points()).find(({ pointNumber }) => pointNumber === point)
  // A commit that is being finished has let its point go: the images are what it shows.
  if (known === undefined) return rows.map((row) => ({ row, sizeBytes: row.sizeBytes }))
  const sizes = sizesOf(known)
  return rows.flatMap((row) => {
    const sizeBytes = sizes[row.diskId]
    return sizeBytes === undefined ? [] : [{ row, sizeBytes }]
  })
}

/** Kept logs may reach to the end that a disk got after the point. */
export function grown({ row, sizeBytes }: DiskAtPoint): DiskAtPoint {
  return { row, sizeBytes: Math.max(sizeBytes, row.sizeBytes) }
}

/** A disk of the replica at a point. @throws {REPLICA_IMAGE_LOST, UNDO_DAMAGED} */
export async function viewOf(
  context: RecoveryContext,
  { row, sizeBytes }: DiskAtPoint,
  point: number,
): Promise<RecoveryDevice> {
  const lost = await lostImages([row], () => context.store.disks())
  if (lost.length > 0) throw imageLost(context.directory, lost)
  const place = { image: row.imagePath, undoDirectory: undoFolder(context.directory, row), point, sizeBytes }
  return RecoveryDevice.view(row, place, context.pool)
}

async function rollForward(
  context: RecoveryContext,
  rows: readonly DiskAtPoint[],
  below: readonly RecoveryDevice[],
  chosen: ChosenState,
): Promise<OpenedView> {
  const folder = makeViewFolder(context)
  const disks: RecoveryDevice[] = []
  try {
    for (const [index, { row }] of rows.entries()) {
      const base = below[index]
      if (base === undefined) continue
      const layer = await RecoveryDevice.overlay(
        base,
        row.imagePath,
        join(folder.path, row.name),
        context.pool,
      )
      disks.push(layer)
      await applyKept(context, layer, chosen)
    }
    return { disks, below, folder }
  } catch (error) {
    for (const device of disks) await device.close()
    folder.remove()
    throw error
  }
}

/** Applies the kept logs after a point to a layer, up to a time, or to a write where one of its disk was chosen. */
export async function applyKept(
  context: RecoveryContext,
  layer: RecoveryDevice,
  { state, untilNs = 0n, untilWrite }: ChosenState,
): Promise<void> {
  const all = await context.recovery.keptLogs()
  // They go oldest first, so with the first one behind the point all are there.
  const isWhole = all[0] !== undefined && all[0].cycleNumber <= state.number + 1
  if (!isWhole) throw expired(context, `the writes behind point ${state.number} are`)
  const logs = all.filter(({ diskId, cycleNumber }) => diskId === layer.diskId && cycleNumber > state.number)
  const paths = logs.map(({ path }) => path)
  if (untilWrite?.diskId !== layer.diskId) return void (await layer.run('applyLogsUntil', paths, untilNs))
  const last = logs.findIndex(({ logId }) => logId === untilWrite.logId)
  if (last === -1) throw expired(context, `write ${untilWrite.sequence} is`)
  await layer.run('applyLogsUntil', paths.slice(0, last + 1), untilNs, untilWrite.sequence)
}

function expired({ directory }: RecoveryContext, what: string): SecondsiteError {
  return noPoint(directory, `${what} not kept any more`, {})
}
