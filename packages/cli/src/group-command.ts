/** Consistency groups: what an engine says of its own, and the cuts that replicas share. */

import {
  Engine,
  formatDuration,
  type GroupPoint,
  groupPoints,
  openReplica,
  type Replica,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'
import { timeText } from './recovery-command.js'

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

/** Replicas that are closed together. */
export interface OpenReplicas extends AsyncDisposable {
  readonly list: readonly Replica[]
}

/** Opens all of them, or none. */
export async function openAll(directories: readonly string[]): Promise<OpenReplicas> {
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
