/**
 * What may differ between two states of a replica: the ranges that were overwritten between them.
 */

import { type ByteRange, fromPairs, mergeRanges } from '../ranges.js'
import { undoFolder } from '../store/undo-folder.js'
import type { RecoveryContext } from './context.js'

/** Ranges that cross the native border in one call. */
const RANGES_AT_ONCE = 8192

/** Ranges of one disk. */
export interface DiskDifference {
  readonly disk: string
  readonly changedBytes: number
  /** Ascending, not touching one another. */
  readonly ranges: readonly ByteRange[]
}

/** Ranges overwritten after point `from` and until point `to`; `to` undefined is the newest state. */
export async function diffPoints(
  context: RecoveryContext,
  from: number,
  to: number | undefined,
): Promise<DiskDifference[]> {
  const differences: DiskDifference[] = []
  for (const disk of await context.store.disks()) {
    const ranges = await changedRanges(context, undoFolder(context.directory, disk), from, to ?? -1)
    const changedBytes = ranges.reduce((total, range) => total + range.lengthBytes, 0)
    differences.push({ disk: disk.name, changedBytes, ranges })
  }
  return differences
}

/** Ranges of one disk that were overwritten after point `from` and until point `to`, -1 for the image as it stands. */
export async function changedRanges(
  context: RecoveryContext,
  undoDirectory: string,
  from: number,
  to: number,
): Promise<ByteRange[]> {
  const ranges: ByteRange[] = []
  for (;;) {
    const last = ranges.at(-1)
    const at = last ? last.offset + last.lengthBytes : 0
    const args = [undoDirectory, from, to, at, RANGES_AT_ONCE]
    const page = fromPairs((await context.pool.run('native', { call: 'changedRanges', args })) as number[])
    ranges.push(...page)
    if (page.length < RANGES_AT_ONCE) return mergeRanges(ranges)
  }
}
