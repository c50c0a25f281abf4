/**
 * The command line: verbs, options, and what becomes of errors. What the verbs do stands in their own files.
 */

import { isSecondsiteError } from '@secondsite/engine'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { demo } from './demo-command.js'
import { EXIT, EXIT_TEXT, type ExitCode, exitCodeOf } from './exit-codes.js'
import { EXAMPLES } from './help.js'
import { logApply, logExport, logVerify } from './log-command.js'
import { logShow } from './log-show-command.js'
import { errorText, type Output, PROGRESS_MODES, type ProgressMode } from './output.js'
import { addPlanVerbs } from './plan-verbs.js'
import { protect } from './protect-command.js'
import { collect, seconds, shrinks, words } from './protect-options.js'
import { addRecoveryVerbs } from './recovery-verbs.js'
import { sync, verify } from './sync-command.js'

/** What every verb gets beside its arguments. */
export interface Invocation {
  readonly output: Output
  readonly isJson: boolean
  /** Aborted by Ctrl-C or SIGTERM. */
  readonly signal: AbortSignal
}

type Action = (invocation: Invocation, args: string[], options: Record<string, unknown>) => Promise<ExitCode>

/** Runs a command line. @returns the exit code; errors have been printed */
export async function runCommand(args: readonly string[], output: Output): Promise<ExitCode> {
  let exitCode: ExitCode = EXIT.ok
  const program = programOf(output, (code) => {
    exitCode = code
  })
  try {
    await program.parseAsync([...args], { from: 'user' })
    return exitCode
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode === 0) return EXIT.ok
    if (args.includes('--json')) output.json(usageObject(error.message))
    return EXIT.usage
  }
}

function usageObject(message: string): { error: object } {
  return { error: { code: 'OPTION_OUT_OF_RANGE', message, details: {}, hint: 'See --help.' } }
}

function programOf(output: Output, finish: (code: ExitCode) => void): Command {
  const program = new Command('secondsite')
  program.description(
    'Disaster recovery by block replication: protect disks, recover from any point, come home.',
  )
  program.addHelpText('after', helpOf(program)).exitOverride()
  // Errors and the hint to the help, not the whole help: what was wrong must be in sight.
  program.showHelpAfterError('(--help says more)').configureOutput({ outputError: sayUsage })
  const wire = (command: Command, action: Action): Command =>
    command
      .option('--json', 'one JSON object on standard output, nothing else')
      .copyInheritedSettings(program)
      .addHelpText('after', helpOf(command))
      .action(async (...given: unknown[]) => finish(await invoke(output, action, given)))
  wire(protectVerb(program), protect)
  addDiskVerbs(program, wire)
  addLogVerbs(program, wire)
  addRecoveryVerbs(program, wire, helpOf)
  addPlanVerbs(program, wire, helpOf)
  const demoVerb = program.command('demo').description('the main job on a real file system, step by step')
  demoVerb.option('--keep', 'keep the folder with disk, replica and state')
  wire(demoVerb.addOption(progressOption()), demo)
  return program
}

function helpOf(command: Command): string {
  const parent = command.parent
  const name = parent?.parent ? `${parent.name()} ${command.name()}` : command.name()
  return `${EXAMPLES[name] ?? ''}${EXIT_TEXT}`
}

/** As every error: a code, what was wrong, and a hint, which commander adds. */
function sayUsage(text: string, write: (text: string) => void): void {
  write(text.replace(/^error: /, 'error OPTION_OUT_OF_RANGE: '))
}

/** Gives a verb its action and what every verb has. */
export type Wire = (command: Command, action: Action) => Command

function addDiskVerbs(program: Command, wire: Wire): void {
  const syncVerb = program
    .command('sync')
    .description(
      'Make REPLICA equal to SOURCE, which nobody must write to meanwhile. A replica that is missing is created. ' +
        'A run that was interrupted or killed goes on, unless one of the two was changed since or is a block device.',
    )
    .argument('<source>', 'image or block device')
    .argument('<replica>', 'image or block device of the same size')
    .option('--dry-run', 'say how much differs, write nothing')
    .option('--restart', 'begin at zero instead of going on where a run was interrupted')
    .addOption(digestOption('read both sides again when done, compare and print these digests'))
  wire(withScanOptions(syncVerb), sync)
  const verifyVerb = program
    .command('verify')
    .description('Compare SOURCE and REPLICA, each read once, and print the digests of both.')
    .argument('<source>', 'image or block device')
    .argument('<replica>', 'image or block device of the same size')
    .option('--repair', 'make the replica equal where it differs, then compare again')
    .addOption(digestOption('algorithm of the digests that are printed').default('blake3'))
  wire(withScanOptions(verifyVerb), verify)
}

