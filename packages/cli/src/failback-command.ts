/**
 * `failback`: the way home as one verb. Without `--yes` it says what is left to be done, what would be copied and what would be
 * lost; with it, it carries the steps out, and goes on where an earlier call stopped, by whatever that was ended.
 */

import {
  cancelFailback,
  Engine,
  explainFailback,
  FAILBACK_STEPS,
  failback as bringHome,
  type FailbackOutlook,
  type FailbackPlace,
  type FailbackReport,
  type FailbackStep,
  formatBytes,
  openReplica,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { list } from './output.js'
import { protectLine, reverseText } from './reverse-command.js'
import { unconfirmed } from './unconfirmed.js'

/** What `failback` is given. */
export interface FailbackGiven {
  readonly state: string
  readonly homeState: string
  readonly home: string
  readonly homeDisk?: Record<string, string>
  readonly until?: FailbackStep
  readonly return?: string
  readonly loser?: 'primary'
  readonly verify: boolean
  readonly dropLocked?: boolean
  readonly cancel?: boolean
  readonly yes?: boolean
}

const STEP_TEXT: Readonly<Record<FailbackStep, string>> = {
  reverse: 'the active side replicates home',
  synchronize: 'what differs is sent home while the active side runs',
  finalize: 'the active side ends, sends the rest and proves it; the disks are there at home',
  return: 'the disks at home are final, and replicated outward again',
}

/** `failback REPLICA --state DIR --home-state DIR --home DIR`. */
export async function failback(
  invocation: Invocation,
  [directory = '']: string[],
  given: FailbackGiven,
): Promise<ExitCode> {
  await using replica = await openReplica({ directory })
  await using away = await Engine.open({ stateDirectory: given.state })
  await using home = await Engine.open({ stateDirectory: given.homeState })
  const former = given.homeDisk ? { former: { disks: given.homeDisk } } : {}
  const place = { replica, away, home, directory: given.home, ...former }
  if (given.cancel) return await cancel(invocation, place, given.yes ?? false)
  if (given.yes) return await carryOut(invocation, place, given)
  explain(invocation, await explainFailback(place))
  return unconfirmed(invocation, 'nothing was changed: --yes carries the steps out')
}

async function cancel(invocation: Invocation, place: FailbackPlace, isSure: boolean): Promise<ExitCode> {
  if (!isSure)
    return unconfirmed(invocation, 'nothing was changed: --yes throws away what was written at home')
  await cancelFailback(place)
  const { output, isJson } = invocation
  if (isJson) output.json({ cancelled: true })
  else output.say('cancelled; the active side replicates home as before')
  return EXIT.ok
}

function explain({ output, isJson }: Invocation, outlook: FailbackOutlook): void {
  if (isJson) return output.json({ outlook })
  const { next, reverse, copyBytes, activeState, homeState } = outlook
  if (reverse) output.say(reverseText(reverse))
  else
    output.say(
      list([
        ['state of the active side', activeState ?? 'not protected'],
        ['state at home', homeState ?? 'no store'],
        ['copied at most', formatBytes(copyBytes)],
      ]),
    )
  output.say(stepList(next))
}

function stepList(next: FailbackStep | null): string {
  const nextIndex = next === null ? FAILBACK_STEPS.length : FAILBACK_STEPS.indexOf(next)
  const lines = FAILBACK_STEPS.map((step, index) => {
    const mark = index < nextIndex ? 'done' : index === nextIndex ? 'next' : ''
    return `  ${mark.padEnd(5)}${step.padEnd(12)} ${STEP_TEXT[step]}`
  })
  return ['steps:', ...lines].join('\n')
}

async function carryOut(
  { output, isJson, signal }: Invocation,
  place: FailbackPlace,
  given: FailbackGiven,
): Promise<ExitCode> {
  const report = await bringHome({
    ...place,
    signal,
    verify: given.verify,
    dropLocked: given.dropLocked ?? false,
    ...(given.until ? { until: given.until } : {}),
    ...(given.return ? { returnDirectory: given.return } : {}),
    ...(given.loser ? { loser: given.loser } : {}),
    onStep: (step, progress) => {
      output.progress(undefined)
      if (isJson) output.json({ step, progress })
      else if (progress === 'begun') output.say(`${step}: ${STEP_TEXT[step]}`)
    },
    onProgress: ({ phase, doneBytes, totalBytes, bytesPerSecond, etaMs }) =>
      output.progress({ phase, doneBytes, totalBytes, bytesPerSecond, etaMs }),
  })
  output.progress(undefined)
  if (isJson) output.json(jsonOf(report))
  else output.say(reportText(report, place, given))
  return EXIT.ok
}

/** The machine as data. */
function jsonOf({ protected: home, ...report }: FailbackReport): object {
  const shown = home && { state: home.state, disks: home.diskPaths, replica: home.replicaDirectory }
  return { ...report, protected: shown }
}

function reportText(report: FailbackReport, { away }: FailbackPlace, given: FailbackGiven): string {
  const { machine, next, sentBytes, provenBytes, lostLogs, protected: home } = report
  const proof = provenBytes === 0 ? '' : `, ${formatBytes(provenBytes)} proven equal`
  const lines = [`${machine}: ${formatBytes(sentBytes)} sent home${proof}`]
  const active = away.machines.find((one) => one.name === machine)
  if (home) lines.push('it is at home; start it with:', `  ${protectLine(home, given.homeState)}`)
  else if (next === 'return') lines.push(`its disks: secondsite failover serve ${given.home} --nbd ADDRESS`)
  else if (active) lines.push('it can run on there with:', `  ${protectLine(active, given.state)}`)
  if (next) lines.push(stepList(next))
  return [...lines, ...lostLogs.map((path) => `given up, kept: ${path}`)].join('\n')
}
