/**
 * The database of a replica store: whose replica this is, what has arrived, and what the images hold.
 *
 * `received` and `applied` are two watermarks and never the same column. A spooled log's `durable` counts are what a
 * reconnecting primary need not send again.
 */

import type { Generated, Insertable, Selectable } from 'kysely'
import { POINT_KINDS, type PointKind, type ReplicationState } from '../states.js'
import { type DatabaseKind, flag, oneOf, wholeNumber } from './database.js'
import { INSIGHT_TABLES, type InsightSchema } from './insight-schema.js'
import { RECOVERY_TABLES, type RecoverySchema } from './recovery-schema.js'
import { LOG_KINDS, type LogKind } from './state-schema.js'

/** How far a spooled log is. */
export const SPOOL_STATES = ['spooling', 'received', 'applied'] as const
/** How far a cycle is; `applying` is set before the first byte of an image changes. */
export const RECEIPT_STATES = ['receiving', 'received', 'applying', 'applied'] as const

export type SpoolState = (typeof SPOOL_STATES)[number]
export type ReceiptState = (typeof RECEIPT_STATES)[number]

/** Whose replica this is: one row. */
export interface IdentityTable {
  onlyRow: Generated<number>
  relationshipId: string
  machine: string
  createdMs: number
  fencingNumber: number
  state: ReplicationState
  isInitialReplicationDone: Generated<number>
  /** What the primary asks for: `RecoverySettings`. */
  recoveryJson: string | null
  /** What a failover needs besides disks: `HeldFailoverSettings`. */
  failoverSettingsJson: string | null
}

/** A disk of the replica with its two watermarks; a log id of null means none yet. */
export interface ReplicaDiskTable {
  diskId: string
  name: string
  imagePath: string
  sizeBytes: number
  /** Newest log of the chain that is spooled, synced and verified. */
  receivedLogId: string | null
  /** Newest log of the chain that the image holds. */
  appliedLogId: string | null
  /** 1 once the image exists; an image that is there before that is somebody else's. */
  isImageCreated: Generated<number>
  /** What the file of the image has at least; 0 where nobody has looked. */
  imageSizeBytes: Generated<number>
  /** 0 of an image that was lost and made anew, until a cut has brought it to a state of its disk. */
  isImageWhole: Generated<number>
  /** The newest shrink that was carried out. */
  lastShrinkId: string | null
}

/** A log in the spool. */
export interface SpooledLogTable {
  logId: string
  diskId: string
  previousLogId: string
  cycleNumber: number
  kind: LogKind
  state: SpoolState
  path: string
  indexPath: string
  logSizeBytes: number
  indexSizeBytes: number
  logDurableBytes: Generated<number>
  indexDurableBytes: Generated<number>
  /** 1 when of overlapping writes only the last is in it. */
  isCoalesced: Generated<number>
}

/** A cycle as the replica sees it. */
export interface ReceiptTable {
  cycleNumber: number
  kind: LogKind
  state: ReceiptState
  cutTimeMs: number
  receivedMs: number | null
  appliedMs: number | null
  pointKind: Generated<PointKind>
  /** The cut that all members of a consistency group share; null for one of the machine alone. */
  groupPointId: string | null
  /** Disks that shrink with it: `DiskShrink[]`; null for none. */
  shrinksJson: string | null
}

/** Every transition of the replica side. */
export interface ReplicaJournalTable {
  entryId: Generated<number>
  timeMs: number
  operator: string
  reason: string
  trigger: string
  fromState: ReplicationState
  toState: ReplicationState
}

/** All tables of a replica store. */
export interface ReplicaSchema extends RecoverySchema, InsightSchema {
  identity: IdentityTable
  disks: ReplicaDiskTable
  logs: SpooledLogTable
  cycles: ReceiptTable
  journal: ReplicaJournalTable
}