function protectVerb(program: Command): Command {
  return program
    .command('protect')
    .description(
      'Export the disks of a machine over NBD, copy them to the replica while the guest runs, and keep it up to date until ' +
        'stopped. Started again, after whatever end, it goes on.',
    )
    .argument('<disks...>', 'raw images or block devices; they are cut together')
    .requiredOption('--replica <directory>', 'folder of the replica, on the other site')
    .requiredOption('--nbd <address>', 'where the guest attaches: unix:PATH or tcp:HOST:PORT')
    .option('--every <time>', 'time between cuts: 30s, 5m, 1h', seconds, 30)
    .option('--name <name>', 'name of the machine; default that of its first disk')
    .option(
      '--state <directory>',
      'folder of its state; default /var/lib/secondsite/NAME, or below the home folder',
    )
    .option('--points <count>', 'recovery points kept on the replica, default 0', wholeNumber)
    .option('--points-every <time>', 'time between two of them: 15m, 1h; default 1h', seconds)
    .option('--keep-writes <hours>', 'hours in which any write can be gone back to, default 0', wholeNumber)
    .option('--failover-settings <file>', 'what a failover needs besides disks (docs/failover-settings.md)')
    .option(
      '--application-consistent-every <time>',
      'bring applications to rest for a cut: 1h to 12h',
      seconds,
    )
    .option('--quiesce-agent <socket>', 'by the guest agent: the socket that QEMU listens at for it')
    .option('--quiesce-fsfreeze <mount>', 'by freezing this file system of this computer; once each', collect)
    .option(
      '--quiesce-freeze <command>',
      'by a command: words, or a JSON list of them; with --quiesce-thaw',
      words,
    )
    .option('--quiesce-thaw <command>', 'ends what --quiesce-freeze has begun', words)
    .option('--quiesce-prepare <command>', 'run before, with nothing frozen: a checkpoint', words)
    .option('--quiesce-limit <time>', 'thawed after that, come what may: 1s to 60s, default 10s', seconds)
    .option(
      '--accept-shrink <disk=size>',
      'this disk has become smaller, and is meant to have exactly this size now: os.raw=4GiB; once for each disk',
      shrinks,
    )
    .option(
      '--recreate-images',
      'make images of the replica that were deleted or cut short anew; recovery points lose those disks',
    )
    .option('--threshold <percent>', 'share of a disk that its logs may reach, default 50', wholeNumber)
    .addOption(
      new Option('--flush-mode <mode>', 'what a FLUSH makes durable, default disk').choices(['disk', 'log']),
    )
    .addOption(
      new Option('--compression <codec>', 'default adaptive').choices(['adaptive', 'lz4', 'zstd', 'none']),
    )
    .addOption(
      new Option(
        '--resync <when>',
        'when an owed resynchronization starts, default window (18:30 to 06:00)',
      ).choices(['window', 'now', 'manual']),
    )
    .option('--spin <microseconds>', 'poll for requests before sleeping, 0 to 1000, default 0', wholeNumber)
    .option('--tls-cert <file>', 'certificate chain (PEM); clients without TLS are then refused')
    .option('--tls-key <file>', 'its private key (PEM)')
    .option('--tls-client-ca <file>', 'authority that must have signed the certificates of clients (PEM)')
    .option('--ready-fd <number>', 'file descriptor that gets READY=1 once the guest can attach', wholeNumber)
}

function withScanOptions(command: Command): Command {
  return command
    .option(
      '--chunk <bytes>',
      'unit in which differences are counted: a power of two, 4096 to 4194304',
      wholeNumber,
      65_536,
    )
    .option(
      '--threads <count>',
      'threads that read, compare and copy, 1 to 64 (default: 2, or 1 for a replica that is created)',
      wholeNumber,
    )
    .addOption(progressOption())
}

function progressOption(): Option {
  const text = 'auto: a bar on a terminal; json: one object a line on standard error; none'
  return new Option('--progress <mode>', text).choices(PROGRESS_MODES).default('auto')
}

function digestOption(text: string): Option {
  return new Option('--digest <algorithm>', text).choices(['xxh3-128', 'blake3'])
}

function addLogVerbs(program: Command, wire: Wire): void {
  const log = program
    .command('log')
    .description('Look at, check, apply and export .hrl logs, genuine Hyper-V ones too.')
  log.copyInheritedSettings(program).addHelpText('after', helpOf(log))
  const show = log
    .command('show')
    .description('Show the header of a log, what it holds, and what is wrong with it.')
  wire(
    show
      .argument('<file>')
      .option('--entries', 'list every entry that can be read; with --json, a line each after the report'),
    logShow,
  )
  const check = log
    .command('verify')
    .description('Check logs completely, and that several form one chain in the order given.')
  wire(check.argument('<files...>'), logVerify)
  const apply = log
    .command('apply')
    .description('Apply logs, in order, to an image; all are checked before the first byte is written.')
  wire(apply.argument('<files...>', 'logs, and the image last'), logApply)
  const exported = log.command('export').description('Write a log as a Hyper-V reader accepts it.')
  exported.argument('<file>').argument('<out>', 'must not exist')
  wire(
    exported.requiredOption(
      '--strict',
      'strict [MS-HRL]: no seals, zeros spelled out; the only form there is',
    ),
    logExport,
  )
}

function wholeNumber(text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('A whole number is needed.')
}

/** Runs a verb; prints what it throws; Ctrl-C ends it softly, a second one at once. */
async function invoke(streams: Output, action: Action, given: readonly unknown[]): Promise<ExitCode> {
  const command = given.at(-1) as Command
  // A verb that has verbs of its own takes what both have, wherever it stands in the line.
  const options = command.optsWithGlobals()
  const isJson = options['json'] === true
  const output = streams.showing((options['progress'] ?? 'auto') as ProgressMode)
  const stop = new AbortController()
  const onInterrupt = (): void => stop.abort()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, onInterrupt)
  try {
    return await action({ output, isJson, signal: stop.signal }, command.args, options)
  } catch (error) {
    if (!(error instanceof Error)) throw error
    return reportError(output, error, isJson)
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.removeListener(signal, onInterrupt)
  }
}

function reportError(output: Output, error: Error, isJson: boolean): ExitCode {
  const shown = errorText(error)
  output.progress(undefined)
  if (isJson) output.json({ error: shown })
  const message = isSecondsiteError(error) ? shown.message : (error.stack ?? shown.message)
  output.fail({ ...shown, message })
  return exitCodeOf(shown.code)
}
