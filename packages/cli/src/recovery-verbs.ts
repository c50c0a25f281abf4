/** The command line of recovery points and failover. */

import type { RecoveryPointChoice } from '@secondsite/engine'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { Invocation, Wire } from './command.js'
import type { ExitCode } from './exit-codes.js'
import { failback } from './failback-command.js'
import {
  failoverCancel,
  failoverChange,
  failoverCommit,
  failoverPrepare,
  failoverServe,
  failoverStart,
} from './failover-command.js'
import { groupList, groupPointList } from './group-command.js'
import { groupCancel, groupChange, groupCommit, groupFailover, groupTest } from './group-failover-command.js'
import { seconds } from './protect-options.js'
import { diff, restore } from './recovery-command.js'
import {
  addPointOptions,
  diskPath,
  GROUP_POINT_TEXT,
  groupPoint,
  type PointGiven,
  POINT_TEXT,
  point,
  pointChoice,
  time,
} from './recovery-options.js'
import {
  points,
  pointsDelete,
  pointsDigest,
  pointsDismiss,
  pointsLock,
  pointsUnlock,
} from './recovery-points-command.js'
import { reverse } from './reverse-command.js'
import { settingsSet, settingsShow } from './settings-command.js'
import { testList, testStart, testStop } from './test-failover-command.js'

type Help = (command: Command) => string

const REPLICA = ['<replica>', 'folder of the replica'] as const
const NBD = ['--nbd <address>', 'where the machine attaches: unix:PATH or tcp:HOST:PORT'] as const
const RUN = ['--run', 'start the machine from the disks, as the failover settings say'] as const
const YES = ['--yes', 'do it; without it, only what would happen is said'] as const

/** Adds the verbs of recovery to the program. */
export function addRecoveryVerbs(program: Command, wire: Wire, help: Help): void {
  addPointsVerbs(program, wire)
  const restored = program
    .command('restore')
    .description('Write the disks of a recovery point into a folder, while replication goes on.')
    .argument(...REPLICA)
    .requiredOption('--to <folder>', 'no file in it is overwritten')
    .option('--verify', 'read what was written again, and compare it with the digest of the point')
  wire(addPointOptions(restored), withPoint(restore as never))
  const compared = program
    .command('diff')
    .description('List what was overwritten between two recovery points.')
    .argument(...REPLICA)
    .requiredOption('--from <point>', POINT_TEXT, point)
    .option('--to <point>', 'default the newest state', point)
  wire(compared, diff as never)
  addTestVerbs(program, wire, help)
  addFailoverVerbs(program, wire, help)
  wire(reverseVerb(program), reverse as never)
  wire(failbackVerb(program), failback as never)
  addGroupVerbs(program, wire, help)
}

function addPointsVerbs(program: Command, wire: Wire): void {
  const listed = program
    .command('points')
    .description(
      'List what a replica can show: recovery points, what was changed between, and what is wrong with them.',
    )
    .argument(...REPLICA)
    .option('--deep', 'check every byte that leads back to a point')
    .option(
      '--around <time>',
      'what was written around a time, write by write, where every write is kept',
      time,
    )
    .option('--span <time>', 'how far around it: 30s, 10m; default 5m', seconds)
    .option('--writes <count>', 'writes listed before and behind it, default 10', wholeNumber)
    .option('--svg <file>', 'draw what was written over time, and how well it compresses')
    .option('--html <file>', 'the same as a page, with the points as a table')
  wire(listed, points as never)
  const numbered = (name: string, description: string): Command =>
    listed
      .command(name)
      .description(description)
      .argument(...REPLICA)
      .argument('<point>', 'a number of `points`', pointNumber)
  const lock = numbered('lock', 'Keep a recovery point: nothing removes it before a time.')
  wire(lock.requiredOption('--until <time>', 'such as 2026-12-24T00:00:00Z', time), pointsLock as never)
  const digest = numbered(
    'digest',
    'Compute the digest of a recovery point over all its disks, and store it.',
  )
  wire(digest, pointsDigest)
  const dismissed = listed
    .command('dismiss')
    .description('Say that what looked like encryption was none: marks go, and such changes count as usual.')
  wire(dismissed.argument(...REPLICA), pointsDismiss)
  const unlock = numbered('unlock', 'Let the rules of the policy hold for a point again.')
  wire(unlock.option(...YES), pointsUnlock as never)
  const removed = numbered('delete', 'Remove a recovery point before the rules do.')
  wire(removed.option(...YES), pointsDelete as never)
}

