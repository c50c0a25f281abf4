/**
 * What a primary asks of its replica: how many recovery points, for how long, and whether every write is kept.
 *
 * They are part of the policy of a machine and travel with every hello, so that the replica keeps to them while the
 * primary is gone.
 */

/** How many points are kept, and for how long. */
export interface RecoverySettings {
  /** Newest points kept besides the present state, 0 for none. */
  readonly recoveryPoints: number
  /** Seconds between two points at least; application-consistent and planned ones are made whenever they come. */
  readonly recoveryPointIntervalSeconds: number
  readonly retention: {
    /** Hours, days and weeks of which the newest point is kept, beyond the newest ones. */
    readonly hourly: number
    readonly daily: number
    readonly weekly: number
    /** Hours in which nothing removes a point, 0 for no lock. */
    readonly lockHours: number
  }
  readonly keepEveryWrite: {
    /** Hours for which received logs are kept, 0 for not at all. */
    readonly hours: number
    /** Bytes that they may take together, 0 for no bound; the oldest go first. */
    readonly bytesMax: number
  }
}

/** No points at all: what a replica has before its primary has told otherwise. */
export const NO_RECOVERY_POINTS: RecoverySettings = {
  recoveryPoints: 0,
  recoveryPointIntervalSeconds: 3600,
  retention: { hourly: 0, daily: 0, weekly: 0, lockHours: 0 },
  keepEveryWrite: { hours: 0, bytesMax: 0 },
}

/** Reads what a store remembers; nothing remembered asks for nothing. */
export function parseRecoverySettings(json: string | null): RecoverySettings {
  return json === null ? NO_RECOVERY_POINTS : (JSON.parse(json) as RecoverySettings)
}
