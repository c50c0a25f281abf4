/**
 * What a reversal would do, without doing it: which ranges of which disks may differ, why, and what either side alone has.
 */

import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type JsonValue, SecondsiteError } from './errors.js'
import type { ProtectedMachine } from './protection/protected-machine.js'
import { type ByteRange, fromPairs, mergeRanges, totalBytes } from './ranges.js'
import { identityOf, type RecoveryContext } from './recovery/context.js'
import { diffPoints } from './recovery/diff.js'
import type { Replica } from './recovery/replica.js'
import { type FormerPrimary, recordedPlan, type ReversePlan, type ReverseRequest } from './reverse-plan.js'
import { type SideWrites, writesOf } from './side-writes.js'
import type { ReplicationState } from './states.js'

/** How a disk is brought up to date. */
export interface DiskOutlook {
  readonly disk: string
  /** The disk at the former primary. */
  readonly path: string
  /**
   * `delta`: the ranges below are compared. `compare`: nothing is known of what is there, the whole disk is compared. `new`:
   * there is no disk, it is made, and everything but zeros is sent.
   */
  readonly method: 'delta' | 'compare' | 'new'
  /** What may differ, ascending; null for all of it. */
  readonly ranges: readonly ByteRange[] | null
  /** Bytes that may differ. */
  readonly bytes: number
}

/** What {@link explainReverse} says. */
export interface ReverseOutlook {
  readonly machine: string
  readonly state: ReplicationState
  readonly disks: readonly DiskOutlook[]
  /** Bytes that may differ, of all disks. */
  readonly candidateBytes: number
  /** Bytes that the chosen point has taken back of what the former primary had sent. */
  readonly undoneBytes: number
  /** What the former primary alone has; it is lost unless the other side is the loser. Null where that cannot be asked. */
  readonly primary: SideWrites | null
  /** What was written since the failover. */
  readonly replica: SideWrites
  /** Recovery points that the commit drops; 0 once it is committed. */
  readonly pointCount: number
}

const NOTHING: SideWrites = { bytes: 0, firstMs: null, lastMs: null, ranges: {} }

/**
 * Says what `reverseReplication` would compare and what would be lost.
 * @throws {INVALID_STATE} unless the replica has been failed over
 * @throws {MACHINE_NOT_FOUND} and, of disks that cannot be opened there, their codes: they may hold what nobody knows of
 */
export async function explainReverse(replica: Replica, place: ReversePlace): Promise<ReverseOutlook> {
  const { context } = replica
  const { machine, state } = await identityOf(context)
  context.next(state, 'reverseReplication', machine)
  return reverseOutlook(replica, place)
}

/** The same of a failover that has still to be committed. */
export async function reverseOutlook(replica: Replica, place: ReversePlace): Promise<ReverseOutlook> {
  const { context } = replica
  await takeUp(formerOf(place.former, await replica.machine()))
  const plan = await recordedPlan(context)
  const failover = plan ? undefined : await replica.failover()
  const written = failover ? await writesOf(failover, context.pool) : NOTHING
  return outlookOf(replica, place, { written, undone: await undoneRanges(context), plan })
}

/**
 * The same before a failover to the newest state, which takes nothing back and has written nothing.
 * @throws {MACHINE_NOT_FOUND} and as {@link explainReverse}
 */
export async function explainReverseAhead(replica: Replica, place: ReversePlace): Promise<ReverseOutlook> {
  await takeUp(formerOf(place.former, await replica.machine()))
  return outlookOf(replica, place, { written: NOTHING, undone: {} })
}

/** Where the other side is, and the folder of the way home. */
export type ReversePlace = Pick<ReverseRequest, 'former' | 'directory'>

/** What the active side has done, and the failover to what the former primary had sent. */
interface OwnChanges {
  readonly written: SideWrites
  readonly undone: Readonly<Record<string, readonly ByteRange[]>>
  /** A reversal that has begun; all that was written stands in it. */
  readonly plan?: ReversePlan | undefined
}

/** Disks that were not there when the former primary was opened. */
async function takeUp(former: ProtectedMachine | undefined): Promise<void> {
  if (former && former.disks.length < former.diskPaths.length) await former.resume()
}

