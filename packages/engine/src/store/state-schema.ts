/**
 * The state database of the primary side: what it protects, how far it is, and what happened.
 *
 * Ids are UUID text, times Unix milliseconds, sizes and offsets bytes, settings JSON text. Sequence numbers and all
 * other counts stay below 2^53, which the schema checks.
 */

import type { Generated, Insertable, Selectable } from 'kysely'
import {
  POINT_KINDS,
  type PointKind,
  type ReplicationMode,
  type ReplicationState,
  type Side,
} from '../states.js'
import { type DatabaseKind, flag, oneOf, wholeNumber } from './database.js'

/** Why a log was made. */
export const LOG_KINDS = ['delta', 'initial', 'resync'] as const
/** How far a log is: on this side, at the replica in full, in the image. */
export const LOG_STATES = ['sealed', 'shipped', 'received', 'applied'] as const
/** How far a cycle is. */
export const CYCLE_STATES = ['cut', 'shipped', 'received', 'applied'] as const
/** How much an event asks for attention. */
export const EVENT_LEVELS = ['information', 'warning', 'error'] as const
/** How far a resynchronization is. */
export const RESYNC_STATES = ['running', 'suspended', 'cancelled', 'complete'] as const

export type LogKind = (typeof LOG_KINDS)[number]
export type LogState = (typeof LOG_STATES)[number]
export type CycleState = (typeof CYCLE_STATES)[number]
export type ResyncState = (typeof RESYNC_STATES)[number]
export type EventLevel = (typeof EVENT_LEVELS)[number]

/** A protected machine: one relationship. */
export interface MachineTable {
  machineId: string
  name: string
  relationshipId: string
  side: Side
  mode: ReplicationMode
  state: ReplicationState
  isInitialReplicationDone: Generated<number>
  policyJson: string
  replicaJson: string
  createdMs: number
  nextCycleNumber: Generated<number>
  fencingNumber: Generated<number>
  resyncReason: string | null
  resyncStartMs: number | null
  errorJson: string | null
  retryAttempt: Generated<number>
  retryAtMs: number | null
  lastReceivedMs: number | null
  lastAppliedMs: number | null
  /** Cut that the images show. */
  lastAppliedCutMs: number | null
  /** Newest application-consistent cut that the images have shown. */
  lastApplicationConsistentCutMs: number | null
}

/** A disk of a machine. */
export interface DiskTable {
  diskId: string
  machineId: string
  position: number
  name: string
  path: string
  trackingDirectory: string
  sizeBytes: number
  initialNextOffset: Generated<number>
  /** 1 once a cut that follows its first copy is applied: from then on the cuts of the machine hold for it. */
  isInitialDone: Generated<number>
  /** 1 while it is being removed: it is no part of the machine any more, and its files go. */
  isLeaving: Generated<number>
  /** A shrink that was accepted and that the replica has not carried out: `DiskShrink`; null for none. */
  shrinkJson: string | null
}

/** A sealed log that the replica does not hold in full yet. */
export interface LogTable {
  logId: string
  diskId: string
  previousLogId: string
  firstSequence: number
  nextSequence: number
  cycleNumber: number
  kind: LogKind
  state: LogState
  path: string
  indexPath: string
  logSizeBytes: number
  indexSizeBytes: number
  entryCount: number
  dataBytes: number
  cutTimeMs: number
  isCoalesced: Generated<number>
}

/** One interval with its logs. */
export interface CycleTable {
  machineId: string
  cycleNumber: number
  kind: LogKind
  state: CycleState
  cutTimeMs: number
  /** 1 when the chain of logs begins anew with this cycle. */
  isRebase: Generated<number>
  sentBytes: Generated<number>
  receivedMs: number | null
  appliedMs: number | null
  pointKind: Generated<PointKind>
  /** The cut that all members of a consistency group share; null for one of the machine alone. */
  groupPointId: string | null
  /** Disks that shrink with it: `DiskShrink[]`; null for none. */
  shrinksJson: string | null
}

/** One resynchronization of a machine. */
export interface ResyncTable {
  resyncId: string
  machineId: string
  reason: string
  state: ResyncState
  seed: string
  chunkBytes: number
  digest: string
  startedMs: number
  endedMs: number | null
  comparedBytes: Generated<number>
  equalBytes: Generated<number>
  sentBytes: Generated<number>
}

/** A range that a resynchronization still has to compare, or has shown to be equal or sent. */
export interface ResyncRangeTable {
  resyncId: string
  diskId: string
  offset: number
  lengthBytes: number
  isVerified: Generated<number>
}

/** Counters of one monitoring interval; `endMs` is null while it runs. */
export interface StatisticsTable {
  machineId: string
  startMs: number
  endMs: number | null
  countersJson: string
  rpoJson: Generated<string>
}

