/**
 * The tables of recovery in the database of a replica store: points, kept logs, test failovers, the failover.
 *
 * A point is named by the shipment whose cut it shows. What leads back to it are files (docs/spec/undo.md); a row says
 * that it is kept, and what it is.
 */

import type { Generated, Insertable, Selectable } from 'kysely'
import { POINT_KINDS, type PointKind, type ReplicationState } from '../states.js'
import { flag, oneOf, wholeNumber } from './database.js'
import { LOG_KINDS, type LogKind } from './state-schema.js'

/** How a failover came about. */
export const FAILOVER_KINDS = ['Planned', 'Unplanned'] as const
export type FailoverKind = (typeof FAILOVER_KINDS)[number]

/** A state of the images that is kept. */
export interface PointTable {
  /** The shipment that brought the images to this state. */
  pointNumber: number
  kind: PointKind
  cutTimeMs: number
  /** When the images came to it. */
  appliedMs: number
  /** Lineage: the fencing number of the primary that made it. */
  fencingNumber: number
  /** Sizes of the disks at the point: `{ diskId: bytes }`. */
  sizesJson: string
  /** Digest over all disks, where somebody has computed it. */
  digest: string | null
  /** The cut that all members of a consistency group share; null for one of the machine alone. */
  groupPointId: string | null
  /** Unix milliseconds until which nothing removes it. */
  lockedUntilMs: number | null
  /** 1 for one that exists for a view or failover alone. */
  isTransient: Generated<number>
  /** Unix milliseconds until which it is taken to be in use, without a pin being looked for. */
  heldUntilMs: Generated<number>
}

/** A log that was applied and is kept, so that any write in it can be addressed. */
export interface KeptLogTable {
  logId: string
  diskId: string
  cycleNumber: number
  kind: LogKind
  path: string
  indexPath: string
  sizeBytes: number
  /** Unix milliseconds of the cut that ended it. */
  cutTimeMs: number
  /** 1 when of overlapping writes only the last is in it: no state inside of it is exact. */
  isCoalesced: Generated<number>
}

/** A test failover. */
export interface TestFailoverTable {
  testId: string
  name: string
  pointNumber: number
  pointTimeMs: number
  startedMs: number
  /** Unix milliseconds of its end; null while it is asked for by hand. */
  endsMs: number | null
  directory: string
  endedMs: number | null
  /** The test of a consistency group that it is part of; null for none. */
  groupTestId: string | null
}

/** The failover of this replica: one row, from its start to its cancellation or reversal. */
export interface FailoverTable {
  onlyRow: Generated<number>
  kind: FailoverKind
  pointNumber: number
  /** Unix nanoseconds as text, where a time between two points was chosen. */
  untilNs: string | null
  /** The write behind which it ends, a `KeptWrite`, where one was chosen. */
  untilWriteJson: string | null
  pointTimeMs: number
  startedMs: number
  stateBefore: ReplicationState
  committedMs: number | null
  /** From the commit on: what the chosen point takes back of the newest state, `{ disk: [offset, length, …] }`. */
  undoneJson: string | null
  /** From the reversal on: everything that it needs to be carried through, see `reverse.ts`. */
  reverseJson: string | null
  /** 1 once the images hold what the overlays held. */
  isSettled: Generated<number>
}

/** The tables, for the schema of the store. */
export interface RecoverySchema {
  points: PointTable
  keptLogs: KeptLogTable
  testFailovers: TestFailoverTable
  failover: FailoverTable
}

export type Point = Selectable<PointTable>
export type NewPoint = Insertable<PointTable>
export type KeptLog = Selectable<KeptLogTable>
export type TestFailoverRow = Selectable<TestFailoverTable>
export type FailoverRow = Selectable<FailoverTable>

/** SQL of the migration that brings them. */
export const RECOVERY_TABLES = `
CREATE TABLE "points" (
  ${wholeNumber('pointNumber', 'PRIMARY KEY')}, ${oneOf('kind', POINT_KINDS)}, ${wholeNumber('cutTimeMs')},
  ${wholeNumber('appliedMs')}, ${wholeNumber('fencingNumber')}, "sizesJson" TEXT NOT NULL, "digest" TEXT,
  "groupPointId" TEXT, ${wholeNumber('lockedUntilMs', '')}, ${flag('isTransient')},
  ${wholeNumber('heldUntilMs', 'NOT NULL DEFAULT 0')}) STRICT;
CREATE TABLE "keptLogs" (
  "logId" TEXT PRIMARY KEY, "diskId" TEXT NOT NULL REFERENCES "disks" ON DELETE CASCADE, ${wholeNumber('cycleNumber')},
  ${oneOf('kind', LOG_KINDS)}, "path" TEXT NOT NULL, "indexPath" TEXT NOT NULL, ${wholeNumber('sizeBytes')}, ${wholeNumber('cutTimeMs')}) STRICT;
CREATE INDEX "keptLogsOfCycle" ON "keptLogs" ("cycleNumber");
CREATE TABLE "testFailovers" (
  "testId" TEXT PRIMARY KEY, "name" TEXT NOT NULL, ${wholeNumber('pointNumber')}, ${wholeNumber('pointTimeMs')},
  ${wholeNumber('startedMs')}, ${wholeNumber('endsMs', '')}, "directory" TEXT NOT NULL, ${wholeNumber('endedMs', '')}) STRICT;
CREATE TABLE "failover" (
  "onlyRow" INTEGER PRIMARY KEY DEFAULT 1 CHECK ("onlyRow" = 1), ${oneOf('kind', FAILOVER_KINDS)},
  ${wholeNumber('pointNumber')}, "untilNs" TEXT, ${wholeNumber('pointTimeMs')}, ${wholeNumber('startedMs')},
  "stateBefore" TEXT NOT NULL, ${wholeNumber('committedMs', '')}, "undoneJson" TEXT, "reverseJson" TEXT, ${flag('isSettled')}) STRICT;
ALTER TABLE "identity" ADD COLUMN "recoveryJson" TEXT;
ALTER TABLE "identity" ADD COLUMN "failoverSettingsJson" TEXT;
`