function pointNumber(text: string): number {
  if (/^\d{1,12}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('It must be a number of `points`.')
}

function wholeNumber(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('A whole number is needed.')
}

type Action = Parameters<Wire>[1]

/** Gives a verb the state that is meant, however it was said, as its option `point`. */
function withPoint(action: Action, initial?: RecoveryPointChoice): Action {
  return (invocation: Invocation, args: string[], options: Record<string, unknown>): Promise<ExitCode> => {
    const chosen = pointChoice(options as PointGiven, initial)
    return action(invocation, args, { ...options, point: chosen })
  }
}

function addTestVerbs(program: Command, wire: Wire, help: Help): void {
  const test = program
    .command('test-failover')
    .description(
      'Prove that a machine comes up, beside replication: its disks as of a point, written to apart.',
    )
  test.copyInheritedSettings(program).addHelpText('after', help(test))
  const started = test
    .command('start')
    .description(
      'Serve disks of a point, or start the machine from them, until this command is stopped; what is written is thrown away.',
    )
    .argument(...REPLICA)
    .option(...NBD)
    .option(...RUN)
    .option('--lifetime <time>', 'end by itself after 30m, 2h', seconds)
  wire(addPointOptions(started), withPoint(testStart as never, 'LatestProcessed'))
  wire(
    test
      .command('list')
      .description('List test failovers.')
      .argument(...REPLICA),
    testList,
  )
  const stopped = test
    .command('stop')
    .description('End a test with its machine, also one whose process is gone, and remove what it wrote.')
  wire(stopped.argument(...REPLICA).argument('<id>', 'as list shows it'), testStop)
}

function addFailoverVerbs(program: Command, wire: Wire, help: Help): void {
  const failover = program
    .command('failover')
    .description('Bring the machine up from its replica: planned, or after a disaster.')
  failover.copyInheritedSettings(program).addHelpText('after', help(failover))
  const prepared = failover
    .command('prepare')
    .description(
      'On the primary, its machine shut down and `protect` ended: send the rest and prove that all is there.',
    )
    .argument('<state>', 'state directory of the primary')
    .argument('<machine>', 'name of the machine')
    .option('--no-verify', 'do not read and compare both sides whole')
  wire(prepared, failoverPrepare as never)
  const started = failover
    .command('start')
    .description(
      'Make the disks of a point writable, and serve them or start the machine from them until this command is stopped.',
    )
    .argument(...REPLICA)
    .option(...NBD)
    .option(...RUN)
    .option('--planned', 'after `failover prepare`: the last state, nothing lost')
    .option('--fence-primary', 'although the primary still replicates: it is refused from then on')
    .option(
      '--reverse',
      'planned, in place of serving: replicate back at once, with the options of `reverse`',
    )
    .option('--state <directory>', 'to reverse: state directory of the side that is active from then on')
    .option('--home <directory>', 'to reverse: folder for the store of the way home, at the former primary')
    .option('--former-state <directory>', 'to reverse: state directory of the former primary')
    .option(
      '--former-disk <name=path>',
      'to reverse without it: where a disk is, or is made; once a disk',
      diskPath,
    )
    .option('--drop-locked', 'to reverse: also give up recovery points that are locked')
    .option(...YES)
  wire(addPointOptions(started), withPoint(failoverStart as never, 'Latest'))
  const served = failover.command('serve').description('Serve the disks of a failover that has begun.')
  wire(
    served
      .argument(...REPLICA)
      .option(...NBD)
      .option(...RUN),
    failoverServe as never,
  )
  const changed = failover
    .command('change-point')
    .description('Begin the failover anew at another point, and serve.')
    .argument(...REPLICA)
    .option(...NBD)
    .option(...RUN)
    .option(...YES)
  wire(addPointOptions(changed), withPoint(failoverChange as never))
  const cancelled = failover.command('cancel').description('End the failover as if it had never been.')
  wire(cancelled.argument(...REPLICA).option(...YES), failoverCancel as never)
  const committed = failover
    .command('commit')
    .description('Make the failover final: recovery points go, the former primary is refused.')
    .argument(...REPLICA)
    .option('--drop-locked', 'also points that are locked')
    .option(...YES)
  wire(committed, failoverCommit as never)
  addSettingsVerbs(failover, wire, help)
}

function addSettingsVerbs(failover: Command, wire: Wire, help: Help): void {
  const settings = failover
    .command('settings')
    .description('What a failover needs besides disks: size, networks, addresses, what starts the machine.')
  settings.copyInheritedSettings(failover).addHelpText('after', help(settings))
  wire(
    settings
      .command('show')
      .description('Show the settings that hold, and where they come from.')
      .argument(...REPLICA),
    settingsShow,
  )
  const set = settings
    .command('set')
    .description('Set them here, above what the primary says.')
    .argument(...REPLICA)
    .argument('[file]', 'settings in YAML or JSON (docs/failover-settings.md)')
    .option('--from-primary', 'take back what was set here')
  wire(set, settingsSet as never)
}

function reverseVerb(program: Command): Command {
  return program
    .command('reverse')
    .description('After a failover: replicate back to the former primary, only what differs.')
    .argument(...REPLICA)
    .requiredOption('--state <directory>', 'state directory of the side that is active now')
    .requiredOption('--home <directory>', 'folder for the store of the way home, at the former primary')
    .option('--former-state <directory>', 'state directory of the former primary')
    .option('--former-disk <name=path>', 'without it: where a disk is, or is made; once a disk', diskPath)
    .addOption(
      new Option(
        '--loser <side>',
        'whose own writes are given up where both sides were written to; kept as logs',
      ).choices(['primary', 'replica']),
    )
    .option('--drop-locked', 'also recovery points that are locked')
    .option(...YES)
}

function failbackVerb(program: Command): Command {
  return program
    .command('failback')
    .description(
      'Bring a machine home that was failed over: reverse, synchronize, finalize, return. Called again, it goes on where it stopped.',
    )
    .argument('<replica>', 'folder of the replica that was failed over')
    .requiredOption('--state <directory>', 'state directory of the side that is active now')
    .requiredOption('--home-state <directory>', 'state directory at home')
    .requiredOption('--home <directory>', 'folder at home for the store of the way home')
    .option(
      '--home-disk <name=path>',
      'other disks at home: old copies, or new ones that are made; once a disk',
      diskPath,
    )
    .addOption(
      new Option(
        '--until <step>',
        'the last step to carry out; synchronize leaves the active side running',
      ).choices(['reverse', 'synchronize', 'finalize', 'return']),
    )
    .option(
      '--return <directory>',
      'folder of the replica that home will have; default that which was failed over',
    )
    .addOption(
      new Option(
        '--loser <side>',
        'give up what the former primary wrote and never sent; kept as logs',
      ).choices(['primary']),
    )
    .option('--drop-locked', 'also recovery points that are locked')
    .option('--no-verify', 'do not read and compare both sides whole before the active side ends')
    .option('--cancel', 'take back what was done after the reversal')
    .option(...YES)
}

const REPLICAS = ['<replicas...>', 'folders of the replicas, one a machine'] as const

function addGroupVerbs(program: Command, wire: Wire, help: Help): void {
  const group = program
    .command('group')
    .description('Consistency groups: machines that share their cuts (docs/groups.md).')
  group.copyInheritedSettings(program).addHelpText('after', help(group))
  const listed = group.command('list').description('List the groups of a primary, their machines and health.')
  wire(listed.argument('<state>', 'state directory of the primary'), groupList)
  const shared = group.command('points').description('List the cuts that all of these replicas can show.')
  wire(shared.argument(...REPLICAS), groupPointList)
  const moved = group
    .command('failover')
    .description('Fail all of them over to one common cut, or none, and serve until this command is stopped.')
    .argument(...REPLICAS)
    .requiredOption('--nbd <folder>', 'folder for sockets: one a machine, MACHINE.sock')
    .option('--point <point>', GROUP_POINT_TEXT, groupPoint, 'LatestMultiVmProcessed' as never)
    .option('--fence-primary', 'although primaries still replicate: they are refused from then on')
    .option(...YES)
  wire(moved, groupFailover as never)
  const changed = group
    .command('change-point')
    .description('Begin the failover of all of them anew at another common cut, and serve.')
    .argument(...REPLICAS)
    .requiredOption('--nbd <folder>', 'folder for sockets: one a machine, MACHINE.sock')
    .option('--point <point>', GROUP_POINT_TEXT, groupPoint, 'LatestMultiVmProcessed' as never)
    .option(...YES)
  wire(changed, groupChange as never)
  const cancelled = group
    .command('cancel')
    .description('End the failover of all of them as if it had never been.')
  wire(cancelled.argument(...REPLICAS).option(...YES), groupCancel as never)
  const committed = group
    .command('commit')
    .description('Make the failover of all of them final; again, it finishes what was begun.')
    .argument(...REPLICAS)
    .option('--drop-locked', 'also points that are locked')
    .option(...YES)
  wire(committed, groupCommit as never)
  const tested = group
    .command('test-failover')
    .description('Serve test copies of all of them as of one common cut until this command is stopped.')
    .argument(...REPLICAS)
    .option('--nbd <folder>', 'folder for sockets: one a machine, MACHINE.sock')
    .option('--point <point>', GROUP_POINT_TEXT, groupPoint, 'LatestMultiVmProcessed' as never)
    .option('--lifetime <time>', 'end by itself after 30m, 2h', seconds)
    .option('--stop', 'end the copies that tests of a group have left, whoever holds them')
  wire(tested, groupTest as never)
}