/** Something that happened to a machine, for people and monitoring. */
export interface EventTable {
  eventId: Generated<number>
  machineId: string
  machine: string
  timeMs: number
  id: number
  level: EventLevel
  text: string
  detailsJson: string
}

/** Every transition, written in the transaction that makes it. */
export interface JournalTable {
  entryId: Generated<number>
  machineId: string
  timeMs: number
  operator: string
  reason: string
  trigger: string
  fromState: ReplicationState
  toState: ReplicationState
}

/** A consistency group: machines that share their cuts. */
export interface GroupTable {
  groupId: string
  name: string
  createdMs: number
  /** The newest cut that all members shared, and its time. */
  lastPointId: string | null
  lastPointMs: number | null
}

/** A machine in a group; in one at most. */
export interface GroupMemberTable {
  groupId: string
  machineId: string
  position: number
}

/** All tables of the state database. */
export interface StateSchema {
  machines: MachineTable
  disks: DiskTable
  logs: LogTable
  cycles: CycleTable
  resyncs: ResyncTable
  resyncRanges: ResyncRangeTable
  statistics: StatisticsTable
  journal: JournalTable
  events: EventTable
  groups: GroupTable
  groupMembers: GroupMemberTable
}

export type Machine = Selectable<MachineTable>
export type NewMachine = Insertable<MachineTable>
export type Group = Selectable<GroupTable>
export type NewGroup = Insertable<GroupTable>
export type Disk = Selectable<DiskTable>
export type NewDisk = Insertable<DiskTable>
export type QueuedLog = Selectable<LogTable>
export type NewLog = Insertable<LogTable>
export type Cycle = Selectable<CycleTable>
export type NewCycle = Insertable<CycleTable>
export type Resync = Selectable<ResyncTable>
export type NewResync = Insertable<ResyncTable>
export type ResyncRange = Selectable<ResyncRangeTable>
export type JournalEntry = Selectable<JournalTable>
export type Statistics = Selectable<StatisticsTable>
export type EventRow = Selectable<EventTable>
export type NewEventRow = Insertable<EventTable>

const machine = '"machineId" TEXT NOT NULL REFERENCES "machines" ON DELETE CASCADE'
const disk = '"diskId" TEXT NOT NULL REFERENCES "disks" ON DELETE CASCADE'

const VERSION_1 = `
CREATE TABLE "machines" (
  "machineId" TEXT PRIMARY KEY, "name" TEXT NOT NULL UNIQUE, "relationshipId" TEXT NOT NULL UNIQUE,
  ${oneOf('side', ['primary', 'replica'])}, "mode" TEXT NOT NULL, "state" TEXT NOT NULL,
  ${flag('isInitialReplicationDone')}, "policyJson" TEXT NOT NULL, "replicaJson" TEXT NOT NULL,
  ${wholeNumber('createdMs')}, ${wholeNumber('nextCycleNumber', 'NOT NULL DEFAULT 1')},
  ${wholeNumber('fencingNumber', 'NOT NULL DEFAULT 1')}, "resyncReason" TEXT, ${wholeNumber('resyncStartMs', '')},
  "errorJson" TEXT, ${wholeNumber('retryAttempt', 'NOT NULL DEFAULT 0')}, ${wholeNumber('retryAtMs', '')},
  ${wholeNumber('lastReceivedMs', '')}, ${wholeNumber('lastAppliedMs', '')}) STRICT;
CREATE TABLE "disks" (
  "diskId" TEXT PRIMARY KEY, ${machine}, ${wholeNumber('position')}, "name" TEXT NOT NULL, "path" TEXT NOT NULL UNIQUE,
  "trackingDirectory" TEXT NOT NULL, ${wholeNumber('sizeBytes')},
  ${wholeNumber('initialNextOffset', 'NOT NULL DEFAULT 0')}, ${flag('isInitialDone')},
  UNIQUE ("machineId", "name"), UNIQUE ("machineId", "position")) STRICT;
CREATE TABLE "logs" (
  "logId" TEXT PRIMARY KEY, ${disk}, "previousLogId" TEXT NOT NULL, ${wholeNumber('firstSequence')},
  ${wholeNumber('nextSequence')}, ${wholeNumber('cycleNumber')}, ${oneOf('kind', LOG_KINDS)},
  ${oneOf('state', LOG_STATES)}, "path" TEXT NOT NULL, "indexPath" TEXT NOT NULL, ${wholeNumber('logSizeBytes')},
  ${wholeNumber('indexSizeBytes')}, ${wholeNumber('entryCount')}, ${wholeNumber('dataBytes')},
  ${wholeNumber('cutTimeMs')}, ${flag('isCoalesced')}) STRICT;
CREATE INDEX "logsOfDisk" ON "logs" ("diskId", "cycleNumber", "firstSequence");
CREATE TABLE "cycles" (
  ${machine}, ${wholeNumber('cycleNumber')}, ${oneOf('kind', LOG_KINDS)}, ${oneOf('state', CYCLE_STATES)},
  ${wholeNumber('cutTimeMs')}, ${flag('isRebase')}, ${wholeNumber('sentBytes', 'NOT NULL DEFAULT 0')}, ${wholeNumber('receivedMs', '')},
  ${wholeNumber('appliedMs', '')}, PRIMARY KEY ("machineId", "cycleNumber")) STRICT;
CREATE TABLE "resyncs" (
  "resyncId" TEXT PRIMARY KEY, ${machine}, "reason" TEXT NOT NULL, ${oneOf('state', RESYNC_STATES)}, "seed" TEXT NOT NULL,
  ${wholeNumber('chunkBytes')}, "digest" TEXT NOT NULL, ${wholeNumber('startedMs')}, ${wholeNumber('endedMs', '')},
  ${wholeNumber('comparedBytes', 'NOT NULL DEFAULT 0')}, ${wholeNumber('equalBytes', 'NOT NULL DEFAULT 0')},
  ${wholeNumber('sentBytes', 'NOT NULL DEFAULT 0')}) STRICT;
CREATE TABLE "resyncRanges" (
  "resyncId" TEXT NOT NULL REFERENCES "resyncs" ON DELETE CASCADE, ${disk}, ${wholeNumber('offset')},
  ${wholeNumber('lengthBytes')}, ${flag('isVerified')}, PRIMARY KEY ("resyncId", "diskId", "offset")) STRICT;
CREATE TABLE "statistics" (
  ${machine}, ${wholeNumber('startMs')}, ${wholeNumber('endMs', '')}, "countersJson" TEXT NOT NULL,
  PRIMARY KEY ("machineId", "startMs")) STRICT;
CREATE TABLE "journal" (
  "entryId" INTEGER PRIMARY KEY AUTOINCREMENT, "machineId" TEXT NOT NULL, ${wholeNumber('timeMs')},
  "operator" TEXT NOT NULL, "reason" TEXT NOT NULL, "trigger" TEXT NOT NULL, "fromState" TEXT NOT NULL,
  "toState" TEXT NOT NULL) STRICT;
`

