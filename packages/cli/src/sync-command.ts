/** The verbs on two disks: sync and verify. */

import {
  formatBytes,
  type StartedOverReason,
  type SyncOptions,
  type SyncResult,
  syncDisks,
  type VerifyDisksOptions,
  type VerifyDisksResult,
  verifyDisks,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'

type Given = Record<string, unknown>

const STARTED_OVER: Record<StartedOverReason, string> = {
  SOURCE_CHANGED: 'the source was written to since the interrupted run',
  REPLICA_CHANGED: 'the replica is not as the interrupted run left it',
  OTHER_RUN: 'the interrupted run had another source or other options',
}

/** `sync SOURCE REPLICA`. With `--digest` both sides are read again afterwards: what counts is what the disks hold. */
export async function sync(invocation: Invocation, args: string[], given: Given): Promise<ExitCode> {
  const [source = '', replica = ''] = args
  const dryRun = given['dryRun'] === true
  const restart = given['restart'] === true
  const result = await syncDisks(source, replica, { ...scanOptions(invocation, given), dryRun, restart })
  if (result.startedOver !== null) invocation.output.warn(`started over: ${STARTED_OVER[result.startedOver]}`)
  const isThere = !(dryRun && result.isReplicaNew)
  const verified =
    given['digest'] === undefined || !isThere
      ? undefined
      : await verifyDisks(source, replica, verifyOptions(invocation, given))
  const digests = verified?.digests
  print(invocation, { dryRun, ...result, ...(digests ? { digests } : {}) }, textOf(result, dryRun, verified))
  const isDifferent = verified ? !verified.equal : dryRun && result.differentBytes > 0
  return isDifferent ? EXIT.different : EXIT.ok
}

/** `verify SOURCE REPLICA [--repair]`. */
export async function verify(invocation: Invocation, args: string[], given: Given): Promise<ExitCode> {
  const [source = '', replica = ''] = args
  const repair = given['repair'] === true
  const found = await verifyDisks(source, replica, { ...verifyOptions(invocation, given), repair })
  print(invocation, found, verdictOf(found))
  return found.equal ? EXIT.ok : EXIT.different
}

function verdictOf(found: VerifyDisksResult): string {
  const difference = `${formatBytes(found.differentBytes)} differ, the first at offset ${found.firstDifference}`
  const lines = [found.differentBytes === 0 ? 'equal' : difference]
  if (found.repairedBytes > 0) lines.push(`repaired ${formatBytes(found.repairedBytes)}`)
  if (found.repairedBytes > 0) lines.push(found.equal ? 'equal now' : 'STILL DIFFERENT')
  return [...lines, digestText(found)].join('\n')
}

function scanOptions({ output, signal }: Invocation, given: Given): SyncOptions {
  return {
    chunkBytes: given['chunk'] as number,
    ...(given['threads'] === undefined ? {} : { threads: given['threads'] as number }),
    signal,
    onProgress: (step) => {
      const { phase, doneBytes, totalBytes, bytesPerSecond } = step
      const etaMs = bytesPerSecond > 0 ? ((totalBytes - doneBytes) / bytesPerSecond) * 1000 : null
      output.progress({ phase, doneBytes, totalBytes, bytesPerSecond, etaMs })
    },
  }
}

function verifyOptions(invocation: Invocation, given: Given): VerifyDisksOptions {
  return { ...scanOptions(invocation, given), digest: given['digest'] as 'xxh3-128' | 'blake3' }
}

function print({ output, isJson }: Invocation, value: object, text: string): void {
  output.progress(undefined)
  if (isJson) output.json(value)
  else output.say(text)
}

function textOf(result: SyncResult, isDryRun: boolean, verified: VerifyDisksResult | undefined): string {
  const resumed = result.resumedFromOffset > 0 ? `, went on at ${formatBytes(result.resumedFromOffset)}` : ''
  const outcome = isDryRun ? 'nothing was written' : `${formatBytes(result.writtenBytes)} written`
  const lines = [
    `${formatBytes(result.comparedBytes)} compared${resumed}`,
    `${formatBytes(result.differentBytes)} different, ${outcome}`,
  ]
  if (result.isReplicaNew) lines.push(isDryRun ? 'the replica does not exist' : 'the replica was created')
  if (verified) lines.push(digestText(verified))
  return lines.join('\n')
}

function digestText({ digests: { algorithm, source, replica } }: VerifyDisksResult): string {
  return `${algorithm} source  ${source}\n${algorithm} replica ${replica}`
}
