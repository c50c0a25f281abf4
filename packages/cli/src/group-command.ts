/** Consistency groups: what an engine says of its own, and failover of replicas to one cut that all of them share. */

import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  chooseGroupPoint,
  Engine,
  formatDuration,
  type GroupFailover,
  type GroupPoint,
  type GroupPointChoice,
  groupPoints,
  openReplica,
  type Replica,
  startGroupFailover,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'
import { ended, timeText } from './recovery-command.js'
import { unconfirmed } from './unconfirmed.js'

/** `group list STATE`: the groups of a primary's engine. */
export async function groupList(
  { output, isJson }: Invocation,
  [stateDirectory = '']: string[],
): Promise<ExitCode> {
  await using engine = await Engine.open({ stateDirectory })
  const groups = await Promise.all(engine.groups.map((group) => group.measure()))
  if (isJson) output.json({ groups })
  else if (groups.length === 0) output.say('no consistency group')
  else
    output.say(
      table(
        ['group', 'health', 'machines', 'newest common cut'],
        groups.map(({ group, health, members, lastPoint }) => [
          group,
          health,
          members.map(({ machine, state }) => `${machine} (${state})`).join(', '),
          lastPoint === null ? 'none' : timeText(lastPoint.cutTimeMs),
        ]),
      ),
    )
  return EXIT.ok
}

/** `group points REPLICA…`: the cuts that all of them can show. */
export async function groupPointList(
  { output, isJson }: Invocation,
  directories: string[],
): Promise<ExitCode> {
  await using replicas = await openAll(directories)
  const points = await groupPoints(replicas.list)
  if (isJson) output.json({ points })
  else if (points.length === 0) output.say('these replicas share no cut')
  else output.say(pointTable(points))
  return points.length === 0 ? EXIT.different : EXIT.ok
}

function pointTable(points: readonly GroupPoint[]): string {
  const rows = points.map(({ groupPointId, cutTimeMs, kind, numbers }) => [
    groupPointId,
    timeText(cutTimeMs),
    formatDuration(Math.max(0, Date.now() - cutTimeMs)),
    kind,
    Object.entries(numbers)
      .map(([machine, number]) => `${machine} ${number}`)
      .join(', '),
  ])
  return table(['group point', 'time', 'age', 'kind', 'points'], rows)
}

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
  const { output, isJson, signal } = invocation
  await using replicas = await openAll(directories)
  const { point, fencePrimary = false } = given
  const outlook = await outlookOf(replicas.list, await chooseGroupPoint(replicas.list, point))
  if (isJson) output.json({ outlook })
  else output.say(outlookText(outlook))
  if (!given.yes) return unconfirmed(invocation, 'nothing was changed: --yes fails all of them over')
  const started = await startGroupFailover(replicas.list, { point, fencePrimary, signal })
  const uris = await serveAll(started, given.nbd)
  if (isJson) output.json({ failedOver: true, groupPointId: started.point.groupPointId, uris })
  else output.say(['failed over; the disks are served at:', ...Object.values(uris).flat()].join('\n'))
  await ended(signal)
  return EXIT.ok
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
async function serveAll({ members }: GroupFailover, folder: string): Promise<Record<string, string[]>> {
  mkdirSync(folder, { recursive: true })
  const uris: Record<string, string[]> = {}
  for (const { machine, failover } of members) {
    const nbd = await failover.exportNbd({ listen: `unix:${join(folder, `${machine}.sock`)}` })
    uris[machine] = failover.disks.map((disk) => nbd.uri(disk))
  }
  return uris
}

/** Replicas that are closed together. */
interface OpenReplicas extends AsyncDisposable {
  readonly list: readonly Replica[]
}

async function openAll(directories: readonly string[]): Promise<OpenReplicas> {
  const list: Replica[] = []
  const close = async (): Promise<void> => {
    for (const replica of list) await replica.close()
  }
  try {
    for (const directory of directories) list.push(await openReplica({ directory }))
  } catch (error) {
    await close()
    throw error
  }
  return { list, [Symbol.asyncDispose]: close }
}