const VERSION_2 = `
ALTER TABLE "machines" ADD COLUMN ${wholeNumber('lastAppliedCutMs', '')};
ALTER TABLE "statistics" ADD COLUMN "rpoJson" TEXT NOT NULL DEFAULT '{}';
CREATE TABLE "events" (
  "eventId" INTEGER PRIMARY KEY AUTOINCREMENT, "machineId" TEXT NOT NULL, "machine" TEXT NOT NULL,
  ${wholeNumber('timeMs')}, ${wholeNumber('id')}, ${oneOf('level', EVENT_LEVELS)}, "text" TEXT NOT NULL,
  "detailsJson" TEXT NOT NULL) STRICT;
DELETE FROM "cycles" WHERE "state" = 'applied' AND "cycleNumber" < (
  SELECT MAX("cycleNumber") FROM "cycles" AS "newest"
  WHERE "newest"."machineId" = "cycles"."machineId" AND "newest"."state" = 'applied');
`

const VERSION_3 = `
ALTER TABLE "machines" ADD COLUMN ${wholeNumber('lastApplicationConsistentCutMs', '')};
ALTER TABLE "cycles" ADD COLUMN ${oneOf('pointKind', POINT_KINDS, 'crash-consistent')};
ALTER TABLE "cycles" ADD COLUMN "groupPointId" TEXT;
`

const VERSION_4 = `
CREATE TABLE "groups" (
  "groupId" TEXT PRIMARY KEY, "name" TEXT NOT NULL UNIQUE, ${wholeNumber('createdMs')}, "lastPointId" TEXT,
  ${wholeNumber('lastPointMs', '')}) STRICT;
CREATE TABLE "groupMembers" (
  "groupId" TEXT NOT NULL REFERENCES "groups" ON DELETE CASCADE,
  "machineId" TEXT NOT NULL UNIQUE REFERENCES "machines" ON DELETE CASCADE, ${wholeNumber('position')},
  PRIMARY KEY ("groupId", "machineId")) STRICT;
`

const VERSION_5 = `
ALTER TABLE "disks" ADD COLUMN ${flag('isLeaving')};
UPDATE "disks" SET "isInitialDone" = 1 WHERE "machineId" IN (
  SELECT "machineId" FROM "machines" WHERE "isInitialReplicationDone" = 1);
`

const VERSION_6 = `
ALTER TABLE "disks" ADD COLUMN "shrinkJson" TEXT;
ALTER TABLE "cycles" ADD COLUMN "shrinksJson" TEXT;
`

/** The state database: "SSst". */
export const STATE_DATABASE: DatabaseKind = {
  name: 'state database',
  applicationId: 0x53537374,
  migrations: [VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6],
}