async function outlookOf(
  replica: Replica,
  { former: place, directory }: ReversePlace,
  { written, undone, plan }: OwnChanges,
): Promise<ReverseOutlook> {
  const { context } = replica
  const { machine, state } = await identityOf(context)
  const former = formerOf(place, machine)
  const unsent = former ? await writesOf(former, context.pool) : null
  const images = await context.store.disks()
  const disks = images.map(({ name, sizeBytes }) => {
    const path = pathOf(name, place, former, directory)
    const theirs = unsent?.ranges[name]
    if (theirs === undefined) return wholeDisk(name, path, sizeBytes)
    const planned = fromPairs([...(plan?.candidates[name] ?? [])])
    const ranges = union([undone[name] ?? [], written.ranges[name] ?? [], theirs, planned])
    return { disk: name, path, method: 'delta' as const, ranges, bytes: totalBytes(ranges) }
  })
  return {
    machine,
    state,
    disks,
    candidateBytes: disks.reduce((total, { bytes }) => total + bytes, 0),
    undoneBytes: Object.values(undone).reduce((total, ranges) => total + totalBytes(ranges), 0),
    primary: unsent,
    replica: written,
    pointCount: state === 'FailedOver' ? 0 : (await replica.points()).length,
  }
}

/** @throws {MACHINE_NOT_FOUND} */
export function formerOf(former: FormerPrimary, machine: string): ProtectedMachine | undefined {
  return 'engine' in former ? former.engine.machine(machine) : undefined
}

function pathOf(
  name: string,
  place: FormerPrimary,
  former: ProtectedMachine | undefined,
  directory: string,
): string {
  const given = 'disks' in place ? place.disks[name] : undefined
  const known = former?.disks.find((disk) => disk.name === name)?.path
  return resolve(known ?? given ?? join(directory, name))
}

function wholeDisk(disk: string, path: string, bytes: number): DiskOutlook {
  return { disk, path, method: existsSync(path) ? 'compare' : 'new', ranges: null, bytes }
}

function union(lists: readonly (readonly ByteRange[])[]): ByteRange[] {
  return mergeRanges(lists.flat().toSorted((left, right) => left.offset - right.offset))
}

/** What the point took back of the newest state; recorded by the commit, which makes it impossible to ask. */
async function undoneRanges(context: RecoveryContext): Promise<Record<string, ByteRange[]>> {
  const row = await context.recovery.failover()
  if (row?.undoneJson) {
    const undone = Object.entries(JSON.parse(row.undoneJson) as Record<string, number[]>)
    return Object.fromEntries(undone.map(([disk, pairs]) => [disk, fromPairs(pairs)] as const))
  }
  const undone = await diffPoints(context, row?.pointNumber ?? 0, undefined)
  return Object.fromEntries(undone.map(({ disk, ranges }) => [disk, [...ranges]] as const))
}

/** @throws {SPLIT_BRAIN} with what each side has, unless one is named whose writes are given up */
export function refuseSplit(
  { machine, primary, replica }: ReverseOutlook,
  { loser }: Pick<ReverseRequest, 'loser'>,
): void {
  if (primary === null || primary.bytes === 0 || loser !== undefined) return
  throw new SecondsiteError('SPLIT_BRAIN', {
    message:
      `the former primary of ${machine} holds up to ${primary.bytes} bytes that were never sent${spanText(primary)}; ` +
      `the active side has written ${replica.bytes}${spanText(replica)}`,
    details: { machine, primary: plain(primary), replica: plain(replica) },
  })
}

function spanText({ firstMs, lastMs }: SideWrites): string {
  if (firstMs === null || lastMs === null) return ''
  return ` (${new Date(firstMs).toISOString()} to ${new Date(lastMs).toISOString()})`
}

/** Ranges that an error shows of each disk, at most. */
const SHOWN_RANGES_MAX = 64

function plain({ bytes, firstMs, lastMs, ranges }: SideWrites): JsonValue {
  const shown = Object.entries(ranges).map(([name, list]) => [
    name,
    list.slice(0, SHOWN_RANGES_MAX).map(({ offset, lengthBytes }) => ({ offset, lengthBytes })),
  ])
  const rangeCount = Object.values(ranges).reduce((count, list) => count + list.length, 0)
  return { bytes, firstMs, lastMs, rangeCount, ranges: Object.fromEntries(shown) as JsonValue }
}
