/** The verbs of test failovers: start one, with its machine or without, list them, stop them. Replication goes on beside. */

import {
  formatDuration,
  openReplica,
  type RecoveryPointChoice,
  type TestFailover,
  type TestFailoverInfo,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'
import { timeText } from './recovery-command.js'
import { requirePlace, runText, untilOver } from './run-command.js'

/** What `test-failover start` is given. */
export interface TestGiven {
  readonly point: RecoveryPointChoice
  readonly nbd?: string
  readonly run?: boolean
  /** Seconds. */
  readonly lifetime?: number
}

/** `test-failover start REPLICA --nbd ADDRESS`: serves until it is stopped, then throws away what was written. */
export async function testStart(
  invocation: Invocation,
  [directory = '']: string[],
  given: TestGiven,
): Promise<ExitCode> {
  requirePlace(given)
  const { output, isJson, signal } = invocation
  await using replica = await openReplica({ directory })
  const { lifetime } = given
  const test = await replica.startTestFailover({
    point: given.point,
    ...(lifetime === undefined ? {} : { lifetimeMs: lifetime * 1000 }),
  })
  const over = [test.ended(), ...(await serveTest(invocation, test, given))]
  await untilOver(signal, over, test.info.endsMs)
  await test.stop()
  if (!isJson) output.say(`${test.name} has ended; what it wrote is gone`)
  return EXIT.ok
}

/** @returns what ends with its machine, if it has one */
async function serveTest(
  { output, isJson }: Invocation,
  test: TestFailover,
  { nbd: listen = '', run: isRun = false }: TestGiven,
): Promise<Promise<void>[]> {
  const head = `${test.name} (${test.id}) as of ${timeText(test.info.pointTimeMs)}`
  if (isRun) {
    const run = await test.run({ listen: listen === '' ? undefined : listen })
    if (isJson) output.json({ test: test.info, run: run.info })
    else output.say(`${head}\n${runText(run.info)}`)
    return [run.ended()]
  }
  const nbd = await test.exportNbd({ listen })
  const uris = test.disks.map((disk) => nbd.uri(disk))
  if (isJson) output.json({ test: test.info, uris })
  else output.say([`${head}:`, ...uris].join('\n'))
  return []
}

/** `test-failover list REPLICA`. */
export async function testList(
  { output, isJson }: Invocation,
  [directory = '']: string[],
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const tests = await replica.testFailovers()
  if (isJson) output.json({ tests })
  else if (tests.length === 0) output.say('no test failover was ever made: make one')
  else {
    output.say(table(['id', 'name', 'as of', 'started', 'ended'], tests.map(testRow)))
    const newestMs = Math.max(...tests.map(({ startedMs }) => startedMs))
    output.say(`the last one was made ${formatDuration(Math.max(0, Date.now() - newestMs))} ago`)
  }
  return EXIT.ok
}

function testRow({ id, name, pointTimeMs, startedMs, endedMs, isHeld, run }: TestFailoverInfo): string[] {
  const state = isHeld ? (run === null ? 'served' : 'runs') : 'left by a process that died: stop it'
  return [id, name, timeText(pointTimeMs), timeText(startedMs), endedMs === null ? state : timeText(endedMs)]
}

/** `test-failover stop REPLICA ID`: ends a test, whoever holds it, and removes what it has left. */
export async function testStop(
  { output, isJson }: Invocation,
  [directory = '', id = '']: string[],
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  await replica.stopTestFailover(id)
  if (isJson) output.json({ stopped: id })
  else output.say(`${id} has ended`)
  return EXIT.ok
}
