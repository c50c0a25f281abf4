/**
 * What a machine says about itself: state, health, counters, and what a failover now would lose.
 */

import type { ReplicationHealth, ReplicationState } from '../states.js'
import type { Machine } from '../store/state-schema.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { assessHealth, type HealthReport } from './health.js'
import type { CopyState, MachineContext } from './machine-context.js'
import type { Monitor, RpoSpread } from './monitor.js'
import type { Progress } from './progress.js'
import type { CycleReport } from './replication-work.js'
import type { Counters } from './statistics.js'

/** What {@link ProtectedMachine.measure} says. */
export interface Measurement {
  readonly machine: string
  readonly state: ReplicationState
  readonly health: ReplicationHealth
  readonly healthDetails: HealthReport['details']
  /** Since {@link statisticsStartMs}. */
  readonly counters: Counters
  /** Unix milliseconds at which the monitoring interval began. */
  readonly statisticsStartMs: number
  /** How the loss in time was spread over the month. */
  readonly rpo: RpoSpread
  /** The series of attempts after a failure; null when there is none. */
  readonly retry: { readonly attempt: number; readonly atMs: number } | null
  /** Unix milliseconds; null before the first. */
  readonly lastReceivedMs: number | null
  readonly lastAppliedMs: number | null
  /** Unix milliseconds of the newest application-consistent cut that the images have shown; null before the first. */
  readonly lastApplicationConsistentCutMs: number | null
  /** Unix milliseconds at which the last test failover began; null before the first, or before the replica was reached. */
  readonly lastTestFailoverMs: number | null
  /** What a failover now would lose, in milliseconds: since the newest applied cut. Null before the first. */
  readonly lossMs: number | null
  /** The same in bytes of log that the replica does not hold. */
  readonly pendingBytes: number
  /** Why a resynchronization is owed, if one is. */
  readonly resyncReason: string | null
  /** The newest cycle of this process; null before its first. */
  readonly lastCycle: CycleReport | null
  /** How far the job at work is; null when there is none. */
  readonly progress: Progress | null
  readonly lastError: { readonly code: string; readonly message: string } | null
  readonly disks: readonly DiskMeasurement[]
}

export interface DiskMeasurement {
  readonly name: string
  readonly sizeBytes: number
  readonly writtenBytes: number
  readonly logBytes: number
  /** Unreleased logs in percent of the disk's size; the threshold stands beside it. */
  readonly logPercent: number
  readonly thresholdPercent: number
  readonly mode: 'logging' | 'map'
  readonly changedBytes: number
  /** Its first copy: under way, done but for a cut behind it, or behind it, so that the cuts of the machine hold for it. */
  readonly copyState: CopyState | 'copied'
  /** Bytes that its replica still has, where the disk has shrunk and that is accepted; null otherwise. */
  readonly shrinkingFromBytes: number | null
  /** Longest time a cut held writes, in nanoseconds. */
  readonly holdNsMax: number
}

/** Measures a machine by its row, its disks, its monitor and its work. */
export function measure(
  context: MachineContext,
  row: Machine,
  monitor: Monitor,
  work: Pick<Measurement, 'lastCycle' | 'progress'>,
): Measurement {
  const { counters } = monitor
  const nowMs = context.clock.nowMs()
  const disks = context.disks.map((disk) => measureDisk(context, disk))
  const error = row.errorJson === null ? null : JSON.parse(row.errorJson)
  const health = assessHealth({
    side: 'primary',
    state: row.state,
    nowMs,
    lastReceivedMs: row.lastReceivedMs,
    counters,
    replicationFrequencySeconds: context.policy.replicationFrequencySeconds,
    rpoThresholdMinutes: context.policy.rpoThresholdMinutes,
    resyncReason: row.resyncReason,
    uncopiedDiskCount: context.copies.size,
    errorCode: error?.code ?? null,
    createdMs: row.createdMs,
    lastTestFailoverMs: context.lastTestFailoverMs,
    testFailoverReminderDays: context.policy.testFailoverReminderDays,
  })
  return {
    machine: context.name,
    state: row.state,
    health: health.health,
    healthDetails: health.details,
    counters,
    statisticsStartMs: monitor.startMs,
    rpo: monitor.rpo,
    retry: row.retryAtMs === null ? null : { attempt: row.retryAttempt, atMs: row.retryAtMs },
    lastReceivedMs: row.lastReceivedMs,
    lastAppliedMs: row.lastAppliedMs,
    lastApplicationConsistentCutMs: row.lastApplicationConsistentCutMs,
    lastTestFailoverMs: context.lastTestFailoverMs ?? null,
    lossMs: row.lastAppliedCutMs === null ? null : nowMs - row.lastAppliedCutMs,
    pendingBytes: disks.reduce((total, disk) => total + disk.logBytes, 0),
    resyncReason: row.resyncReason,
    lastCycle: work.lastCycle,
    progress: work.progress,
    lastError: error,
    disks,
  }
}

function measureDisk(context: MachineContext, disk: TrackedDisk): DiskMeasurement {
  const status = disk.status()
  return {
    name: disk.name,
    sizeBytes: disk.sizeBytes,
    writtenBytes: status.writtenBytes,
    logBytes: status.unreleasedLogBytes,
    logPercent: (status.unreleasedLogBytes / disk.sizeBytes) * 100,
    thresholdPercent: context.policy.resyncThresholdPercent,
    mode: status.mode,
    changedBytes: status.changedBytes,
    copyState: context.copies.get(disk.diskId) ?? 'copied',
    shrinkingFromBytes: context.shrinking.get(disk.diskId) ?? null,
    holdNsMax: status.maxHoldNs,
  }
}
