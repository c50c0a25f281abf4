/**
 * The life of test failovers beside the process that holds them: how they are listed, and how they end when that process is
 * asked to, or has died.
 */

import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fromSystemError, isSecondsiteError, SecondsiteError } from '../errors.js'
import { LOCK_FILE, openLocked } from '../store/lock.js'
import type { TestFailoverRow } from '../store/recovery-schema.js'
import { SECOND_MS } from '../units.js'
import type { RecoveryContext } from './context.js'
import { runInfo, type RunInfo, stopLeftRun } from './runner.js'

/** A test failover as it is listed. */
export interface TestFailoverInfo {
  readonly id: string
  /** `<machine> - Test`, with a number behind it from the second one on. */
  readonly name: string
  readonly pointNumber: number
  /** Unix milliseconds that its disks began with. */
  readonly pointTimeMs: number
  readonly startedMs: number
  /** Unix milliseconds of its end by itself; null when it has to be stopped. */
  readonly endsMs: number | null
  /** Unix milliseconds of its end; null while it is there. */
  readonly endedMs: number | null
  /** Whether the process that made it still has it; one that is there and not held was left by a process that died. */
  readonly isHeld: boolean
  /** The machine that was started from it; null where none was. */
  readonly run: RunInfo | null
  /** The test of a consistency group that it is part of; null for none. */
  readonly groupTestId: string | null
}

/** Put into the folder of a test, it makes the holder end it. */
export const STOP_FILE = 'stop'
/** How often who waits for the end of a test looks whether it has come. */
const LOOK_MS = 250
/** Time for the holder to end a test, beside what its machine may take. */
const STOP_WAIT_MS = 30 * SECOND_MS

/** What the tests of a replica stand on, for who has no more of it. */
export type TestContext = Pick<RecoveryContext, 'directory' | 'recovery' | 'clock'>

/**
 * Ends a test that another process holds, by asking it, or that a process which died has left.
 * @throws {TEST_FAILOVER_NOT_FOUND}
 * @throws {TEST_FAILOVER_IN_USE} when the process that holds it does not end it
 */
export async function endTest(context: TestContext, testId: string): Promise<void> {
  const row = (await context.recovery.testFailovers()).find((one) => one.testId === testId)
  if (row === undefined) {
    throw new SecondsiteError('TEST_FAILOVER_NOT_FOUND', {
      message: `no test failover ${testId} of the replica in ${context.directory}`,
      details: { path: context.directory, testId },
    })
  }
  if (row.endedMs === null && isHeld(row.directory)) await askHolder(context, row)
  await endLeft(context, row)
}

/**
 * Ends the tests whose lifetime has passed and whose process has died. One that cannot be ended is still listed, and is tried
 * again the next time.
 * @returns the ids of those that have ended
 */
export async function endExpiredTests(context: TestContext): Promise<string[]> {
  const nowMs = context.clock.nowMs()
  const rows = (await context.recovery.testFailovers()).filter(
    ({ endedMs, endsMs, directory }) =>
      endedMs === null && endsMs !== null && endsMs <= nowMs && !isHeld(directory),
  )
  await removeUnrecorded(context)
  const ends = await Promise.allSettled(rows.map((row) => endLeft(context, row)))
  return rows.filter((_row, index) => ends[index]?.status === 'fulfilled').map(({ testId }) => testId)
}

/** Throws away what a process that died in the middle of making a test has left; no row tells of it yet. */
async function removeUnrecorded({ directory, recovery }: TestContext): Promise<void> {
  const known = new Set((await recovery.testFailovers()).map(({ testId }) => testId))
  for (const path of foldersOf(directory, known))
    if (!isHeld(path)) rmSync(path, { recursive: true, force: true })
}

/** Folders of no known test that somebody has locked: one that is just being made may be there and not locked yet. */
function foldersOf(directory: string, known: ReadonlySet<string>): string[] {
  const all = join(directory, 'tests')
  if (!existsSync(all)) return []
  const unknown = readdirSync(all).filter((name) => !known.has(name))
  return unknown.map((name) => join(all, name)).filter(wasLocked)
}

/** Who has the lock writes its process id into the file. */
function wasLocked(directory: string): boolean {
  const file = join(directory, LOCK_FILE)
  return existsSync(file) && readFileSync(file).length > 0
}

/** A machine that has lost its disks has nothing to shut down for. */
async function endLeft(context: TestContext, row: TestFailoverRow): Promise<void> {
  await stopLeftRun(context.directory, row.testId, context.clock, { asks: false })
  await removeTest(context, row)
}

/** Throws away what a test has written. */
export async function removeTest(
  { recovery }: TestContext,
  { testId, directory, endedMs }: TestFailoverRow,
): Promise<void> {
  rmSync(directory, { recursive: true, force: true })
  if (endedMs === null) await recovery.endTestFailover(testId)
}

async function askHolder(
  { clock, directory: replica }: TestContext,
  { testId, directory }: TestFailoverRow,
): Promise<void> {
  const path = join(directory, STOP_FILE)
  try {
    writeFileSync(path, '')
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'REPLICA_DISK_FULL' })
  }
  const deadlineMs = clock.nowMs() + STOP_WAIT_MS
  while (isHeld(directory)) {
    if (clock.nowMs() < deadlineMs) await clock.sleep(LOOK_MS)
    else
      throw new SecondsiteError('TEST_FAILOVER_IN_USE', {
        message: `the process that holds test failover ${testId} does not end it`,
        details: { path: replica, testId },
      })
  }
}

function isHeld(directory: string): boolean {
  if (!existsSync(directory)) return false
  try {
    openLocked(directory, 'TEST_FAILOVER_IN_USE').close()
    return false
  } catch (error) {
    if (isSecondsiteError(error, 'TEST_FAILOVER_IN_USE')) return true
    throw error
  }
}

/** A test as it is listed. */
export function infoOf({ directory: replica }: TestContext, row: TestFailoverRow): TestFailoverInfo {
  const isThere = row.endedMs === null
  const run = isThere ? runInfo(replica, row.testId) : undefined
  return { ...plainInfo(row), isHeld: isThere && isHeld(row.directory), run: run ?? null }
}

/** The part of it that its row says. */
export function plainInfo({
  testId,
  name,
  ...row
}: TestFailoverRow): Omit<TestFailoverInfo, 'isHeld' | 'run'> {
  const { pointNumber, pointTimeMs, startedMs, endsMs, endedMs, groupTestId } = row
  return { id: testId, name, pointNumber, pointTimeMs, startedMs, endsMs, endedMs, groupTestId }
}
