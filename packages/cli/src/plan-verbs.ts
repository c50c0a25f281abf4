/** The command line of recovery plans. */

import { type Command, Option } from 'commander'
import type { Wire } from './command.js'
import { planAbandon, planCheck, planList, planReportVerb } from './plan-command.js'
import { planContinue, planRun } from './plan-run-command.js'

/** Adds `plan` and its verbs to the program. */
export function addPlanVerbs(program: Command, wire: Wire, help: (command: Command) => string): void {
  const plan = program
    .command('plan')
    .description('Recovery plans: machines in groups, brought up in order (docs/plans.md).')
  plan.copyInheritedSettings(program).addHelpText('after', help(plan))
  wire(
    plan
      .command('check')
      .description('Check a plan file whole: every problem with its line and column.')
      .argument('<file>', 'plan in YAML or JSON'),
    planCheck,
  )
  wire(runVerb(plan), planRun)
  wire(continueVerb(plan), planContinue)
  wire(withRuns(plan.command('list').description('List the runs of plans, oldest first.')), planList)
  const report = plan
    .command('report')
    .description('Show what a run has brought: recovery times, points, losses, steps.')
    .argument('<run>', 'name of a run, as list shows it')
    .option('--html <file>', 'write it as a page that prints; the file must not exist')
  wire(withRuns(report), planReportVerb)
  const abandon = plan
    .command('abandon')
    .description('End a run that nobody will continue, so that the plan can be run again. Nothing is undone.')
    .argument('<run>', 'name of a run, as list shows it')
  wire(withRuns(abandon), planAbandon)
}

function runVerb(plan: Command): Command {
  const verb = plan
    .command('run')
    .description(
      'Carry a plan out. What it would do is shown first, and asked about; a Test run makes copies and is not asked about. ' +
        'A process that holds test copies lives until they are removed: a line on its standard input continues the run.',
    )
    .argument('<file>', 'plan in YAML or JSON')
    .addOption(
      new Option('--kind <kind>', 'what it is run as')
        .choices(['test', 'planned', 'unplanned', 'failback'])
        .makeOptionMandatory(),
    )
    .option('--dry-run', 'say what would happen, with sizes and times; nothing is changed')
    .option('--yes', 'do not ask')
  return withRuns(verb)
}

function continueVerb(plan: Command): Command {
  const verb = plan
    .command('continue')
    .description(
      'Go on with a run: after a manual step, which is thereby confirmed, an error, a stop or a crash.',
    )
    .argument('<run>', 'name of a run, as list shows it')
    .addOption(new Option('--redo', 'repeat an action that was cut off').conflicts('skip'))
    .option('--skip', 'take what waits, failed or was cut off as done')
  return withRuns(verb)
}

function withRuns(command: Command): Command {
  return command.option(
    '--runs <directory>',
    'folder of the runs; default "/var/lib/secondsite/plan runs", or below the home folder',
  )
}
