/** The command line of recovery plans. */

import type { Command } from 'commander'
import type { Wire } from './command.js'
import { planAbandon, planCheck, planList, planReportVerb } from './plan-command.js'

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

function withRuns(command: Command): Command {
  return command.option(
    '--runs <directory>',
    'folder of the runs; default "/var/lib/secondsite/plan runs", or below the home folder',
  )
}
