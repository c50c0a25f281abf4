/**
 * docs/state-machine.md, rendered from the state table so that picture and program cannot part.
 */

import { type Condition, EVENTS, type Row, STATE_TABLE, VERBS } from './machine.js'
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
