/**
 * Verify: both sides compared by digests at a cut, nothing sent. Chunks that the guest writes meanwhile are set aside and
 * looked at again after the next cut, so a difference that is reported is one.
 */

import { createHash } from 'node:crypto'
import { throwIfAborted } from '../errors.js'
import { type ByteRange, mergeRanges, totalBytes } from '../ranges.js'
import { windowsOf } from '../resync/compare.js'
import type { TrackedDisk } from '../track/tracked-disk.js'
import { compareSides, type Comparison } from './comparison.js'
import type { MachineContext } from './machine-context.js'
import { copiedDisks } from './membership.js'
import type { ProgressMeter } from './progress.js'
import type { Conversation } from './replica-link.js'
import { crashConsistentCut, type MakeCut, queueCut, shipQueue } from './shipping.js'

/** Looks at chunks that are being written, at most; what still moves then counts as unsettled. */
const LOOKS_MAX = 5
/** Differing ranges that a report lists. */
const RANGES_LISTED_MAX = 1024

/** What verify found on one disk. */
export interface DiskVerification {
  readonly disk: string
  readonly isEqual: boolean
  readonly comparedBytes: number
  readonly differentBytes: number
  /** Bytes that the guest kept writing, so that no look found them still; 0 on a quiet disk. */
  readonly unsettledBytes: number
  /** Differing ranges, at most 1024. */
  readonly differences: readonly ByteRange[]
  /** SHA-256 over all chunk digests of the source as first read, hexadecimal. */
  readonly sourceDigest: string
  /** The same of the replica; equal when every chunk was equal at the first look. */
  readonly replicaDigest: string
}

/** What verify found. */
export interface VerifyReport {
  readonly equal: boolean
  /** Unix milliseconds of the newest cut at which both sides were compared; the replica shows it. */
  readonly cutTimeMs: number
  readonly comparedBytes: number
  readonly differentBytes: number
  readonly digests: readonly DiskVerification[]
}

interface Looked {
  readonly disk: TrackedDisk
  readonly differences: ByteRange[]
  unsettled: ByteRange[]
  comparedBytes: number
  readonly sourceDigest: string
  readonly replicaDigest: string
}

/**
 * Compares all disks of a machine that its cuts hold for with their replicas.
 * @param makeCut - makes the cuts at which they are compared
 */
export async function runVerify(
  context: MachineContext,
  conversation: Conversation,
  meter: ProgressMeter,
  signal?: AbortSignal,
  makeCut: MakeCut = crashConsistentCut,
): Promise<VerifyReport> {
  await queueCut(context, {}, makeCut)
  let { cutTimeMs } = await shipQueue(context, conversation, meter, signal)
  const looked: Looked[] = []
  for (const disk of copiedDisks(context))
    looked.push(await firstLook(context, conversation, disk, meter, signal))
  for (let look = 1; look < LOOKS_MAX && looked.some((one) => one.unsettled.length > 0); look += 1) {
    await queueCut(context, {}, makeCut)
    cutTimeMs = (await shipQueue(context, conversation, meter, signal)).cutTimeMs
    for (const one of looked) await lookAgain(context, conversation, one, signal)
  }
  const digests = looked.map(reportOf)
  return {
    equal: digests.every((disk) => disk.isEqual),
    cutTimeMs,
    comparedBytes: digests.reduce((total, disk) => total + disk.comparedBytes, 0),
    differentBytes: digests.reduce((total, disk) => total + disk.differentBytes, 0),
    digests,
  }
}

async function firstLook(
  context: MachineContext,
  conversation: Conversation,
  disk: TrackedDisk,
  meter: ProgressMeter,
  signal?: AbortSignal,
): Promise<Looked> {
  const settings = freshSettings(context)
  const [sourceHash, replicaHash] = [createHash('sha256'), createHash('sha256')]
  const differences: ByteRange[] = []
  const unsettled: ByteRange[] = []
  for (const window of windowsOf(disk.sizeBytes, context.windowBytes)) {
    throwIfAborted(signal)
    const compared = await compareSides(context, conversation, settings, disk, [window], signal)
    sourceHash.update(compared.sourceDigests)
    replicaHash.update(compared.replicaDigests)
    differences.push(...compared.different)
    unsettled.push(...compared.unsettled)
    meter.compared(window.lengthBytes)
    meter.done(window.lengthBytes, disk.name)
  }
  const [sourceDigest, replicaDigest] = [sourceHash.digest('hex'), replicaHash.digest('hex')]
  return { disk, differences, unsettled, comparedBytes: disk.sizeBytes, sourceDigest, replicaDigest }
}

async function lookAgain(
  context: MachineContext,
  conversation: Conversation,
  looked: Looked,
  signal?: AbortSignal,
): Promise<void> {
  if (looked.unsettled.length === 0) return
  const settings = freshSettings(context)
  const ranges = looked.unsettled
  looked.unsettled = []
  for (const range of ranges) {
    throwIfAborted(signal)
    const { different, unsettled } = await compareSides(
      context,
      conversation,
      settings,
      looked.disk,
      [range],
      signal,
    )
    looked.differences.push(...different)
    looked.unsettled.push(...unsettled)
    looked.comparedBytes += range.lengthBytes
  }
}

/** A seed of its own for each look, so that a collision does not persist. */
function freshSettings(context: MachineContext): Comparison {
  const seed = Buffer.from(context.random.bytes(8)).toString('hex')
  return { chunkBytes: context.policy.chunkBytes, digest: context.policy.digest, seed }
}

function reportOf(looked: Looked): DiskVerification {
  const differences = mergeRanges(looked.differences.sort((a, b) => a.offset - b.offset))
  return {
    disk: looked.disk.name,
    isEqual: differences.length === 0,
    comparedBytes: looked.comparedBytes,
    differentBytes: totalBytes(differences),
    unsettledBytes: totalBytes(looked.unsettled),
    differences: differences.slice(0, RANGES_LISTED_MAX),
    sourceDigest: looked.sourceDigest,
    replicaDigest: looked.replicaDigest,
  }
}
