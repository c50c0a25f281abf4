/** `reverse`: replication turned round after a failover, or back where the failover is given up. Says first what that means. */

import {
  Engine,
  explainReverse,
  type FormerPrimary,
  formatBytes,
  openReplica,
  type ProtectedMachine,
  reverseReplication,
  type ReverseOutlook,
  type ReverseReport,
  type SideWrites,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { list } from './output.js'
import { timeText } from './recovery-command.js'
import { unconfirmed } from './unconfirmed.js'
import { wrongUse } from './wrong-use.js'

/** What `reverse` is given. */
export interface ReverseGiven {
  readonly state: string
  readonly home: string
  readonly formerState?: string
  readonly formerDisk?: Record<string, string>
  readonly loser?: 'primary' | 'replica'
  readonly dropLocked?: boolean
  readonly yes?: boolean
}

/** `reverse REPLICA --state DIR --home DIR (--former-state DIR | --former-disk NAME=PATH…)`. */
export async function reverse(
  invocation: Invocation,
  [directory = '']: string[],
  given: ReverseGiven,
): Promise<ExitCode> {
  requireFormer(given)
  await using replica = await openReplica({ directory })
  await using home = given.formerState ? await Engine.open({ stateDirectory: given.formerState }) : undefined
  const former: FormerPrimary = home ? { engine: home } : { disks: given.formerDisk ?? {} }
  if (!given.yes) {
    const outlook = await explainReverse(replica, { former, directory: given.home })
    explain(invocation, outlook)
    return unconfirmed(invocation, 'nothing was changed: --yes commits the failover and reverses replication')
  }
  await using engine = await Engine.open({ stateDirectory: given.state })
  const report = await reverseReplication(replica, {
    engine,
    former,
    directory: given.home,
    dropLocked: given.dropLocked ?? false,
    ...(given.loser ? { loser: given.loser } : {}),
  })
  tellReversed(invocation, report)
  return EXIT.ok
}

function explain({ output, isJson }: Invocation, outlook: ReverseOutlook): void {
  if (isJson) output.json({ outlook })
  else output.say(reverseText(outlook))
}

/** What a reversal would do, for people. */
export function reverseText(outlook: ReverseOutlook): string {
  const { state, disks, candidateBytes, undoneBytes, primary, replica, pointCount } = outlook
  return list([
    ['state of the replica', state],
    ...disks.map((disk) => [disk.disk, diskText(disk)] as [string, string]),
    ['compared in all', formatBytes(candidateBytes)],
    ['taken back by the chosen point', formatBytes(undoneBytes)],
    ['written since the failover', writesText(replica)],
    ['lost: former primary alone has', primary === null ? 'cannot be asked' : writesText(primary)],
    ['recovery points dropped', String(pointCount)],
  ])
}

const WHOLE_DISK = { compare: 'the whole disk is compared with', new: 'everything is copied to a new disk' }

function diskText({ method, ranges, bytes, path }: ReverseOutlook['disks'][number]): string {
  if (method !== 'delta') return `${formatBytes(bytes)}: ${WHOLE_DISK[method]}, ${path}`
  return `${formatBytes(bytes)} in ${ranges?.length ?? 0} ranges are compared with ${path}`
}

function writesText({ bytes, firstMs, lastMs }: SideWrites): string {
  const span = firstMs === null || lastMs === null ? '' : `, ${timeText(firstMs)} to ${timeText(lastMs)}`
  return bytes === 0 ? 'nothing' : `up to ${formatBytes(bytes)}${span}`
}

/** What a reversal has brought. */
export function tellReversed(
  { output, isJson }: Invocation,
  { machine, candidateBytes, lostLogs }: ReverseReport,
): void {
  const { name, state, diskPaths: disks, replicaDirectory } = machine
  if (isJson) return output.json({ machine: name, state, disks, candidateBytes, lostLogs })
  output.say(`${name} is replicated from ${disks.join(', ')} to ${replicaDirectory}`)
  output.say(`${formatBytes(candidateBytes)} may differ and are compared; state ${state}`)
  for (const path of lostLogs) output.say(`given up, kept: ${path}`)
}

/** The command that serves a machine of the engine with this state directory. */
export function protectLine({ name, diskPaths, replicaDirectory }: ProtectedMachine, state: string): string {
  const disks = diskPaths.join(' ')
  return `secondsite protect ${disks} --name ${name} --replica ${replicaDirectory} --state ${state} --nbd ADDRESS`
}

/** @throws {OPTION_OUT_OF_RANGE} unless it is said where the former primary is, in one way */
export function requireFormer({
  formerState,
  formerDisk,
}: Pick<ReverseGiven, 'formerState' | 'formerDisk'>): void {
  if ((formerState === undefined) !== (formerDisk === undefined)) return
  const range = '--former-state, or one --former-disk for each disk'
  throw wrongUse('a reversal needs', 'former', range)
}
