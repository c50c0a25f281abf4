/**
 * The words of the model for states, health and modes, each with the number the WMI replication classes give it.
 *
 * Names are those of the PowerShell module; numbers and names are documented each on its own, their pairing is by
 * meaning. Two states share the number 2: the same value seen from the two sides.
 */

/** Which side of a relationship. */
export type Side = 'primary' | 'replica'

/** ReplicationState of Msvm_ReplicationRelationship, by PowerShell name. */
export const REPLICATION_STATE = {
  Disabled: 0,
  ReadyForInitialReplication: 1,
  InitialReplicationInProgress: 2,
  WaitingForInitialReplication: 2,
  Replicating: 3,
  PreparedForFailover: 4,
  FailedOverWaitingCompletion: 5,
  FailedOver: 6,
  Suspended: 7,
  Error: 8,
  WaitingForStartResynchronize: 9,
  Resynchronizing: 10,
  ResynchronizeSuspended: 11,
  RecoveryInProgress: 12,
  FailbackInProgress: 13,
  FailbackComplete: 14,
  WaitingForUpdateCompletion: 15,
  UpdateError: 16,
  Unknown: 17,
  WaitingForRepurposeCompletion: 18,
  PreparedForSyncReplication: 19,
  PreparedForGroupReverseReplication: 20,
  FiredrillInProgress: 21,
} as const

/** State of one side of a relationship. */
export type ReplicationState = keyof typeof REPLICATION_STATE

/** Names of older PowerShell texts: accepted, never printed. */
const OLDER_NAMES: Readonly<Record<string, ReplicationState>> = {
  NotApplicable: 'Disabled',
  SyncedReplicationComplete: 'PreparedForFailover',
  FailOverWaitingCompletion: 'FailedOverWaitingCompletion',
}

/** The state named `text`, older names included; undefined when there is none. */
export function parseReplicationState(text: string): ReplicationState | undefined {
  if (Object.hasOwn(REPLICATION_STATE, text)) return text as ReplicationState
  return Object.hasOwn(OLDER_NAMES, text) ? OLDER_NAMES[text] : undefined
}

/** ReplicationHealth: the trend over the monitoring interval, worst last. */
export const REPLICATION_HEALTH = { NotApplicable: 0, Normal: 1, Warning: 2, Critical: 3 } as const

/** Health of a machine's replication. */
export type ReplicationHealth = keyof typeof REPLICATION_HEALTH

/** ReplicationMode: the part this computer plays for the machine. */
export const REPLICATION_MODE = {
  None: 0,
  Primary: 1,
  Replica: 2,
  TestReplica: 3,
  ExtendedReplica: 4,
} as const

/** The part this computer plays for a machine. */
export type ReplicationMode = keyof typeof REPLICATION_MODE

/** What a cut is: the disks as after a power cut, frozen by their applications, or at the end of a planned failover. */
export const POINT_KINDS = ['crash-consistent', 'application-consistent', 'planned'] as const

/** Kind of a cut, and so of the recovery point that it becomes. */
export type PointKind = (typeof POINT_KINDS)[number]

/** ReplicationType of the last cycle, or of a failover. */
export const REPLICATION_TYPE = { None: 0, Regular: 1, ApplicationConsistent: 2, Planned: 3 } as const

/** What the last cycle, or a failover, was. */
export type ReplicationType = keyof typeof REPLICATION_TYPE
