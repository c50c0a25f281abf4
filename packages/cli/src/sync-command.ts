/** The verbs on two disks: sync and verify. */

import {
  digestDisk,
  formatBytes,
  type SyncOptions,
  type SyncResult,
  syncDisks,
  verifyDisks,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'

type Given = Record<string, unknown>

interface Digests {
  readonly algorithm: string
  readonly source: string
  readonly replica: string
}

/** `sync SOURCE REPLICA`. */
export async function sync(invocation: Invocation, args: string[], given: Given): Promise<ExitCode> {
  const [source = '', replica = ''] = args
  const dryRun = given['dryRun'] === true
  const options = { ...optionsOf(invocation, given), dryRun, restart: given['restart'] === true }
  const result = await syncDisks(source, replica, options)
  const digests =
    given['digest'] === undefined ? undefined : await digestsOf(invocation, source, replica, given)
  print(invocation, { dryRun, ...result, ...(digests ? { digests } : {}) }, textOf(result, dryRun, digests))
  return dryRun && result.differentBytes > 0 ? EXIT.different : EXIT.ok
}

/** `verify SOURCE REPLICA [--repair]`. */
export async function verify(invocation: Invocation, args: string[], given: Given): Promise<ExitCode> {
  const [source = '', replica = ''] = args
  const options = optionsOf(invocation, given)
  const found = await verifyDisks(source, replica, options)
  const isRepair = given['repair'] === true && found.differentBytes > 0
  const repaired = isRepair ? await verifyDisks(source, replica, { ...options, repair: true }) : undefined
  const digests = await digestsOf(invocation, source, replica, given)
  const equal = digests.source === digests.replica && (isRepair || found.differentBytes === 0)
  const repairedBytes = repaired?.differentBytes ?? 0
  const difference = `${formatBytes(found.differentBytes)} differ, the first at offset ${found.firstDifference}`
  const lines = [found.differentBytes === 0 ? 'equal' : difference]
  if (repaired) lines.push(`repaired ${formatBytes(repairedBytes)}`)
  print(invocation, { equal, repairedBytes, ...found, digests }, [...lines, digestText(digests)].join('\n'))
  return equal ? EXIT.ok : EXIT.different
}

function optionsOf({ output, signal }: Invocation, given: Given): SyncOptions {
  return {
    chunkBytes: given['chunk'] as number,
    threads: given['threads'] as number,
    signal,
    onProgress: (step) => {
      const { doneBytes, totalBytes, bytesPerSecond } = step
      const etaMs = bytesPerSecond > 0 ? ((totalBytes - doneBytes) / bytesPerSecond) * 1000 : null
      output.progress({ doneBytes, totalBytes, bytesPerSecond, etaMs })
    },
  }
}

async function digestsOf(
  { signal }: Invocation,
  source: string,
  replica: string,
  given: Given,
): Promise<Digests> {
  const algorithm = given['digest'] as 'xxh3-128' | 'blake3'
  const options = { digest: algorithm, chunkBytes: given['chunk'] as number, signal }
  const [first, second] = await Promise.all([digestDisk(source, options), digestDisk(replica, options)])
  return { algorithm, source: first, replica: second }
}

function print({ output, isJson }: Invocation, value: object, text: string): void {
  if (isJson) output.json(value)
  else output.say(text)
}

function textOf(result: SyncResult, isDryRun: boolean, digests: Digests | undefined): string {
  const resumed = result.resumedFromOffset > 0 ? `, went on at ${formatBytes(result.resumedFromOffset)}` : ''
  const outcome = isDryRun ? 'nothing was written' : `${formatBytes(result.writtenBytes)} written`
  const lines = [
    `${formatBytes(result.comparedBytes)} compared${resumed}`,
    `${formatBytes(result.differentBytes)} different, ${outcome}`,
  ]
  if (result.isReplicaNew) lines.push('the replica was created')
  if (digests) lines.push(digestText(digests))
  return lines.join('\n')
}

function digestText({ algorithm, source, replica }: Digests): string {
  return `${algorithm} source  ${source}\n${algorithm} replica ${replica}`
}
