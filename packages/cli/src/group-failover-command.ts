/** Failover of a consistency group: to one cut that all machines share, its test, another cut, cancel and commit. */

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  cancelGroupFailover,
  changeGroupPoint,
  chooseGroupPoint,
  commitGroupFailover,
  type Failover,
  formatDuration,
  type GroupFailover,
  type GroupPoint,
  type GroupPointChoice,
  type GroupTestFailover,
  type Replica,
  SecondsiteError,
  startGroupFailover,
  startGroupTestFailover,
  stopGroupTestFailover,
  type TestFailover,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { openAll } from './group-command.js'
import { table } from './output.js'
import { timeText } from './recovery-command.js'
import { untilOver } from './run-command.js'
import { unconfirmed } from './unconfirmed.js'
import { wrongUse } from './wrong-use.js'

/** What `group failover` is given. */
export interface GroupFailoverGiven {
  readonly point: GroupPointChoice
  readonly nbd: string
  readonly fencePrimary?: boolean
  readonly yes?: boolean
}

/** `group failover REPLICA… --nbd FOLDER`: explains, or with `--yes` fails all over and serves until it is stopped. */
export async function groupFailover(
  invocation: Invocation,
  directories: string[],
  given: GroupFailoverGiven,
): Promise<ExitCode> {
  const { signal } = invocation
  await using replicas = await openAll(directories)
  const { point, fencePrimary = false } = given
  await explain(invocation, replicas.list, point)
  if (!given.yes) return unconfirmed(invocation, 'nothing was changed: --yes fails all of them over')
  const started = await startGroupFailover(replicas.list, { point, fencePrimary, signal })
  return await serve(invocation, started, given.nbd)
}

async function explain(
  { output, isJson }: Invocation,
  replicas: readonly Replica[],
  point: GroupPointChoice,
): Promise<void> {
  const outlook = await outlookOf(replicas, await chooseGroupPoint(replicas, point))
  if (isJson) output.json({ outlook })
  else output.say(outlookText(outlook))
}

/** The disks stay failed over when the command ends. */
async function serve(
  { output, isJson, signal }: Invocation,
  { point, members }: GroupFailover,
  folder: string,
): Promise<ExitCode> {
  const served = members.map(({ machine, failover }) => ({ machine, served: failover }))
  const uris = await serveAll(served, folder)
  if (isJson) output.json({ failedOver: true, groupPointId: point.groupPointId, uris })
  else output.say(['failed over; the disks are served at:', ...Object.values(uris).flat()].join('\n'))
  await untilAllEnd(
    signal,
    members.map(({ failover }) => failover),
  )
  return EXIT.ok
}

/** Other commands can end what this one serves. */
async function untilAllEnd(
  signal: AbortSignal,
  served: readonly { ended(): Promise<void> }[],
): Promise<void> {
  await untilOver(signal, [Promise.all(served.map((one) => one.ended())).then(() => {})])
}

interface GroupOutlook {
  readonly point: GroupPoint
  /** What each machine would lose if its primary ended now, in milliseconds. */
  readonly members: readonly { readonly machine: string; readonly state: string; readonly lossMs: number }[]
}

async function outlookOf(replicas: readonly Replica[], point: GroupPoint): Promise<GroupOutlook> {
  const members = await Promise.all(
    replicas.map(async (replica) => {
      const machine = await replica.machine()
      const number = point.numbers[machine] ?? 0
      const { state, lossMs } = await replica.explainFailover({ point: number })
      return { machine, state, lossMs }
    }),
  )
  return { point, members }
}

function outlookText({ point, members }: GroupOutlook): string {
  const rows = members.map(({ machine, state, lossMs }) => [
    machine,
    state,
    String(point.numbers[machine] ?? ''),
    formatDuration(lossMs),
  ])
  const head = `all machines would begin with ${timeText(point.cutTimeMs)} (${point.kind})`
  return `${head}\n${table(['machine', 'state of the replica', 'point', 'lost of the past'], rows)}`
}

/** A socket for each machine, named after it. @returns URIs by the name of the machine */
async function serveAll(
  members: readonly { readonly machine: string; readonly served: Failover | TestFailover }[],
  folder: string,
): Promise<Record<string, string[]>> {
  mkdirSync(folder, { recursive: true })
  const uris: Record<string, string[]> = {}
  for (const { machine, served } of members) {
    const nbd = await served.exportNbd({ listen: `unix:${join(folder, `${machine}.sock`)}` })
    uris[machine] = served.disks.map((disk) => nbd.uri(disk))
  }
  return uris
}

