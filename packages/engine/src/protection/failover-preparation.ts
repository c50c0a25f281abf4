/**
 * The primary's part of a planned failover: nobody writes any more, and the replica holds everything.
 *
 * Exports end first, unless a client is connected. Then cycles run until one begins with nothing to send and nothing was
 * written since; its cut is the planned point. The digests of both sides prove that nothing is lost.
 */

import { SecondsiteError } from '../errors.js'
import type { MachineContext } from './machine-context.js'
import type { MachineRecord } from './machine-record.js'
import type { JobOptions, ReplicationWork } from './replication-work.js'
import { crashConsistentCut, type CutPoint } from './shipping.js'

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
  const { cutTimeMs, sentBytes } = await sendRest(context, work, options)
  const provenBytes = options.verify === false ? 0 : await prove(context, work, options)
  if (isWritten(context)) throw running(context, 'something was written after the last cut')
  await context.work.step('prepare.before-moving')
  await record.transit('prepareFailover')
  return { cutTimeMs, sentBytes, provenBytes }
}

async function sendRest(
  context: MachineContext,
  work: ReplicationWork,
  options: PrepareOptions,
): Promise<{ cutTimeMs: number; sentBytes: number }> {
  let sentBytes = 0
  for (let count = 0; count < CYCLE_COUNT_MAX; count += 1) {
    const report = await work.cycle({ ...options, applicationConsistent: false }, plannedCut)
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
): Promise<number> {
  const { equal } = await work.verify(options)
  if (equal) return context.disks.reduce((total, disk) => total + disk.sizeBytes, 0)
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
