/**
 * Keeps recovery points: saves what is about to be overwritten, keeps applied logs where every write is to be kept, and
 * lets go of what no rule wants any more.
 *
 * Rows say which points are kept; files (docs/spec/undo.md) lead back to them. A row goes first and its files follow, so
 * {@link expire} also finishes what a crash cut short: it merges or drops the files of points that have no row.
 */

import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { Clock } from '../clock.js'
import { fromSystemError } from '../errors.js'
import type { KeptLog, Point } from '../store/recovery-schema.js'
import type { RecoverySettings } from '../store/recovery-settings.js'
import { RecoveryStore } from '../store/recovery-store.js'
import type { Receipt, ReplicaDisk, SpooledLog } from '../store/replica-schema.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { historyFolder, undoFolder } from '../store/undo-folder.js'
import { syncFolder } from '../sync-folder.js'
import { HOUR_MS } from '../units.js'
import type { ReplicaWork, UndoPlace } from './replica-work.js'
import { expiredPoints, isPointDue, type KeptPoint } from './retention.js'

/** A disk that shrinks once everything else is applied. */
export interface DueShrink {
  /** As it was before. */
  readonly disk: ReplicaDisk
  readonly toBytes: number
}

export class PointKeeper {
  readonly #store: ReplicaStore
  readonly #recovery: RecoveryStore
  readonly #work: ReplicaWork
  readonly #clock: Clock
  readonly #history: string
  /** Files of points that have no row may be there: of an expiry that failed, or of a death. */
  #mayHaveLeft = true

  constructor(store: ReplicaStore, work: ReplicaWork, clock: Clock) {
    this.#store = store
    this.#recovery = new RecoveryStore(store, clock)
    this.#work = work
    this.#clock = clock
    this.#history = historyFolder(store.directory)
  }