export type Identity = Selectable<IdentityTable>
export type ReplicaDisk = Selectable<ReplicaDiskTable>
export type NewReplicaDisk = Insertable<ReplicaDiskTable>
export type SpooledLog = Selectable<SpooledLogTable>
export type NewSpooledLog = Insertable<SpooledLogTable>
export type Receipt = Selectable<ReceiptTable>
export type NewReceipt = Insertable<ReceiptTable>

const disk = '"diskId" TEXT NOT NULL REFERENCES "disks" ON DELETE CASCADE'

const VERSION_1 = `
CREATE TABLE "identity" (
  "onlyRow" INTEGER PRIMARY KEY DEFAULT 1 CHECK ("onlyRow" = 1), "relationshipId" TEXT NOT NULL, "machine" TEXT NOT NULL,
  ${wholeNumber('createdMs')}, ${wholeNumber('fencingNumber')}, "state" TEXT NOT NULL,
  ${flag('isInitialReplicationDone')}) STRICT;
CREATE TABLE "disks" (
  "diskId" TEXT PRIMARY KEY, "name" TEXT NOT NULL UNIQUE, "imagePath" TEXT NOT NULL UNIQUE, ${wholeNumber('sizeBytes')},
  "receivedLogId" TEXT, "appliedLogId" TEXT, ${flag('isImageCreated')}) STRICT;
CREATE TABLE "cycles" (
  ${wholeNumber('cycleNumber', 'PRIMARY KEY')}, ${oneOf('kind', LOG_KINDS)}, ${oneOf('state', RECEIPT_STATES)},
  ${wholeNumber('cutTimeMs')}, ${wholeNumber('receivedMs', '')}, ${wholeNumber('appliedMs', '')}) STRICT;
CREATE TABLE "logs" (
  "logId" TEXT PRIMARY KEY, ${disk}, "previousLogId" TEXT NOT NULL,
  "cycleNumber" INTEGER NOT NULL REFERENCES "cycles" ON DELETE CASCADE, ${oneOf('kind', LOG_KINDS)},
  ${oneOf('state', SPOOL_STATES)}, "path" TEXT NOT NULL, "indexPath" TEXT NOT NULL, ${wholeNumber('logSizeBytes')},
  ${wholeNumber('indexSizeBytes')}, ${wholeNumber('logDurableBytes', 'NOT NULL DEFAULT 0')},
  ${wholeNumber('indexDurableBytes', 'NOT NULL DEFAULT 0')},
  CHECK ("logDurableBytes" <= "logSizeBytes"), CHECK ("indexDurableBytes" <= "indexSizeBytes")) STRICT;
CREATE INDEX "logsOfCycle" ON "logs" ("cycleNumber");
CREATE TABLE "journal" (
  "entryId" INTEGER PRIMARY KEY AUTOINCREMENT, ${wholeNumber('timeMs')}, "operator" TEXT NOT NULL, "reason" TEXT NOT NULL,
  "trigger" TEXT NOT NULL, "fromState" TEXT NOT NULL, "toState" TEXT NOT NULL) STRICT;
`

const VERSION_2 = `
ALTER TABLE "cycles" ADD COLUMN ${oneOf('pointKind', POINT_KINDS, 'crash-consistent')};
ALTER TABLE "cycles" ADD COLUMN "groupPointId" TEXT;
`

const VERSION_5 = `
ALTER TABLE "disks" ADD COLUMN ${wholeNumber('imageSizeBytes', 'NOT NULL DEFAULT 0')};
ALTER TABLE "disks" ADD COLUMN ${flag('isImageWhole', 1)};
ALTER TABLE "disks" ADD COLUMN "lastShrinkId" TEXT;
ALTER TABLE "cycles" ADD COLUMN "shrinksJson" TEXT;
`

const VERSION_6 = 'ALTER TABLE "testFailovers" ADD COLUMN "groupTestId" TEXT;'

/** The database of a replica store: "SSrp". */
export const REPLICA_DATABASE: DatabaseKind = {
  name: 'replica store',
  applicationId: 0x53537270,
  migrations: [VERSION_1, VERSION_2, RECOVERY_TABLES, INSIGHT_TABLES, VERSION_5, VERSION_6],
}
