/**
 * @packageDocumentation
 * Block replication as a library: {@link Engine} protects machines, a {@link ProtectedMachine} has the verbs.
 */

export type { Clock } from './clock.js'
export { systemClock } from './clock.js'
export type { EnableRequest, EngineOptions, GroupRequest } from './engine.js'
export type { DiskInput } from './track/disk-input.js'
export { Engine } from './engine.js'
export type { ErrorClass, ErrorCode, ErrorDetails, PlainError } from './errors.js'
export { isSecondsiteError, SecondsiteError } from './errors.js'
export * from './plan/index.js'
export type {
  ConsistencyGroup,
  GroupCycleOptions,
  GroupCycleReport,
  GroupMeasurement,
  MissingMember,
} from './protection/consistency-group.js'
export type { Policy, PolicyInput } from './protection/policy.js'
export type { PrepareOptions, PrepareReport } from './protection/failover-preparation.js'
export type { Progress, ProgressListener, ProgressPhase } from './protection/progress.js'
export type { EventFilter, MachineEvent, MachineEventListener } from './protection/events.js'
export type { DiskMeasurement, Measurement } from './protection/measurement.js'
export type { RpoSpread } from './protection/monitor.js'
export type { ProtectedMachine, ResynchronizeOptions } from './protection/protected-machine.js'
export type { CycleOptions, CycleReport, JobOptions } from './protection/replication-work.js'
export type { ResyncReport } from './protection/resynchronization.js'
export type { DiskVerification, VerifyReport } from './protection/verification.js'
export type { QuiesceReport } from './quiesce/quiesce.js'
export type { QuiesceInput, QuiesceSettings } from './quiesce/settings.js'
export type { Random } from './random.js'
export type {
  AroundOptions,
  InexactReason,
  WriteInterval,
  WriteMoment,
  WritesAround,
} from './recovery/around.js'
export type { KeptGap, KeptSpan, RecoveryPointChoice, StateInTime } from './recovery/choice.js'
export type { Churn, CutChurn, PointSuspicion, ReplicaNotice } from './recovery/churn.js'
export type { RecoveryDevice } from './recovery/device.js'
export type { DiskDifference } from './recovery/diff.js'
export type { DigestOptions, DigestProgress } from './recovery/digest.js'
export type { Failover, FailoverInfo } from './recovery/failover.js'
export type { PointDamage, RecoveryPoint } from './recovery/points.js'
export type { CommitProgress } from './recovery/commit.js'
export type {
  CommitOptions,
  FailoverOutlook,
  Replica,
  StartFailoverOptions,
} from './recovery/replica.js'
export type { HeldSettings, TestFailoverOptions } from './recovery/replica-points.js'
export type { RestoredDisk, RestoreOptions, RestoreProgress } from './recovery/restore.js'
export type { TestFailover } from './recovery/test-failover.js'
export type { TestFailoverInfo } from './recovery/test-life.js'
export type {
  AdapterAddresses,
  FailoverSettings,
  FailoverSettingsInput,
  RunnerSettings,
} from './recovery/failover-settings.js'
export { failoverSettingsJsonSchema, readFailoverSettings } from './recovery/failover-settings-file.js'
export type { Handover } from './recovery/runner-handover.js'
export type { MachineRun, RunInfo, StopOptions } from './recovery/runner.js'
export type { PointView } from './recovery/view.js'
export type { ReplicaOptions } from './replica.js'
export { openReplica } from './replica.js'
export type { ReplicaTargetsOptions } from './replica-targets.js'
export { ReplicaTargets } from './replica-targets.js'
export type {
  FailbackOutlook,
  FailbackPlace,
  FailbackReport,
  FailbackRequest,
  FailbackStep,
} from './failback.js'
export { cancelFailback, explainFailback, FAILBACK_STEPS, failback } from './failback.js'
export type {
  GroupFailover,
  GroupFailoverOptions,
  GroupPoint,
  GroupPointChoice,
} from './recovery/group-failover.js'
export { chooseGroupPoint, groupPoints, startGroupFailover } from './recovery/group-failover.js'
export type {
  ChangeGroupPointOptions,
  CommitGroupOptions,
  GroupTestFailover,
  GroupTestOptions,
  StoppedTest,
} from './recovery/group-verbs.js'
export {
  cancelGroupFailover,
  changeGroupPoint,
  commitGroupFailover,
  startGroupTestFailover,
  stopGroupTestFailover,
} from './recovery/group-verbs.js'
export type { PlannedFailoverOutlook, PlannedFailoverRequest } from './planned-failover.js'
export { explainPlannedFailover, plannedFailover } from './planned-failover.js'
export { reverseReplication } from './reverse.js'
export type { DiskOutlook, ReverseOutlook } from './reverse-outlook.js'
export { explainReverse } from './reverse-outlook.js'
export type { FormerPrimary, ReverseReport, ReverseRequest } from './reverse-plan.js'
export type { SideWrites } from './side-writes.js'
export type { Adoption } from './engine.js'
export type { ByteRange } from './ranges.js'
export type { PointKind, ReplicationHealth, ReplicationState } from './states.js'
export type { NbdCounters, NbdExport, NbdOptions, NbdTls } from './track/nbd-export.js'
export type { DiskRecovery, TrackedDisk } from './track/tracked-disk.js'
export { formatBytes, formatDuration } from './units.js'
export type { StepObserver } from './works.js'
export * from './tools/index.js'
