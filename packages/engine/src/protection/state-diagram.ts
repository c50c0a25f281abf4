/**
 * docs/state-machine.md and the picture of a failover in the README, rendered from the state table so that picture and
 * program cannot part.
 */

import { type Condition, EVENTS, type Row, STATE_BEFORE, STATE_TABLE, VERBS } from './machine.js'
import type { ReplicationState, Side } from '../states.js'

/** The whole document. */
export function stateMachineMarkdown(): string {
  return [
    '# State machine of a relationship',
    '',
    'Rendered from `packages/engine/src/protection/machine.ts`; do not edit. A verb that has no arrow from a state is refused',
    'there with `INVALID_STATE` (32775) and changes nothing. StateBefore is the state in which the failover began.',
    '',
    ...section('primary', 'Primary side'),
    ...section('replica', 'Replica side'),
  ].join('\n')
}

/** The diagram of one side in Mermaid's notation. */
export function mermaid(side: Side): string {
  const arrows = rowsOf(side).flatMap((row) =>
    row.from.map((from) => `  ${from} --> ${row.to}: ${label(row)}`),
  )
  return ['stateDiagram-v2', '  direction LR', '  [*] --> Disabled', ...arrows].join('\n')
}

const LIFECYCLE: readonly string[] = [
  'prepareFailover',
  'startFailover',
  'failoverStarted',
  'changeRecoveryPoint',
  'cancelFailover',
  'commitFailover',
  'reverseReplication',
  'failback',
  'finalizeFailback',
]

/** The way from a machine that replicates through a failover and back, of both sides, in Mermaid's notation. */
export function lifecycleMermaid(): string {
  const rows = STATE_TABLE.filter((row) => LIFECYCLE.includes(row.on))
  // A disaster may be met in any state; the picture shows it from the one that all is well in.
  const states = new Set<string>(['Replicating', ...rows.map((row) => row.to)])
  const arrows = rows.flatMap((row) => row.from.filter((from) => states.has(from)).map(arrowOf(row)))
  return ['stateDiagram-v2', '  direction LR', '  [*] --> Replicating', ...arrows].join('\n')
}

/** The end of one role is the beginning of the other; the picture goes on there. */
function arrowOf(row: Row): (from: ReplicationState) => string {
  const isReversal = row.on === 'reverseReplication'
  const to = isReversal || row.to === STATE_BEFORE ? 'Replicating' : row.to
  return (from) => `  ${from} --> ${to}: ${label(row)}, ${isReversal ? 'roles change' : row.side}`
}

function section(side: Side, title: string): string[] {
  return [`## ${title}`, '', '```mermaid', mermaid(side), '```', '', ...matrix(side), '']
}

function matrix(side: Side): string[] {
  const states = [...new Set(rowsOf(side).flatMap((row) => row.from))]
  const triggers = [...VERBS, ...EVENTS].filter((trigger) => rowsOf(side).some((row) => row.on === trigger))
  const head = ['from', ...triggers]
  const lines = states.map((state) => [state, ...triggers.map((trigger) => cell(side, state, trigger))])
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`)
}

function cell(side: Side, state: ReplicationState, trigger: string): string {
  const rows = rowsOf(side).filter((row) => row.on === trigger && row.from.includes(state))
  return rows.length === 0 ? '–' : rows.map((row) => row.to + condition(row)).join(', ')
}

function label(row: Row): string {
  return row.on + condition(row)
}

function condition(row: Row): string {
  return row.when === undefined ? '' : ` (${CONDITION_TEXT[row.when]})`
}

const CONDITION_TEXT: Readonly<Record<Condition, string>> = {
  initialReplicationOpen: 'initial replication open',
  initialReplicationDone: 'initial replication done',
  failback: 'of a failback',
}

function rowsOf(side: Side): readonly Row[] {
  return STATE_TABLE.filter((row) => row.side === side)
}
