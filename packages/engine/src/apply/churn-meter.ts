/**
 * Measures what shipments are about to change, and looks at it for a rise of encrypted data.
 *
 * It runs in a worker of the replica, between receiving and applying, on logs that were just verified and on ranges that
 * were just read to be saved: nothing of it is in the way of a guest. A cut is measured once; done again after a crash it
 * would find the image changed already, so the first measurement stands.
 */

import type { Clock } from '../clock.js'
import type { NativeChurn } from '../native/types.js'
import type { ChurnRow } from '../store/insight-schema.js'
import { InsightStore } from '../store/insight-store.js'
import { RecoveryStore } from '../store/recovery-store.js'
import type { Receipt, ReplicaDisk, SpooledLog } from '../store/replica-schema.js'
import type { ReplicaStore } from '../store/replica-store.js'
import { assessCut, BASELINE_CUTS_MAX } from './attack.js'
import type { ReplicaWork } from './replica-work.js'
import { wantsPoints } from './retention.js'

const NOTHING: NativeChurn = {
  writeCount: 0,
  writeBytes: 0,
  zeroBytes: 0,
  entropyBytes: 0,
  noiseBytes: 0,
  turnedBytes: 0,
}

export class ChurnMeter {
  readonly #recovery: RecoveryStore
  readonly #insight: InsightStore
  readonly #work: ReplicaWork

  constructor(store: ReplicaStore, work: ReplicaWork, clock: Clock) {
    this.#recovery = new RecoveryStore(store, clock)
    this.#insight = new InsightStore(store, clock)
    this.#work = work
  }

  /** Measures the cuts of one step of applying; call it before an image changes, where points are kept at all. */
  async measure(
    cycles: readonly Receipt[],
    disks: readonly ReplicaDisk[],
    logs: readonly SpooledLog[],
  ): Promise<void> {
    if (!wantsPoints(await this.#recovery.settings())) return
    let fromMs = (await this.#recovery.latest())?.cycle.cutTimeMs
    let first = 0
    for (const [index, cycle] of cycles.entries()) {
      if (cycle.kind !== 'delta') continue
      const of = cycles.slice(first, index + 1)
      first = index + 1
      // The first cut of all has no state before it to compare with.
      if (fromMs !== undefined) await this.#measureCut(of, cycle, fromMs, disks, logs)
      fromMs = cycle.cutTimeMs
    }
  }

  /** @param cycles - the cut's own, behind batches of a resynchronization that it closes */
  async #measureCut(
    cycles: readonly Receipt[],
    { cycleNumber, cutTimeMs }: Receipt,
    fromMs: number,
    disks: readonly ReplicaDisk[],
    logs: readonly SpooledLog[],
  ): Promise<void> {
    if (await this.#insight.hasChurn(cycleNumber)) return
    const numbers = new Set(cycles.map((cycle) => cycle.cycleNumber))
    const own = logs.filter((log) => numbers.has(log.cycleNumber) && log.kind !== 'initial')
    const measured = await Promise.all(disks.map((disk) => this.#measureDisk(disk, own)))
    const isResync = cycles.some(({ kind }) => kind === 'resync') ? 1 : 0
    const row = { cycleNumber, fromMs, cutTimeMs, ...measured.reduce(sum, NOTHING), isResync }
    await this.#record({ ...row, isSuspicious: 0 })
  }

  async #measureDisk(disk: ReplicaDisk, logs: readonly SpooledLog[]): Promise<NativeChurn> {
    const paths = logs.filter((log) => log.diskId === disk.diskId).map((log) => log.path)
    return paths.length === 0 ? NOTHING : this.#work.measureLogs(disk.imagePath, paths)
  }

  async #record(row: ChurnRow): Promise<void> {
    const before = await this.#insight.churnBefore(row.cycleNumber, BASELINE_CUTS_MAX)
    const { isSuspicious, ...found } = assessCut(row, before)
    await this.#insight.addChurn({ ...row, isSuspicious: isSuspicious ? 1 : 0 })
    // A rise is told once, not with every cut of it.
    if (!isSuspicious || before[0]?.isSuspicious === 1) return
    const { cutTimeMs, fromMs, turnedBytes, writeBytes } = row
    const lastPoint = (await this.#recovery.points()).findLast(
      ({ pointNumber, isTransient }) => pointNumber < row.cycleNumber && isTransient === 0,
    )
    await this.#insight.addNotice('ENCRYPTION_SUSPECTED', {
      cutTimeMs,
      fromMs,
      turnedBytes,
      writeBytes,
      ...found,
      lastPointBefore: lastPoint?.pointNumber ?? null,
    })
  }
}

function sum(left: NativeChurn, right: NativeChurn): NativeChurn {
  return {
    writeCount: left.writeCount + right.writeCount,
    writeBytes: left.writeBytes + right.writeBytes,
    zeroBytes: left.zeroBytes + right.zeroBytes,
    entropyBytes: left.entropyBytes + right.entropyBytes,
    noiseBytes: left.noiseBytes + right.noiseBytes,
    turnedBytes: left.turnedBytes + right.turnedBytes,
  }
}
