/** `failover settings`: what a failover needs besides disks, shown and set in the folder of the replica. */

import { type HeldSettings, openReplica, readFailoverSettings, SecondsiteError } from '@secondsite/engine'
import { stringify } from 'yaml'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { wrongUse } from './wrong-use.js'

const SOURCE = {
  replica: 'set at the replica; they stand above what the primary says',
  primary: 'said by the primary',
  default: 'nobody has said anything: these are the defaults',
} as const

/** `failover settings show REPLICA`. */
export async function settingsShow(invocation: Invocation, [directory = '']: string[]): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  return await show(invocation, await replica.machine(), await replica.failoverSettings())
}

/** `failover settings set REPLICA FILE`, or `--from-primary` to take back what was set here. */
export async function settingsSet(
  invocation: Invocation,
  [directory = '', file]: string[],
  { fromPrimary = false }: { fromPrimary?: boolean },
): Promise<ExitCode> {
  if ((file === undefined) !== fromPrimary) throw oneOfBoth()
  const settings = file === undefined ? null : readFailoverSettings(file)
  await using replica = await openReplica({ directory })
  return await show(invocation, await replica.machine(), await replica.setFailoverSettings(settings))
}

function show({ output, isJson }: Invocation, machine: string, held: HeldSettings): ExitCode {
  if (isJson) output.json({ machine, ...held })
  else output.say(`# ${machine}: ${SOURCE[held.source]}\n${stringify(held.settings).trimEnd()}`)
  return EXIT.ok
}

function oneOfBoth(): SecondsiteError {
  const range = 'a file, or --from-primary'
  return wrongUse('failover settings set needs', 'file', range)
}
