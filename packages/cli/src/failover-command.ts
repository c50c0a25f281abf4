/**
 * The verbs of failover. Each says first what it will do and what is lost; what cannot be taken back wants `--yes`.
 */

import {
  Engine,
  type Failover,
  type FailoverOutlook,
  formatBytes,
  openReplica,
  type RecoveryPointChoice,
  type Replica,
  SecondsiteError,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { copying, timeText } from './recovery-command.js'
import { failoverReverse, failoverText, type PlannedGiven } from './failover-reverse-command.js'
import { requirePlace, runText, untilOver } from './run-command.js'
import { unconfirmed } from './unconfirmed.js'

/** `failover prepare STATE MACHINE`: the primary's part of a planned failover. */
export async function failoverPrepare(
  { output, isJson, signal }: Invocation,
  [stateDirectory = '', name = '']: string[],
  given: { verify: boolean },
): Promise<ExitCode> {
  await using engine = await Engine.open({ stateDirectory })
  const report = await engine.machine(name).prepareFailover({
    verify: given.verify,
    signal,
    onProgress: ({ phase, doneBytes, totalBytes, bytesPerSecond, etaMs }) =>
      output.progress({ phase, doneBytes, totalBytes, bytesPerSecond, etaMs }),
  })
  output.progress(undefined)
  if (isJson) output.json({ machine: name, ...report })
  else {
    const proof = report.provenBytes === 0 ? '' : `, ${formatBytes(report.provenBytes)} proven equal`
    output.say(`${name} is prepared: last cut ${timeText(report.cutTimeMs)}${proof}. Nothing is lost.`)
  }
  return EXIT.ok
}

/** Where disks are served, and whether the machine is started from them. */
export interface ServeGiven {
  readonly nbd?: string
  readonly run?: boolean
}

/** What `failover start` is given. */
export interface StartGiven extends ServeGiven {
  readonly point: RecoveryPointChoice
  readonly planned?: boolean
  readonly fencePrimary?: boolean
  readonly yes?: boolean
}

/** `failover start REPLICA --nbd ADDRESS`: explains, or with `--yes` fails over and serves until it is stopped. */
export async function failoverStart(
  invocation: Invocation,
  [directory = '']: string[],
  given: StartGiven & PlannedGiven,
): Promise<ExitCode> {
  if (given.reverse) return failoverReverse(invocation, directory, given)
  requirePlace(given)
  await using replica = await openReplica({ directory })
  const outlook = await replica.explainFailover(given.planned ? 'LatestProcessed' : given.point)
  explain(invocation, outlook)
  if (given.planned) await replica.requirePrepared()
  if (!given.yes) return unconfirmed(invocation, 'nothing was changed: --yes fails over')
  const failover = await replica.startFailover({
    point: given.point,
    kind: given.planned ? 'Planned' : 'Unplanned',
    fencePrimary: given.fencePrimary ?? given.planned ?? false,
    signal: invocation.signal,
  })
  return await serve(invocation, failover, given)
}

function explain({ output, isJson }: Invocation, outlook: FailoverOutlook): void {
  if (isJson) output.json({ outlook })
  else output.say(failoverText(outlook))
}

const TAKEN_AWAY =
  'another command has cancelled or moved the failover; its disks are not served here any more'

/** The disks stay failed over when the command ends; `failover serve` serves them again. */
async function serve(invocation: Invocation, failover: Failover, given: ServeGiven): Promise<ExitCode> {
  const { nbd: listen = '', run = false } = given
  if (run) return await runMachine(invocation, failover, given)
  const { output, isJson, signal } = invocation
  await using nbd = await failover.exportNbd({ listen })
  const uris = failover.disks.map((disk) => nbd.uri(disk))
  if (isJson) output.json({ failedOver: true, uris })
  else output.say(['failed over; the disks are served at:', ...uris].join('\n'))
  const isStopped = await untilOver(signal, [failover.ended()])
  if (!isJson && !isStopped) output.say(TAKEN_AWAY)
  return EXIT.ok
}

/** The machine lives as long as the command; it is shut down before its disks go. */
async function runMachine(
  { output, isJson, signal }: Invocation,
  failover: Failover,
  { nbd: listen }: ServeGiven,
): Promise<ExitCode> {
  const run = await failover.run({ listen })
  if (isJson) output.json({ failedOver: true, run: run.info })
  else output.say(`failed over; ${runText(run.info)}`)
  const isStopped = await untilOver(signal, [run.ended(), failover.ended()])
  const byItself = `${run.info.name} has ended by itself; \`failover serve --run\` starts it again`
  if (!isJson && !isStopped) output.say(failover.isClosed ? TAKEN_AWAY : byItself)
  await failover.stopRun()
  return EXIT.ok
}

/** `failover serve REPLICA --nbd ADDRESS`: serves a failover that has begun, after whatever end of its process. */
export async function failoverServe(
  invocation: Invocation,
  [directory = '']: string[],
  given: ServeGiven,
): Promise<ExitCode> {
  requirePlace(given)
  await using replica = await openReplica({ directory })
  return await serve(invocation, await begun(replica), given)
}

async function begun(replica: Replica): Promise<Failover> {
  const failover = await replica.failover()
  if (failover) return failover
  throw new SecondsiteError('FAILOVER_NOT_FOUND', {
    message: `the replica in ${replica.directory} has not been failed over`,
    details: { path: replica.directory },
  })
}

/** `failover change-point REPLICA --point POINT --nbd ADDRESS`. */
export async function failoverChange(
  invocation: Invocation,
  [directory = '']: string[],
  given: StartGiven,
): Promise<ExitCode> {
  requirePlace(given)
  await using replica = await openReplica({ directory })
  explain(invocation, await replica.explainFailover(given.point))
  if (!given.yes)
    return unconfirmed(
      invocation,
      'nothing was changed: --yes throws away what was written since the failover',
    )
  return await serve(invocation, await replica.changeRecoveryPoint(given.point), given)
}

/** `failover cancel REPLICA`. */
export async function failoverCancel(
  invocation: Invocation,
  [directory = '']: string[],
  given: { yes?: boolean },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  if (!given.yes)
    return unconfirmed(
      invocation,
      'nothing was changed: --yes throws away what was written since the failover',
    )
  await replica.cancelFailover()
  return await say(invocation, replica, 'cancelled; the primary can replicate again (resume it)')
}

/** `failover commit REPLICA`. */
export async function failoverCommit(
  invocation: Invocation,
  [directory = '']: string[],
  given: { yes?: boolean; dropLocked?: boolean },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  if (!given.yes) {
    const count = (await replica.points()).length
    return unconfirmed(invocation, `nothing was changed: --yes drops ${count} recovery points for good`)
  }
  const { output, signal } = invocation
  await replica.commitFailover({
    dropLocked: given.dropLocked ?? false,
    signal,
    onProgress: copying(output, 'commit'),
  })
  output.progress(undefined)
  return await say(invocation, replica, 'committed; recovery points are gone, the former primary is refused')
}

async function say({ output, isJson }: Invocation, replica: Replica, text: string): Promise<ExitCode> {
  const [machine, state] = [await replica.machine(), await replica.state()]
  if (isJson) output.json({ machine, state })
  else output.say(`${machine}: ${text}`)
  return EXIT.ok
}
