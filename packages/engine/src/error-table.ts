/**
 * Every error code of the engine and of its native core, with what it means and what an operator does about it.
 *
 * One row a code, in alphabetical order. Codes are stable, texts may change. docs/errors.md is this table rendered, and a
 * test holds table, documentation and code (TypeScript and Rust) together. A code that crosses the native border or the
 * wire gets its class, hint and return code here, so both sides only ever send code, message and details.
 */

/** Whether trying again by itself can help: the two classes of the retry rules. */
export type ErrorClass = 'recoverable' | 'non-recoverable'

/** One row of the table. */
export interface ErrorRow {
  /** What has happened, in one sentence. */
  readonly meaning: string
  /** `recoverable`: retried by the waits of the policy; `non-recoverable`: somebody must act. */
  readonly class: ErrorClass
  /** The next step for the operator. */
  readonly hint: string
  /** The number of the WMI replication service: 32768 to 32779. */
  readonly returnCode: number
}

/** Return codes of the WMI replication service, by name. */
export const RETURN_CODE = {
  completed: 0,
  jobStarted: 4096,
  failed: 32768,
  accessDenied: 32769,
  notSupported: 32770,
  unknown: 32771,
  timeout: 32772,
  invalidParameter: 32773,
  inUse: 32774,
  invalidState: 32775,
  incorrectType: 32776,
  notAvailable: 32777,
  outOfMemory: 32778,
  fileNotFound: 32779,
} as const

type ReturnName = keyof typeof RETURN_CODE

/** Retrying helps: network, space, memory, a lost worker. */
function retried(returns: ReturnName, meaning: string, hint: string): ErrorRow {
  return { meaning, class: 'recoverable', hint, returnCode: RETURN_CODE[returns] }
}

/** Retrying cannot help: somebody has to change something first. */
function final(returns: ReturnName, meaning: string, hint: string): ErrorRow {
  return { meaning, class: 'non-recoverable', hint, returnCode: RETURN_CODE[returns] }
}

