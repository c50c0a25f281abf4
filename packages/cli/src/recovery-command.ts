/** The verbs on the recovery points of a replica: write out, compare. Neither disturbs replication. */

import { formatBytes, openReplica, type RecoveryPointChoice } from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import type { Output } from './output.js'

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
  const disks = await replica.restore(given.point, {
    directory: given.to,
    verify: given.verify ?? false,
    signal,
    onProgress: copying(output, 'restore'),
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

interface CopyProgress {
  readonly disk: string
  readonly doneBytes: number
  readonly totalBytes: number
}

/** Shows the progress of work that goes over one disk after the other. */
export function copying(output: Output, verb: string): (progress: CopyProgress) => void {
  let [name, startedMs] = ['', 0]
  return ({ disk, doneBytes, totalBytes }) => {
    if (disk !== name) [name, startedMs] = [disk, Date.now()]
    const bytesPerSecond = (doneBytes * 1000) / Math.max(1, Date.now() - startedMs)
    const etaMs = doneBytes === 0 ? null : ((totalBytes - doneBytes) * 1000) / bytesPerSecond
    output.progress({ phase: `${verb} ${disk}`, doneBytes, totalBytes, bytesPerSecond, etaMs })
  }
}
