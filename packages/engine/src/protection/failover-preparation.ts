/**
 * The primary's part of a planned failover: nobody writes any more, and the replica holds everything.
 *
 * Exports end first, unless a client is connected. Then cycles run until one ends with nothing written since. The planned
 * cut is the one behind it, and it is at this cut that both sides are read and compared: what the replica shows as its newest
 * point is what the digests prove.
 */

import { SecondsiteError } from '../errors.js'
import type { MachineContext } from './machine-context.js'
import type { MachineRecord } from './machine-record.js'
import type { JobOptions, ReplicationWork } from './replication-work.js'
import { crashConsistentCut, type CutPoint, type MakeCut } from './shipping.js'

/** Options of `prepareFailover`. */
export interface PrepareOptions extends JobOptions {
  /** Whether both sides are read whole and compared; default true. Without it the logs alone say that they are equal. */
  readonly verify?: boolean
}

/** What a planned failover begins with. */
export interface PrepareReport {
  /** Unix milliseconds of the last cut, which the replica shows. */
  readonly cutTimeMs: number
  /** Bytes sent by the cycles of the preparation. */
  readonly sentBytes: number
  /** Bytes proven equal by digests; 0 when that was not asked for. */
  readonly provenBytes: number
}

/** Cycles in which writes may come to their end. */
const CYCLE_COUNT_MAX = 5

export async function prepareFailover(
  context: MachineContext,
  record: MachineRecord,
  work: ReplicationWork,
  options: PrepareOptions,
): Promise<PrepareReport> {
  record.require(['Replicating'], 'prepareFailover')
  for (const disk of context.disks) await disk.endExports()
  const report =
    options.verify === false
      ? { ...(await sendRest(context, work, options, plannedCut)), provenBytes: 0 }
      : await sendAndProve(context, work, options)
  if (isWritten(context)) throw running(context, 'something was written after the last cut')
  await context.work.step('prepare.before-moving')
  await record.transit('prepareFailover')
  return report
}

/** What is still written comes to its end first, so that little is read twice. */
async function sendAndProve(
  context: MachineContext,
  work: ReplicationWork,
  options: PrepareOptions,
): Promise<PrepareReport> {
  const { sentBytes } = await sendRest(context, work, options, crashConsistentCut)
  return { ...(await prove(context, work, options)), sentBytes }
}

async function sendRest(
  context: MachineContext,
  work: ReplicationWork,
  options: PrepareOptions,
  makeCut: MakeCut,
): Promise<{ cutTimeMs: number; sentBytes: number }> {
  let sentBytes = 0
  for (let count = 0; count < CYCLE_COUNT_MAX; count += 1) {
    const report = await work.cycle({ ...options, applicationConsistent: false }, makeCut)
    sentBytes += report.sentBytes
    if (!isWritten(context)) return { cutTimeMs: report.cutTimeMs, sentBytes }
  }
  throw running(context, `writes went on over ${CYCLE_COUNT_MAX} cycles`)
}

/** The last state of a machine that is shut down. */
async function plannedCut(context: MachineContext): Promise<CutPoint> {
  return { ...(await crashConsistentCut(context)), pointKind: 'planned' }
}

async function prove(
  context: MachineContext,
  work: ReplicationWork,
  options: PrepareOptions,
): Promise<{ cutTimeMs: number; provenBytes: number }> {
  const { equal, cutTimeMs } = await work.verify(options, plannedCut)
  const provenBytes = context.disks.reduce((total, disk) => total + disk.sizeBytes, 0)
  if (equal) return { cutTimeMs, provenBytes }
  throw new SecondsiteError('DIGEST_MISMATCH', {
    message: `the replica of ${context.name} is not what its disks are`,
    details: { machine: context.name },
  })
}

function isWritten(context: MachineContext): boolean {
  return context.disks.some((disk) => disk.dirty().length > 0)
}

function running({ name }: MachineContext, reason: string): SecondsiteError {
  return new SecondsiteError('MACHINE_RUNNING', {
    message: `${name} cannot be failed over as planned: ${reason}`,
    details: { machine: name, reason },
  })
}