/** The table: code to row. */
export const ERROR_TABLE = {
  ABORTED: final(
    'failed',
    'The operation was stopped by its AbortSignal.',
    'Call it again: it goes on where it stopped.',
  ),
  ACCESS_DENIED: final(
    'accessDenied',
    'The operating system refused access to a file or folder.',
    'Give this user read and write permission on the path, or run as its owner.',
  ),
  CLOSE_FAILED: final(
    'failed',
    'Several parts of an engine could not be closed in order; all of them are closed.',
    'Repair what the failures name, and open the engine again: it recovers as after the death of the process.',
  ),
  DIGEST_MISMATCH: final(
    'failed',
    'Source and replica differ after a resynchronization, or at a verify.',
    'Run verify again; when it persists, resynchronize with restart, and check the memory and disks of both sides.',
  ),
  DISK_CHANGED_WHILE_READ: retried(
    'inUse',
    'A disk was written to while it was compared or copied.',
    'Stop what writes to it, then run it again; a disk in use is replicated by the engine, not by sync.',
  ),
  DISK_EMPTY: final(
    'invalidParameter',
    'The disk has no bytes.',
    'Check the path; a disk must have its size before it is protected.',
  ),
  DISK_FULL: retried(
    'failed',
    'There is no space left on the disk or file system that is written to.',
    'Free space there; the operation goes on by itself.',
  ),
  DISK_IN_USE: final(
    'inUse',
    'Somebody else has the disk open: a running virtual machine, or another process of Secondsite.',
    'Stop what uses the disk, or let it use the disk through Secondsite.',
  ),
  DISK_NOT_A_DISK: final(
    'incorrectType',
    'The path is neither a regular file nor a block device.',
    'Name a raw image file or a block device.',
  ),
  DISK_NOT_FOUND: final(
    'fileNotFound',
    'There is nothing at the path of the disk.',
    'Check the path; when the disk was moved, disable and enable again.',
  ),
  DISK_OUT_OF_RANGE: final(
    'invalidParameter',
    'A range lies outside of the disk or is not aligned to its sectors.',
    'Use offsets and lengths that are multiples of 512 inside the disk.',
  ),
  DISK_READ_FAILED: retried(
    'failed',
    'The operating system could not read from the disk.',
    'Check the medium and the system log; a read that works later goes on by itself.',
  ),
  DISK_READ_ONLY: final(
    'accessDenied',
    'The disk was opened for reading only.',
    'Give write access to the disk, or use another one.',
  ),
  DISK_SAME: final(
    'invalidParameter',
    'Two paths name the same disk.',
    'Name two different disks; links and loop devices over one file count as one.',
  ),
  DISK_SIZE_DIFFERS: final(
    'invalidParameter',
    'A disk has another size than its replica, or than when it was protected.',
    'Bring both to one size. A disk that has shrunk, and was meant to, is accepted at its size: acceptShrink, or protect --accept-shrink DISK=BYTES.',
  ),
  DISK_SIZE_UNALIGNED: final(
    'invalidParameter',
    'The size of the disk is not a multiple of 512 bytes.',
    'Extend the image to a multiple of 512 bytes (truncate -s %512).',
  ),
  DISK_SYNC_FAILED: final(
    'failed',
    'A sync of the disk failed; what was written before it may be lost.',
    'Check the medium; then open the disk again, which compares what is uncertain.',
  ),
  DISK_WRITE_FAILED: retried(
    'failed',
    'The operating system could not write to the disk.',
    'Check the medium and the system log; a write that works later goes on by itself.',
  ),
  FAILOVER_IN_USE: final(
    'inUse',
    'A process has the disks of the failover open, and whoever else wrote to them would write against it.',
    'End that process (`secondsite failover start` or `serve`). Cancel, change-point and commit ask it by themselves: then it does not react, and has to be ended by hand.',
  ),
  FAILOVER_NOT_FOUND: final(
    'invalidState',
    'The replica has not been failed over.',
    'Look at its state with `secondsite points`; start a failover first.',
  ),
  FAILOVER_SETTINGS_INVALID: final(
    'invalidParameter',
    'Failover settings are wrong; the details list every one with its value and what is allowed.',
    'Correct them and set them again (docs/failover-settings.md).',
  ),
  FENCED: final(
    'accessDenied',
    'Another primary with a higher fencing number has taken over this replica.',
    'Do not write to this source any more; find out which side is active and disable protection on the other.',
  ),
  FRAME_CORRUPT: retried(
    'failed',
    'A frame does not match its checksum, or claims sizes that cannot be true.',
    'Nothing to do: the frame is sent again. If it comes back, check memory and network of both sides.',
  ),
  GROUP_EXISTS: final(
    'invalidParameter',
    'There is a consistency group of this name already.',
    'Choose another name, or add the machines to the group that is there.',
  ),
  GROUP_MEMBER_LATE: retried(
    'timeout',
    'A machine did not come to the common cut of its group in time.',
    'It was still busy with earlier work; the next cycle of the group takes it along.',
  ),
  GROUP_MEMBER_REFUSES: final(
    'invalidState',
    'A verb of a consistency group was refused, as one of its machines refuses it.',
    'Bring the machine named in the details into a state that takes the verb, or take it out of the group.',
  ),
  GROUP_NOT_FOUND: final(
    'invalidParameter',
    'There is no consistency group of this name.',
    'Choose one of the names in the details.',
  ),
  GROUP_NOT_MEMBER: final(
    'invalidParameter',
    'The machine is not in this consistency group.',
    'Add it, or name one that is.',
  ),
  GROUP_POINT_NOT_FOUND: final(
    'notAvailable',
    'The machines of a consistency group have no such cut in common.',
    'List what they share with `secondsite group points`, choose one of them, or fail the machines over one by one.',
  ),
  INTERNAL: final(
    'unknown',
    'An error without a code of its own; the original stands in the details.',
    'Report it with its details.',
  ),
  INVALID_STATE: final(
    'invalidState',
    'The operation is not allowed in the present replication state.',
    'Use one of the verbs listed in the details, or wait until the state changes.',
  ),
  IO_FAILED: retried(
    'failed',
    'The operating system failed an input or output operation.',
    'Look at the reason in the details and at the kernel log of this host; check the storage.',
  ),
  LIMIT_EXCEEDED: retried(
    'failed',
    'A queue is at its limit.',
    'Try again later; if it stays, this host does not keep up.',
  ),
  LOG_ALREADY_SEALED: final(
    'invalidState',
    'The log is sealed already.',
    'Open a new log; sealed logs never change.',
  ),
  LOG_CHAIN_FORK: final(
    'failed',
    'Two logs claim the same predecessor, or a log comes twice.',
    'Do not apply either; resynchronize the disk.',
  ),
  LOG_CHAIN_GAP: final(
    'failed',
    'A log between two others is missing.',
    'Put the missing log back; if it is lost, resynchronize the disk.',
  ),
  LOG_CHANGED_WHILE_READ: retried(
    'inUse',
    'The log changed while it was read.',
    'Wait until its writer has sealed it, then read again.',
  ),
  LOG_CORRUPT: final(
    'failed',
    'A log is damaged before its end.',
    'Fetch the log again from its source; if that copy is damaged too, resynchronize the disk.',
  ),
  LOG_ENTRY_OUT_OF_RANGE: final(
    'failed',
    'A log entry reaches past the end of the disk.',
    'Check that the log belongs to this disk and that the replica has the size of the source.',
  ),
  LOG_HEADER_CORRUPT: final(
    'failed',
    'The header of a log is damaged or contradicts itself.',
    'Fetch the log again from its source, or resynchronize the disk.',
  ),
  LOG_INDEX_MISMATCH: final(
    'failed',
    'The index belongs to another log, or disagrees with this one.',
    'Put the right index beside the log, or remove it and read the log alone.',
  ),
  LOG_INDEX_MISSING: final(
    'fileNotFound',
    'The index of a log is not there.',
    'Put the .hrx file back beside its .hrl file.',
  ),
  LOG_INVALID_REQUEST: final(
    'invalidParameter',
    'A request to a log makes no sense.',
    'Correct the call; the reason names the argument.',
  ),
  LOG_LIMIT_EXCEEDED: final(
    'outOfMemory',
    'A log has more entries or blocks than this operation holds in memory.',
    'Apply or show the log in parts.',
  ),
  LOG_NOT_HRL: final('incorrectType', 'The file is not an .hrl log.', 'Give the path of a log file.'),
  LOG_NOT_SEALED: final(
    'invalidState',
    'The log was not closed.',
    'Recover the log first, or wait until its writer has sealed it.',
  ),
  LOG_READ_FAILED: retried('failed', 'Reading a log failed.', 'Check the storage that holds the log.'),
  LOG_TORN_TAIL: final(
    'failed',
    'The last entry of a log is incomplete, as a crash leaves it.',
    'Recover the log: it is cut after its last complete entry.',
  ),
  LOG_UNALIGNED: final(
    'invalidParameter',
    'An offset or length is not a multiple of 512 bytes.',
    'Align the request to whole sectors.',
  ),
  LOG_VERSION_UNSUPPORTED: final(
    'notSupported',
    'The log has a format version this program does not know.',
    'Use a newer version of the program.',
  ),
  LOG_WRITER_FAILED: retried(
    'failed',
    'An earlier write to the log failed; it takes no more entries.',
    'Free space or repair the storage of the log; changes are kept in the region map meanwhile.',
  ),
  LOG_WRITE_FAILED: retried(
    'failed',
    'Writing a log failed.',
    'Free space or repair the storage of the log; changes are kept in the region map meanwhile.',
  ),
  MACHINE_EXISTS: final(
    'inUse',
    'A machine of this name is protected already.',
    'Choose another name, or disable the other first.',
  ),
  MACHINE_IN_GROUP: final(
    'inUse',
    'The machine is in a consistency group already.',
    'Take it out of that group first; a machine shares its cuts with one group only.',
  ),
  MACHINE_NOT_FOUND: final(
    'notAvailable',
    'No machine of this name is protected here.',
    'List the machines; check the state directory.',
  ),
  MACHINE_RUNNING: final(
    'invalidState',
    'The machine still uses its disks.',
    'Shut it down and detach its disks, then try again.',
  ),
  NBD_ADDRESS_IN_USE: final(
    'inUse',
    'Another server listens at the address, or a file that is no socket lies there.',
    'Stop the server that listens there, or choose another address.',
  ),
  NBD_EXPORT_EXISTS: final(
    'invalidParameter',
    'Two exports have one name.',
    'Choose another name for one of them.',
  ),
  NBD_EXPORT_NAME_INVALID: final(
    'invalidParameter',
    'The name of an export cannot be carried by the protocol.',
    'Use at most 4096 bytes of UTF-8 without a zero byte.',
  ),
  NBD_EXPORT_NOT_FOUND: final(
    'notAvailable',
    'The server has no export of this name.',
    'List the exports of the server; names are compared byte by byte.',
  ),
  NBD_LIMIT_INVALID: final(
    'invalidParameter',
    'A limit of a server is out of its range.',
    'Leave it at its default, or keep to its range.',
  ),
  NBD_LISTEN_FAILED: final(
    'failed',
    'The operating system does not let us listen at the address.',
    'Check that the folder or the address exists and may be used by this user.',
  ),
  NBD_TLS_INVALID: final(
    'invalidParameter',
    'A certificate or key cannot be read, or they do not fit together.',
    'Give PEM files: a certificate chain, its private key, and the authority of the clients.',
  ),
  NOT_IMPLEMENTED: final('notSupported', 'This part does not exist yet.', 'Look for it in a later version.'),
  NOT_PREPARED: final(
    'invalidState',
    "The replica's newest state is not the last cut of a primary that was prepared, so a planned failover would lose writes.",
    'Shut the machine down and run `secondsite failover prepare STATE MACHINE` first; where the primary is gone, leave `--planned` away.',
  ),
  OPTION_OUT_OF_RANGE: final(
    'invalidParameter',
    'An option has a value outside of its range.',
    'Choose a value in the range named in the message.',
  ),
  OVERLAY_DAMAGED: final(
    'failed',
    'The map of what was written to a failed-over disk is damaged.',
    'What was written since the failover cannot be told from the point below. Cancel the failover, and fail over again.',
  ),
  PATH_EXISTS: final(
    'invalidParameter',
    'There is something at the path where a new file was to be made.',
    'Name a path at which nothing is, or move away what is there.',
  ),
  PATH_NOT_FOUND: final(
    'fileNotFound',
    'A file or folder is not there.',
    'Check the path; mount the storage that holds it.',
  ),
  PLAN_ACTION_FAILED: final(
    'failed',
    'A command or HTTP call of a recovery plan did not succeed.',
    'See its exit code or status and its output in the details; mend the cause and continue the run, or skip the step.',
  ),
  PLAN_ACTION_RUNNING: final(
    'inUse',
    'A command that a run had started before it was cut off still runs.',
    'Wait until the process named in the details has ended, or end it; then continue the run, or skip the step.',
  ),
  PLAN_ACTION_TIMEOUT: final(
    'timeout',
    'A command or HTTP call of a recovery plan took too long and was ended.',
    'Give it more timeoutSeconds, or mend what it waits for; then continue the run, or skip the step.',
  ),
  PLAN_DECISION_NEEDED: final(
    'invalidState',
    'An action of a recovery plan was cut off in the middle, and repeating it might do harm.',
    'Look whether it was done; then continue with redo or with skip. An action that may be repeated says idempotent: true.',
  ),
  PLAN_INVALID: final(
    'invalidParameter',
    'A recovery plan does not say what it has to say, or says what makes no sense.',
    'Mend the lines named in the details; docs/plans.md and docs/plan.schema.json say what is allowed.',
  ),
  PLAN_RUN_DAMAGED: final(
    'failed',
    'The journal of a run of a recovery plan is damaged before its last line.',
    'Put back a copy of the journal, or run the plan anew: verbs on machines that were carried out do no harm twice.',
  ),
  PLAN_RUN_FINISHED: final(
    'invalidState',
    'The run of a recovery plan is over.',
    'Start a new run of the plan.',
  ),
  PLAN_RUN_IN_USE: final(
    'inUse',
    'Another process works on a run of this recovery plan.',
    'Wait for it, or stop the process named in the details; its run can be continued.',
  ),
  PLAN_RUN_NOT_FOUND: final(
    'fileNotFound',
    'There is no run of this name.',
    'List the runs in the folder, or name the folder in which the run was started.',
  ),
  PLAN_RUN_UNFINISHED: final(
    'invalidState',
    'An earlier run of this recovery plan is not finished.',
    'Continue or abandon the run named in the details.',
  ),
  POINT_IN_USE: final(
    'inUse',
    'Recovery points that would go are being read, by views, restores or test failovers, or a failover stands on them.',
    'Stop the test failovers and close what has the points open, or end the failover, then try again.',
  ),
  POINT_LOCKED: final(
    'accessDenied',
    'Recovery points are locked until a time that has not come yet.',
    'Wait until then, unlock them with `secondsite points unlock`, or confirm by name that they go with the commit.',
  ),
  POINT_NOT_EXACT: final(
    'notAvailable',
    'The time lies where not every write was kept: before the kept logs, or inside a resynchronization.',
    'Choose a recovery point, or a time that `secondsite points --around` shows as exact.',
  ),
  POINT_NOT_FOUND: final(
    'notAvailable',
    'The replica has no such recovery point.',
    'List them with `secondsite points`; one may have expired meanwhile.',
  ),
  PRIMARY_ALIVE: final(
    'invalidState',
    'The primary still replicates into this replica, so its machine may be running.',
    'Shut the machine down and use a planned failover, or confirm that the primary is to be fenced.',
  ),
  PROTOCOL_ERROR: final(
    'failed',
    'The other side sent something that is not the protocol.',
    'Check that both sides run compatible versions and that the address is right.',
  ),
  QUIESCE_AGENT_PROTOCOL: retried(
    'failed',
    'What the guest agent of a quiesce hook sends is no answer.',
    'Check that the socket path is that of the channel org.qemu.guest_agent.0, and that the guest can be trusted.',
  ),
  QUIESCE_AGENT_UNREACHABLE: retried(
    'notAvailable',
    'The guest agent of a quiesce hook cannot be reached.',
    'Start qemu-guest-agent in the guest, and check the socket path; nobody else may be connected to it.',
  ),
  QUIESCE_FREEZE_FAILED: retried(
    'failed',
    'A quiesce hook could not bring the applications to rest; the cut was crash-consistent.',
    'Run the hook by hand; its program, exit code and output stand in the details.',
  ),
  QUIESCE_LOST: retried(
    'failed',
    'Something else thawed the applications before the cut was made; it was crash-consistent.',
    'Find out who else thaws: a backup program, or the guest itself after a limit of its own.',
  ),
  QUIESCE_NOT_CONFIGURED: final(
    'invalidParameter',
    'An application-consistent cut was asked for and the machine has no quiesce hook.',
    'Give the policy of the machine the setting `quiesce`; docs/app-consistent.md shows how.',
  ),
  QUIESCE_THAW_FAILED: retried(
    'failed',
    'What a quiesce hook has frozen could not be thawed.',
    'Thaw by hand at once (fsfreeze --unfreeze, virsh domfsthaw, the thaw command): applications stand still until then.',
  ),
  QUIESCE_TIMEOUT: retried(
    'timeout',
    'A step of a quiesce hook, or the cut it was held for, took longer than its limit; everything was thawed.',
    'Do what takes long in `prepare`, which freezes nothing, or raise the limit.',
  ),
  REPLICA_BEHIND: final(
    'invalidState',
    'The replica has lost shipments that it had applied: it is an older copy, or a new one.',
    'It is compared with the disk and made equal by a resynchronization; start it now if it must not wait for its window.',
  ),
  REPLICA_DISK_FULL: retried(
    'failed',
    'The disk of the replica store is full.',
    'Free space on it; replication goes on by itself.',
  ),
  REPLICA_FAILED_OVER: final(
    'invalidState',
    'The replica has been failed over: it takes nothing from this primary any more.',
    'Find out which side is active. Cancel the failover to replicate again, or reverse replication.',
  ),
  REPLICA_IMAGE_LOST: final(
    'failed',
    'The image of a disk of the replica was deleted or cut short by somebody.',
    'Put that very file back and resume. If it is gone for good, resynchronize with recreateImages (protect --recreate-images): the disk is copied anew, and recovery points show the other disks alone.',
  ),
  REPLICA_INVALID_STATE: final(
    'invalidState',
    'The replica does not accept changes: it has been failed over, or was changed by somebody else.',
    'Look at the state on the replica side; resynchronize or reverse the replication.',
  ),
  REPLICA_IN_USE: retried(
    'inUse',
    'The replica serves another connection of its primary.',
    'Wait until the other connection has ended.',
  ),
  REPLICA_NOT_FOUND: retried(
    'fileNotFound',
    'The folder of the replica has no replica store.',
    'Mount the volume that holds it; replication goes on by itself. When the replica is lost, disable the machine and enable it anew.',
  ),
  RUNNER_DOMAIN_UNFIT: final(
    'invalidParameter',
    'The libvirt domain of the failover settings has other disks than the replica.',
    'Name the disk of each target in the settings (`runner.disks`), or set the XML of the domain as it is now.',
  ),
  RUNNER_FAILED: final(
    'failed',
    'The machine could not be started from its disks; nothing of it runs.',
    'Look at `output` in the details, correct the failover settings (`secondsite failover settings set`), and start it again.',
  ),
  RUNNER_NOT_FOUND: final(
    'notAvailable',
    'The program that is to start the machine is not installed here.',
    'Install it, or choose another runner in the failover settings.',
  ),
  RUNNER_STOP_FAILED: final(
    'failed',
    'The machine that was started from a failover does not end.',
    'End it by hand, as the details name it, then stop it again.',
  ),
  SPLIT_BRAIN: final(
    'invalidState',
    'Both sides were written to since the point that they have in common.',
    'Look at what each side has, and say whose writes are to be given up; they are kept as a log.',
  ),
  STATE_BEHIND: final(
    'invalidState',
    'The replica holds shipments that this side knows nothing of: the state directory is an older copy.',
    'Disk and replica are compared and made equal by a resynchronization; start it now if it must not wait for its window.',
  ),
  STATE_DISK_FULL: retried(
    'failed',
    'The disk of the state database is full.',
    'Free space on it; nothing was changed by the failed step.',
  ),
  STATE_IN_USE: final(
    'inUse',
    'Another process has this state directory open.',
    'Stop the process named in the details, or use its own interface.',
  ),
  STORE_BUSY: retried(
    'inUse',
    'The database is locked by another program.',
    'Close the program that holds the database open.',
  ),
  STORE_CORRUPT: final(
    'failed',
    'The database is damaged or is not one of ours.',
    'Put back a copy of the database; without one, enable the machine again over the existing replica.',
  ),
  STORE_FOREIGN: final(
    'accessDenied',
    'The replica store belongs to another disk.',
    'Choose another folder; a store is never overwritten by another disk.',
  ),
  STORE_IN_USE: final(
    'inUse',
    'Another process has this replica store open.',
    'Stop the process named in the details.',
  ),
  STORE_VERSION_NEWER: final(
    'notSupported',
    'The database was written by a newer version of the program.',
    'Use that version; this one would not understand it.',
  ),
  TEST_FAILOVER_IN_USE: final(
    'inUse',
    'The process that holds the test failover does not end it.',
    'End that process (`secondsite test-failover start`), then stop the test again.',
  ),
  TEST_FAILOVER_NOT_FOUND: final(
    'notAvailable',
    'There is no such test failover.',
    'List them with `secondsite test-failover list`.',
  ),
  TRANSPORT_FAILED: retried(
    'notAvailable',
    'The other side cannot be reached.',
    'Check the network and that the target runs.',
  ),
  TRANSPORT_LOST: retried(
    'notAvailable',
    'The connection to the other side broke in the middle of an exchange.',
    'Nothing to do: shipping reconnects and goes on after the last acknowledged frame.',
  ),
  UNDO_DAMAGED: final(
    'failed',
    'A file that leads the replica back to older recovery points is damaged or missing.',
    'Use a newer point: those after the one named in the details are whole. Check the disk on which the undo lies.',
  ),
  WINDOW_TOO_FAR: final(
    'invalidParameter',
    'The start time lies in the past or more than 7 days ahead.',
    'Choose a time within the next 7 days.',
  ),
  WORKER_DIED: retried(
    'failed',
    'A worker thread ended in the middle of its task.',
    'Nothing to do: the task is carried out again by another worker.',
  ),
} as const satisfies Record<string, ErrorRow>

/** A code of the table. */
export type ErrorCode = keyof typeof ERROR_TABLE

/** Says whether `text` is a code of the table. */
export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_TABLE, text)
}