  /**
   * Marks shipments as being applied, and saves what they will overwrite for the newest kept point.
   * @throws {REPLICA_FAILED_OVER, REPLICA_DISK_FULL, LOG_WRITE_FAILED}: no image has changed
   */
  async begin(
    cycles: readonly Receipt[],
    disks: readonly ReplicaDisk[],
    logs: readonly SpooledLog[],
    shrinks: readonly DueShrink[],
  ): Promise<void> {
    const numbers = cycles.map((cycle) => cycle.cycleNumber)
    const point = await this.#recovery.beginApply(numbers, (points, latest, settings) => {
      const candidate = { cutTimeMs: latest.cutTimeMs, isOrdinary: latest.pointKind === 'crash-consistent' }
      return isPointDue(points.map(keptPointOf), candidate, settings)
    })
    if (point === null) return
    await this.#work.step('apply.before-saving')
    await Promise.all(disks.map((disk) => this.#save(disk, point, logs)))
    for (const { disk, toBytes: offset } of shrinks) {
      const range = { offset, lengthBytes: disk.sizeBytes - offset }
      await this.#work.saveUndoRange(disk.imagePath, range, await this.#placeToSave(disk, point))
    }
  }

  async #save(disk: ReplicaDisk, point: number, logs: readonly SpooledLog[]): Promise<void> {
    const paths = logs.filter((log) => log.diskId === disk.diskId).map((log) => log.path)
    if (paths.length === 0) return
    await this.#work.saveUndo(disk.imagePath, paths, await this.#placeToSave(disk, point))
  }

  /**
   * Where a newer point was let go of and its files are still there, they are what leads back first: undo of an older point
   * must not come behind them. They go to the point before with the next expiry, and what is saved now with them.
   */
  async #placeToSave(disk: ReplicaDisk, point: number): Promise<UndoPlace> {
    const left = this.#mayHaveLeft ? await this.#work.undoPoints(this.#folderOf(disk)) : []
    return this.#placeOf(disk, Math.max(point, ...left))
  }

  /** Takes applied logs out of the spool where they are to be kept. @returns those that are not */
  async keepLogs(logs: readonly SpooledLog[]): Promise<readonly SpooledLog[]> {
    const { keepEveryWrite } = await this.#recovery.settings()
    if (keepEveryWrite.hours === 0) return logs
    const kept = logs.filter((log) => log.kind !== 'initial')
    await this.#recovery.addKeptLogs(await Promise.all(kept.map((log) => this.#rowOf(log))))
    await this.#work.step('apply.before-keeping')
    this.#moveToHistory(kept)
    return logs.filter((log) => log.kind === 'initial')
  }

  /** Kept points, oldest first. */
  points(): Promise<Point[]> {
    return this.#recovery.points()
  }

  async #rowOf({ logId, diskId, cycleNumber, kind, path, indexPath, ...log }: SpooledLog): Promise<KeptLog> {
    const cycle = await this.#store.cycle(cycleNumber)
    return {
      logId,
      diskId,
      cycleNumber,
      kind,
      path: this.#inHistory(path),
      indexPath: this.#inHistory(indexPath),
      sizeBytes: log.logSizeBytes + log.indexSizeBytes,
      cutTimeMs: cycle?.cutTimeMs ?? 0,
      isCoalesced: log.isCoalesced,
    }
  }

  /** Under their new names durably: the spool forgets them next. */
  #moveToHistory(logs: readonly SpooledLog[]): void {
    if (logs.length === 0) return
    try {
      mkdirSync(this.#history, { recursive: true })
      // The index first: a log that has none is not taken for one that is whole.
      for (const from of logs.flatMap(({ path, indexPath }) => [indexPath, path]))
        if (existsSync(from)) renameSync(from, this.#inHistory(from))
      syncFolder(this.#history)
    } catch (error) {
      throw fromSystemError(error, { operation: 'move', path: this.#history, fullCode: 'REPLICA_DISK_FULL' })
    }
  }

  #inHistory(path: string): string {
    return join(this.#history, basename(path))
  }

  /** Lets go of points and kept logs that no rule wants, and of the files of points that are gone. */
  async expire(): Promise<void> {
    const settings = await this.#recovery.settings()
    const disks = await this.#store.disks()
    const pinned = await this.#pinned(disks)
    this.#mayHaveLeft = true
    const points = await this.#recovery.expirePoints((all, inUse) =>
      expiredPoints(all.map(keptPointOf), settings, this.#clock.nowMs(), new Set([...pinned, ...inUse])),
    )
    await this.#work.step('expire.before-files')
    const kept = points.map((point) => point.pointNumber)
    for (const disk of disks) await this.#clean(disk, kept)
    this.#mayHaveLeft = false
    await this.#expireLogs(settings, kept)
  }

  /** Asked before the rows are looked at: who opens a view holds its point there until it is pinned. */
  async #pinned(disks: readonly ReplicaDisk[]): Promise<number[]> {
    const lists = disks.map((disk) => this.#work.pinnedPoints(this.#folderOf(disk)))
    return (await Promise.all(lists)).flat()
  }

  /** From the newest on, so that what is merged twice is merged small. */
  async #clean(disk: ReplicaDisk, kept: readonly number[]): Promise<void> {
    const folder = this.#folderOf(disk)
    const gone = (await this.#work.undoPoints(folder)).filter((point) => !kept.includes(point))
    for (const point of gone.toSorted((left, right) => right - left)) {
      const older = kept.findLast((number) => number < point)
      if (older === undefined) break
      await this.#work.mergePoint(this.#placeOf(disk, point), older)
    }
    await this.#work.dropPointsBefore(folder, kept[0] ?? Number.MAX_SAFE_INTEGER)
    const newest = kept.at(-1)
    if (newest !== undefined) await this.#work.compactPoint(this.#placeOf(disk, newest))
  }

  /** Logs older than the oldest point lead forward from nothing. */
  async #expireLogs({ keepEveryWrite }: RecoverySettings, kept: readonly number[]): Promise<void> {
    const logs = await this.#recovery.keptLogs()
    const sinceMs = this.#clock.nowMs() - keepEveryWrite.hours * HOUR_MS
    const oldest = kept[0] ?? Number.MAX_SAFE_INTEGER
    const totalBytes = logs.reduce((total, log) => total + log.sizeBytes, 0)
    const excessBytes = keepEveryWrite.bytesMax === 0 ? 0 : totalBytes - keepEveryWrite.bytesMax
    const fitting = firstFitting(logs, excessBytes)
    // A failover that died before its layers were there makes them anew.
    const needed = (await this.#recovery.failover())?.pointNumber ?? Number.MAX_SAFE_INTEGER
    const expired = logs.filter(({ cutTimeMs, cycleNumber }) => {
      const isOld = cutTimeMs < sinceMs || cycleNumber <= oldest || cycleNumber < fitting
      return isOld && cycleNumber <= needed
    })
    await this.#recovery.removeKeptLogs(expired.map((log) => log.logId))
    await this.#work.step('expire.before-logs')
    this.#sweepHistory(logs.filter((log) => !expired.includes(log)))
  }

  /** A file that no row names is of a log that was let go of, now or before a death. */
  #sweepHistory(kept: readonly KeptLog[]): void {
    const named = new Set(kept.flatMap(({ path, indexPath }) => [basename(path), basename(indexPath)]))
    const files = existsSync(this.#history) ? readdirSync(this.#history) : []
    for (const name of files) if (!named.has(name)) rmSync(this.#inHistory(name), { force: true })
  }

  #placeOf(disk: ReplicaDisk, point: number): UndoPlace {
    return { diskId: disk.diskId, undoDirectory: this.#folderOf(disk), point }
  }

  #folderOf(disk: ReplicaDisk): string {
    return undoFolder(this.#store.directory, disk)
  }
}

/** The first shipment that stays when so many bytes have to go: whole ones, as a disk without its log would show too little. */
function firstFitting(logs: readonly KeptLog[], excessBytes: number): number {
  const bytesOf = new Map<number, number>()
  for (const { cycleNumber, sizeBytes } of logs)
    bytesOf.set(cycleNumber, (bytesOf.get(cycleNumber) ?? 0) + sizeBytes)
  let left = excessBytes
  for (const [cycleNumber, bytes] of bytesOf) {
    if (left <= 0) return cycleNumber
    left -= bytes
  }
  return Number.MAX_SAFE_INTEGER
}

function keptPointOf({ pointNumber, cutTimeMs, lockedUntilMs, isTransient }: Point): KeptPoint {
  return { pointNumber, cutTimeMs, lockedUntilMs, isTransient: isTransient === 1 }
}
