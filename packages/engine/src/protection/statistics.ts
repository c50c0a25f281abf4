/**
 * Counters of a monitoring interval, as Msvm_ReplicationStatistics has them.
 *
 * Pure: a new value for each thing that happens. A cycle that was due while another was under way counts as missed.
 */

/** Counters since the start of the interval. */
export interface Counters {
  readonly replicationSuccessCount: number
  readonly replicationMissCount: number
  readonly replicationFailureCount: number
  readonly networkFailureCount: number
  /** Bytes sent in all. */
  readonly replicationSizeBytes: number
  /** Most bytes sent in one cycle. */
  readonly replicationSizeBytesMax: number
  /** Milliseconds from cut to received, in all. */
  readonly replicationLatencyMs: number
  /** Longest of them. */
  readonly replicationLatencyMsMax: number
  /** Cycles whose logs had to be coalesced at the threshold. */
  readonly thresholdCoalesceCount: number
  /** Cuts that were to be application-consistent and are not. */
  readonly applicationConsistentFailureCount: number
  /** Times at which data began to look as if it was being encrypted. */
  readonly encryptionSuspectedCount: number
  /** Times at which the replica could not let go of recovery points or kept logs. */
  readonly expiryFailureCount: number
}

/** What an interval starts with. */
export const ZERO_COUNTERS: Counters = {
  replicationSuccessCount: 0,
  replicationMissCount: 0,
  replicationFailureCount: 0,
  networkFailureCount: 0,
  replicationSizeBytes: 0,
  replicationSizeBytesMax: 0,
  replicationLatencyMs: 0,
  replicationLatencyMsMax: 0,
  thresholdCoalesceCount: 0,
  applicationConsistentFailureCount: 0,
  encryptionSuspectedCount: 0,
  expiryFailureCount: 0,
}

/** Something that is counted. */
export type Counted =
  | { readonly kind: 'success'; readonly sentBytes: number; readonly latencyMs: number }
  | { readonly kind: 'miss' }
  | { readonly kind: 'failure'; readonly isNetwork: boolean }
  | { readonly kind: 'coalesced' }
  | { readonly kind: 'quiesce-failure' }
  | { readonly kind: 'suspicion' }
  | { readonly kind: 'expiry-failure' }

/** The counters after `event`. */
export function count(counters: Counters, event: Counted): Counters {
  switch (event.kind) {
    case 'success':
      return countSuccess(counters, event.sentBytes, event.latencyMs)
    case 'miss':
      return { ...counters, replicationMissCount: counters.replicationMissCount + 1 }
    case 'coalesced':
      return { ...counters, thresholdCoalesceCount: counters.thresholdCoalesceCount + 1 }
    case 'quiesce-failure': {
      const { applicationConsistentFailureCount } = counters
      return { ...counters, applicationConsistentFailureCount: applicationConsistentFailureCount + 1 }
    }
    case 'suspicion':
      return { ...counters, encryptionSuspectedCount: counters.encryptionSuspectedCount + 1 }
    case 'expiry-failure':
      return { ...counters, expiryFailureCount: counters.expiryFailureCount + 1 }
    case 'failure':
      return {
        ...counters,
        replicationFailureCount: counters.replicationFailureCount + 1,
        networkFailureCount: counters.networkFailureCount + (event.isNetwork ? 1 : 0),
      }
  }
}

/** Average milliseconds from cut to received; 0 before the first success. */
export function averageLatencyMs(counters: Counters): number {
  const { replicationSuccessCount, replicationLatencyMs } = counters
  return replicationSuccessCount === 0 ? 0 : replicationLatencyMs / replicationSuccessCount
}

/** Share of cycles missed, in percent of those due. */
export function missedPercent(counters: Counters): number {
  const due = counters.replicationMissCount + counters.replicationSuccessCount
  return due === 0 ? 0 : (counters.replicationMissCount / due) * 100
}

/** Cycles that came due while one took `durationMs`: it is its own, every further interval is a miss. */
export function missedCycles(durationMs: number, intervalMs: number): number {
  return Math.max(0, Math.ceil(durationMs / intervalMs) - 1)
}

function countSuccess(counters: Counters, sentBytes: number, latencyMs: number): Counters {
  return {
    ...counters,
    replicationSuccessCount: counters.replicationSuccessCount + 1,
    replicationSizeBytes: counters.replicationSizeBytes + sentBytes,
    replicationSizeBytesMax: Math.max(counters.replicationSizeBytesMax, sentBytes),
    replicationLatencyMs: counters.replicationLatencyMs + latencyMs,
    replicationLatencyMsMax: Math.max(counters.replicationLatencyMsMax, latencyMs),
  }
}
