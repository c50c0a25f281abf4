/**
 * What a replica store knows of the writes it was brought: how much each cut changed and how well that compresses, which
 * kept logs are not every write, and what the primary has to be told.
 */

import type { Generated, Selectable } from 'kysely'
import { flag, wholeNumber } from './database.js'

/** What one cut brought, measured before it was applied. Bytes of writes; zeros and discards stand apart. */
export interface ChurnTable {
  /** The shipment that brought the cut. */
  cycleNumber: number
  /** Unix milliseconds of the cut before it. */
  fromMs: number
  cutTimeMs: number
  writeCount: number
  writeBytes: number
  /** Bytes zeroed or given back. */
  zeroBytes: number
  /** What `writeBytes` would take at the entropy of their bytes. */
  entropyBytes: number
  /** Bytes of `writeBytes` that no compressor shrinks. */
  noiseBytes: number
  /** Bytes of them that replaced data that one shrinks. */
  turnedBytes: number
  /** 1 when a resynchronization brought some of it, so that nobody knows when it was written. */
  isResync: Generated<number>
  /** 1 when it looks as if data was being encrypted. */
  isSuspicious: Generated<number>
}

/** What a replica tells its primary. */
export const NOTICE_CODES = ['ENCRYPTION_SUSPECTED', 'EXPIRY_FAILED'] as const
export type NoticeCode = (typeof NOTICE_CODES)[number]

/** Something that happened at the replica and that the primary has to tell people. */
export interface NoticeTable {
  noticeId: Generated<number>
  timeMs: number
  code: NoticeCode
  detailsJson: string
  /** 1 once it was sent. */
  isTold: Generated<number>
}

/** The tables, for the schema of the store. */
export interface InsightSchema {
  churn: ChurnTable
  notices: NoticeTable
}

export type ChurnRow = Selectable<ChurnTable>
export type NoticeRow = Selectable<NoticeTable>

/** SQL of the migration that brings them. */
export const INSIGHT_TABLES = `
CREATE TABLE "churn" (
  ${wholeNumber('cycleNumber', 'PRIMARY KEY')}, ${wholeNumber('fromMs')}, ${wholeNumber('cutTimeMs')},
  ${wholeNumber('writeCount')}, ${wholeNumber('writeBytes')}, ${wholeNumber('zeroBytes')}, ${wholeNumber('entropyBytes')},
  ${wholeNumber('noiseBytes')}, ${wholeNumber('turnedBytes')}, ${flag('isResync')}, ${flag('isSuspicious')}) STRICT;
CREATE TABLE "notices" (
  "noticeId" INTEGER PRIMARY KEY AUTOINCREMENT, ${wholeNumber('timeMs')}, "code" TEXT NOT NULL,
  "detailsJson" TEXT NOT NULL, ${flag('isTold')}) STRICT;
ALTER TABLE "logs" ADD COLUMN ${flag('isCoalesced')};
ALTER TABLE "keptLogs" ADD COLUMN ${flag('isCoalesced')};
ALTER TABLE "failover" ADD COLUMN "untilWriteJson" TEXT;
`
