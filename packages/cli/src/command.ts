/**
 * The command line: verbs, options, and what becomes of errors. What the verbs do stands in their own files.
 */

import { isSecondsiteError } from '@secondsite/engine'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { demo } from './demo-command.js'
import { EXIT, type ExitCode, exitCodeOf } from './exit-codes.js'
import { logApply, logExport, logShow, logVerify } from './log-command.js'
import { errorObject, type Output } from './output.js'
import { sync, verify } from './sync-command.js'

/** What every verb gets beside its arguments. */
export interface Invocation {
  readonly output: Output
  readonly isJson: boolean
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal
}

type Action = (invocation: Invocation, args: string[], options: Record<string, unknown>) => Promise<ExitCode>

const EXIT_TEXT = `
Exit codes:
  0  done, equal, good        3  refused, nothing changed
  1  different, damaged       4  failed on the way
  2  bad command line       130  interrupted; the same command goes on
`

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
  program.description('Disaster recovery by block replication: synchronize, verify, read change logs.')
  program.addHelpText('after', EXIT_TEXT).exitOverride().showHelpAfterError()
  const wire = (command: Command, action: Action): Command =>
    command
      .option('--json', 'one JSON object on standard output, nothing else')
      .exitOverride()
      .action(async (...given: unknown[]) => finish(await invoke(output, action, given)))
  addDiskVerbs(program, wire)
  addLogVerbs(
    program
      .command('log')
      .description('look at, check, apply and export .hrl logs, genuine Hyper-V ones too'),
    wire,
  )
  const demoVerb = program.command('demo').description('the main job on a real file system, step by step')
  wire(demoVerb.option('--keep', 'keep the folder with disk, replica and state'), demo)
  return program
}

type Wire = (command: Command, action: Action) => Command

function addDiskVerbs(program: Command, wire: Wire): void {
  const syncVerb = program
    .command('sync')
    .description('make REPLICA equal to SOURCE; a killed run continues, a missing replica is created')
    .argument('<source>', 'image or block device')
    .argument('<replica>', 'image or block device of the same size')
    .option('--dry-run', 'say how much differs, write nothing')
    .option('--restart', 'begin at zero instead of going on where a run was interrupted')
    .addOption(digestOption('also print this digest of both sides when done'))
    .addHelpText('after', '\nExample:\n  secondsite sync /srv/vm/web01.raw /mnt/second/web01.raw\n')
  wire(withScanOptions(syncVerb), sync)
  const verifyVerb = program
    .command('verify')
    .description('compare SOURCE and REPLICA; exit code 1 when they differ')
    .argument('<source>', 'image or block device')
    .argument('<replica>', 'image or block device of the same size')
    .option('--repair', 'make the replica equal where it differs, then compare again')
    .addOption(digestOption('algorithm of the digests that are printed').default('blake3'))
    .addHelpText('after', '\nExample:\n  secondsite verify --json a.raw b.raw\n')
  wire(withScanOptions(verifyVerb), verify)
}

function withScanOptions(command: Command): Command {
  return command
    .option(
      '--chunk <bytes>',
      'unit in which differences are counted: a power of two, 4096 to 4194304',
      wholeNumber,
      65_536,
    )
    .option('--threads <count>', 'threads that read and compare, 1 to 64', wholeNumber, 2)
}

function digestOption(text: string): Option {
  return new Option('--digest <algorithm>', text).choices(['xxh3-128', 'blake3'])
}

function addLogVerbs(log: Command, wire: Wire): void {
  const show = log
    .command('show')
    .description('header, entries and damage of a log; exit code 1 when it is damaged')
  wire(show.argument('<file>').option('--entries', 'list every entry'), logShow)
  const check = log
    .command('verify')
    .description('check logs completely, and that several form one chain in the order given')
  wire(check.argument('<files...>'), logVerify)
  const apply = log
    .command('apply')
    .description('apply logs, in order, to an image; all are checked before the first byte is written')
  wire(apply.argument('<files...>', 'logs, and the image last'), logApply)
  const exported = log.command('export').description('write a log as a Hyper-V reader accepts it')
  exported.argument('<file>').argument('<out>')
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
  throw new InvalidArgumentError('a whole number is needed')
}

/** Runs a verb; prints what it throws; Ctrl-C ends it softly. */
async function invoke(output: Output, action: Action, given: readonly unknown[]): Promise<ExitCode> {
  const command = given.at(-1) as Command
  const options = command.opts()
  const isJson = options['json'] === true
  const stop = new AbortController()
  const onInterrupt = (): void => stop.abort()
  process.once('SIGINT', onInterrupt)
  try {
    return await action({ output, isJson, signal: stop.signal }, command.args, options)
  } catch (error) {
    if (!isSecondsiteError(error) && !(error instanceof Error)) throw error
    output.progress(undefined)
    if (isJson) output.json(errorObject(error))
    return reportError(output, error, isJson)
  } finally {
    process.removeListener('SIGINT', onInterrupt)
  }
}

function reportError(output: Output, error: Error, isJson: boolean): ExitCode {
  if (!isSecondsiteError(error)) {
    if (!isJson) output.warn(`error INTERNAL: ${error.stack ?? error.message}`)
    return EXIT.failed
  }
  if (!isJson) output.warn(`error ${error.code}: ${error.message}\nhint: ${error.hint}`)
  return exitCodeOf(error.code)
}
