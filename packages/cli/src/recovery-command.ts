/** The verbs on the recovery points of a replica: write out, compare, test. None of them disturbs replication. */

import { formatBytes, openReplica, type RecoveryPointChoice } from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { table } from './output.js'

/** Ranges that `diff` prints of each disk, at most; `--json` prints all. */
const RANGES_SHOWN_MAX = 20

export function timeText(timeMs: number): string {
  return new Date(timeMs).toISOString()
}

/** `restore REPLICA --point POINT --to FOLDER`. */
export async function restore(
  { output, isJson, signal }: Invocation,
  [directory = '']: string[],
  given: { point: RecoveryPointChoice; to: string; verify?: boolean },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const startedMs = Date.now()
  const disks = await replica.restore(given.point, {
    directory: given.to,
    verify: given.verify ?? false,
    signal,
    onProgress: ({ disk, doneBytes, totalBytes }) => {
      const elapsedMs = Math.max(1, Date.now() - startedMs)
      const bytesPerSecond = (doneBytes * 1000) / elapsedMs
      output.progress({ phase: `restore ${disk}`, doneBytes, totalBytes, bytesPerSecond, etaMs: null })
    },
  })
  output.progress(undefined)
  if (isJson) output.json({ disks })
  else for (const { path, sizeBytes } of disks) output.say(`${path}  ${formatBytes(sizeBytes)}`)
  return EXIT.ok
}

/** `diff REPLICA --from POINT [--to POINT]`. */
export async function diff(
  { output, isJson }: Invocation,
  [directory = '']: string[],
  given: { from: RecoveryPointChoice; to?: RecoveryPointChoice },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const disks = await replica.diff(given.from, given.to)
  const changedBytes = disks.reduce((total, disk) => total + disk.changedBytes, 0)
  if (isJson) output.json({ changedBytes, disks })
  else {
    for (const disk of disks) {
      output.say(
        `${disk.disk}: ${formatBytes(disk.changedBytes)} overwritten in ${disk.ranges.length} ranges`,
      )
      for (const { offset, lengthBytes } of disk.ranges.slice(0, RANGES_SHOWN_MAX))
        output.say(`  ${offset}  ${lengthBytes}`)
      const more = disk.ranges.length - RANGES_SHOWN_MAX
      if (more > 0) output.say(`  and ${more} more (--json has all)`)
    }
  }
  return changedBytes === 0 ? EXIT.ok : EXIT.different
}

/** `test-failover start REPLICA --nbd ADDRESS`: serves until it is stopped, then throws away what was written. */
export async function testStart(
  { output, isJson, signal }: Invocation,
  [directory = '']: string[],
  given: { point: RecoveryPointChoice; nbd: string; lifetime?: number },
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  const { lifetime } = given
  const test = await replica.startTestFailover({
    point: given.point,
    ...(lifetime === undefined ? {} : { lifetimeMs: lifetime * 1000 }),
  })
  const nbd = await test.exportNbd({ listen: given.nbd })
  const uris = test.disks.map((disk) => nbd.uri(disk))
  if (isJson) output.json({ test: test.info, uris })
  else output.say([`${test.name} (${test.id}) as of ${timeText(test.info.pointTimeMs)}:`, ...uris].join('\n'))
  await ended(signal, test.info.endsMs)
  await test.stop()
  if (!isJson) output.say(`${test.name} has ended; what it wrote is gone`)
  return EXIT.ok
}

/** Resolves when the command is stopped, or at a time. */
export function ended(signal: AbortSignal, endsMs: number | null = null): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, endsMs === null ? 2 ** 31 - 1 : Math.max(0, endsMs - Date.now()))
    const stop = (): void => {
      clearTimeout(timer)
      resolve()
    }
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop, { once: true })
  })
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
  else
    output.say(
      table(
        ['id', 'name', 'as of', 'started', 'ended'],
        tests.map((test) => [
          test.id,
          test.name,
          timeText(test.pointTimeMs),
          timeText(test.startedMs),
          test.endedMs === null ? '' : timeText(test.endedMs),
        ]),
      ),
    )
  return EXIT.ok
}

/** `test-failover stop REPLICA ID`: removes what a test left behind whose process is gone. */
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
