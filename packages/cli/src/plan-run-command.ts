/**
 * `plan run` and `plan continue`: what would happen, a question, the steps as they come, and the report.
 *
 * Test copies end with the process that made them, so a Test run that waits for somebody is waited for here: a line on the
 * standard input continues it. Everything else that waits ends the process, and is continued by another.
 */

import { createInterface } from 'node:readline'
import {
  continuePlan,
  forecastPlan,
  forecastText,
  type LoadedPlan,
  type PlanForecast,
  type PlanReport,
  type PlanRunEvent,
  type PlanRunKind,
  type PlanRunOptions,
  ReplicaTargets,
  readPlan,
  reportText,
  SecondsiteError,
  startPlan,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { type RunsGiven, runsDirectory } from './plan-command.js'

const KINDS: Readonly<Record<string, PlanRunKind>> = {
  test: 'Test',
  planned: 'Planned',
  unplanned: 'Unplanned',
  failback: 'Failback',
}

interface RunGiven extends RunsGiven {
  readonly kind: string
  readonly dryRun?: boolean
  readonly yes?: boolean
}

/** `plan run FILE --kind KIND`. */
export async function planRun(
  invocation: Invocation,
  [file = '']: string[],
  options: object,
): Promise<ExitCode> {
  const given = options as RunGiven
  const loaded = readPlan(file)
  const kind = KINDS[given.kind] ?? 'Test'
  await using targets = new ReplicaTargets()
  if (given.dryRun)
    return dryRun(invocation, await forecastPlan(loaded, kind, { targets, signal: invocation.signal }))
  if (!given.yes && kind !== 'Test') await ask(invocation, loaded, kind, targets)
  const session = { ...sessionOf(invocation, given), targets }
  // Awaited here, as the copies are held until then.
  return await finish(invocation, await startPlan(loaded, kind, session), session)
}

interface ContinueGiven extends RunsGiven {
  readonly redo?: boolean
  readonly skip?: boolean
}

/** `plan continue RUN [--redo|--skip]`. */
export async function planContinue(
  invocation: Invocation,
  [run = '']: string[],
  given: ContinueGiven,
): Promise<ExitCode> {
  await using targets = new ReplicaTargets()
  const session = { ...sessionOf(invocation, given), targets }
  const decision = given.redo ? 'redo' : given.skip ? 'skip' : undefined
  const report = await continuePlan(run, { ...session, ...(decision && { decision }) })
  return await finish(invocation, report, session)
}

type Session = PlanRunOptions & { readonly targets: ReplicaTargets }

function sessionOf({ output, isJson, signal }: Invocation, given: RunsGiven): Omit<Session, 'targets'> {
  const onEvent = (event: PlanRunEvent): void => {
    if (event.type !== 'step' || isJson) return
    const why = event.error === null ? '' : `  ${event.error.code}: ${event.error.message}`
    output.warn(
      `${new Date(event.atMs).toISOString().slice(11, 19)}  ${event.state.padEnd(11)}  ${event.step.title}${why}`,
    )
  }
  return { directory: runsDirectory(given), signal, onEvent }
}

function dryRun({ output, isJson }: Invocation, forecast: PlanForecast): ExitCode {
  if (isJson) output.json(forecast)
  else output.say(forecastText(forecast).trimEnd())
  return forecast.isReady ? EXIT.ok : EXIT.refused
}

/** Shows what would happen and asks for the plan's name; without a terminal nobody can be asked. */
async function ask(
  { output, signal }: Invocation,
  loaded: LoadedPlan,
  kind: PlanRunKind,
  targets: ReplicaTargets,
): Promise<void> {
  if (!process.stdin.isTTY)
    throw new SecondsiteError('OPTION_OUT_OF_RANGE', {
      message: `nobody can be asked whether to run the plan as ${kind}: say --yes, or look with --dry-run`,
    })
  output.warn(forecastText(await forecastPlan(loaded, kind, { targets, signal })))
  output.warn(`Type the name of the plan, ${loaded.plan.name}, to carry it out:`)
  if ((await lineOfInput(signal)) === loaded.plan.name) return
  throw new SecondsiteError('ABORTED', { message: 'the plan was not carried out; nothing was changed' })
}

/** Continues a Test run while this process holds its copies, and prints the report. */
async function finish(invocation: Invocation, first: PlanReport, session: Session): Promise<ExitCode> {
  const { output, isJson, signal } = invocation
  let report = first
  while (report.state === 'WaitingForInput' && session.targets.heldCopies.length > 0) {
    if (isJson) output.json(report)
    else output.say(reportText(report).trimEnd())
    for (const { name, address } of session.targets.heldCopies)
      output.warn(`${name}: ${address ?? 'not exported'}`)
    output.warn('The test copies end with this process. A line on the standard input continues the run.')
    if ((await lineOfInput(signal)) === undefined) return EXIT.waiting
    report = await continuePlan(report.runId, session)
  }
  if (isJson) output.json(report)
  else output.say(reportText(report).trimEnd())
  return exitCodeOfRun(report)
}

function exitCodeOfRun({ state }: PlanReport): ExitCode {
  if (state === 'Completed') return EXIT.ok
  if (state === 'WaitingForInput') return EXIT.waiting
  return state === 'Aborted' ? EXIT.interrupted : EXIT.failed
}

/** The next line of the standard input; undefined at its end, or when the process is to stop. */
function lineOfInput(signal: AbortSignal): Promise<string | undefined> {
  return new Promise((resolve) => {
    const lines = createInterface({ input: process.stdin, terminal: false })
    const end = (line?: string): void => {
      // First, as closing tells its listener, too.
      resolve(line)
      signal.removeEventListener('abort', stop)
      lines.close()
      process.stdin.pause()
    }
    const stop = (): void => end()
    lines.once('line', end).once('close', stop)
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
  })
}