/** `group change-point REPLICA… --point POINT --nbd FOLDER`. */
export async function groupChange(
  invocation: Invocation,
  directories: string[],
  given: GroupFailoverGiven,
): Promise<ExitCode> {
  await using replicas = await openAll(directories)
  const { point, yes } = given
  await explain(invocation, replicas.list, point)
  if (!yes)
    return unconfirmed(
      invocation,
      'nothing was changed: --yes throws away what was written since the failover',
    )
  const { signal } = invocation
  return await serve(invocation, await changeGroupPoint(replicas.list, { point, signal }), given.nbd)
}

/** `group cancel REPLICA…`. */
export async function groupCancel(
  invocation: Invocation,
  directories: string[],
  { yes = false }: { readonly yes?: boolean },
): Promise<ExitCode> {
  await using replicas = await openAll(directories)
  if (yes) await cancelGroupFailover(replicas.list)
  await tellMembers(invocation, replicas.list)
  const note = 'nothing was changed: --yes throws away what all of them have written since the failover'
  return yes ? EXIT.ok : unconfirmed(invocation, note)
}

/** `group commit REPLICA…`. */
export async function groupCommit(
  invocation: Invocation,
  directories: string[],
  { yes = false, dropLocked = false }: { readonly yes?: boolean; readonly dropLocked?: boolean },
): Promise<ExitCode> {
  await using replicas = await openAll(directories)
  const { signal } = invocation
  if (yes) await commitGroupFailover(replicas.list, { dropLocked, signal })
  await tellMembers(invocation, replicas.list)
  return yes
    ? EXIT.ok
    : unconfirmed(invocation, 'nothing was changed: --yes drops these recovery points for good')
}

/** Where each of them stands. */
async function tellMembers({ output, isJson }: Invocation, replicas: readonly Replica[]): Promise<void> {
  const members = await Promise.all(
    replicas.map(async (replica) => {
      const [machine, state, points] = [
        await replica.machine(),
        await replica.state(),
        await replica.points(),
      ]
      return { machine, state, pointCount: points.length }
    }),
  )
  const rows = members.map(({ machine, state, pointCount }) => [machine, state, String(pointCount)])
  if (isJson) output.json({ members })
  else output.say(table(['machine', 'state of the replica', 'recovery points'], rows))
}

/** What `group test-failover` is given. */
export interface GroupTestGiven {
  readonly point: GroupPointChoice
  readonly nbd?: string
  /** Seconds. */
  readonly lifetime?: number
  readonly stop?: boolean
}

/** `group test-failover REPLICA… --nbd FOLDER`: serves copies of all until it is stopped; with `--stop` it ends those that are left. */
export async function groupTest(
  invocation: Invocation,
  directories: string[],
  given: GroupTestGiven,
): Promise<ExitCode> {
  const { output, isJson, signal } = invocation
  const { nbd, stop = false, point, lifetime } = given
  if (stop === (nbd !== undefined)) throw servesOrStops()
  await using replicas = await openAll(directories)
  if (nbd === undefined) return await stopTests(invocation, replicas.list)
  const lives = lifetime === undefined ? {} : { lifetimeMs: lifetime * 1000 }
  const started = await startGroupTestFailover(replicas.list, { point, signal, ...lives })
  const uris = await serveAll(servedOf(started.members), nbd)
  const { groupTestId, point: cut } = started
  if (isJson) output.json({ groupTestId, groupPointId: cut.groupPointId, uris })
  else output.say([`copies as of ${timeText(cut.cutTimeMs)}:`, ...Object.values(uris).flat()].join('\n'))
  await untilAllEnd(
    signal,
    started.members.map(({ test }) => test),
  )
  return await stopTests(invocation, replicas.list, groupTestId)
}

async function stopTests(
  { output, isJson }: Invocation,
  replicas: readonly Replica[],
  groupTestId?: string,
): Promise<ExitCode> {
  const stopped = await stopGroupTestFailover(replicas, groupTestId)
  if (isJson) output.json({ stopped })
  else output.say('the copies have ended; what they wrote is gone')
  return EXIT.ok
}

function servedOf(members: GroupTestFailover['members']) {
  return members.map(({ machine, test }) => ({ machine, served: test }))
}

function servesOrStops(): SecondsiteError {
  const range = '--nbd FOLDER to serve copies, or --stop to end those that are left'
  return wrongUse('this needs', 'nbd', range)
}
