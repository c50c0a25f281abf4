/**
 * The state machine of a relationship: one table of rows, one pure function over it.
 *
 * A row says: on this side, from these states, this verb or event leads to that state. What is in no row is refused
 * with INVALID_STATE and changes nothing. `when` tells apart the cells that depend on whether initial replication is over
 * (after a pause or an error, replication goes on where it was), and on whether a failover leads home; of rows that fit, the
 * first one counts. Verbs are asked for by somebody; events happen.
 * The replica side has events of its own for the resync states, which both sides report.
 *
 * A failover that is cancelled leads back to where it came from, which is a fact like the one about initial replication.
 * docs/state-machine.md is rendered from this table.
 */

import { SecondsiteError } from '../errors.js'
import type { ReplicationState, Side } from '../states.js'

/** What an operator or a program may ask for. */
export const VERBS = [
  'enable',
  'startInitialReplication',
  'cancelInitialReplication',
  'suspend',
  'resume',
  'resynchronize',
  'cancelResynchronize',
  'prepareFailover',
  'startFailover',
  'startTestFailover',
  'changeRecoveryPoint',
  'cancelFailover',
  'commitFailover',
  'reverseReplication',
  'failback',
  'finalizeFailback',
  'disable',
] as const

/** What happens by itself. */
export const EVENTS = [
  'initialReplicationComplete',
  'resyncRequired',
  'windowOpens',
  'resyncStarted',
  'resyncSuspended',
  'resyncCancelled',
  'resyncComplete',
  'nonRecoverableError',
  'replicaFailedOver',
  'replicaReversed',
  'failoverStarted',
] as const

/** A verb of the state machine. */
export type Verb = (typeof VERBS)[number]
/** Anything that can move a state. */
export type Trigger = Verb | (typeof EVENTS)[number]

/** What a row may depend on besides the state. */
export type Condition = 'initialReplicationOpen' | 'initialReplicationDone' | 'failback'

/** Where a cancelled failover leads: the state in which it began. */
export const STATE_BEFORE = 'StateBefore'

/** A row of the table. */
export interface Row {
  readonly side: Side
  readonly from: readonly ReplicationState[]
  readonly on: Trigger
  readonly to: ReplicationState | typeof STATE_BEFORE
  readonly when?: Condition
}

const D = 'Disabled'
const RI = 'ReadyForInitialReplication'
const IP = 'InitialReplicationInProgress'
const WI = 'WaitingForInitialReplication'
const R = 'Replicating'
const S = 'Suspended'
const E = 'Error'
const WR = 'WaitingForStartResynchronize'
const RS = 'Resynchronizing'
const RX = 'ResynchronizeSuspended'
const PF = 'PreparedForFailover'
const RP = 'RecoveryInProgress'
const FW = 'FailedOverWaitingCompletion'
const FO = 'FailedOver'
const FB = 'FailbackInProgress'
const FC = 'FailbackComplete'

/** A test runs beside replication and does not change it; of older points also while a resynchronization runs. */
const TEST_ROWS: readonly Row[] = ([R, S, E, WR, RS, RX] as const).map(
  (state): Row => ({ side: 'replica', on: 'startTestFailover', from: [state], to: state }),
)

/** The table. */
export const STATE_TABLE: readonly Row[] = [
  { side: 'primary', on: 'enable', from: [D], to: RI },
  { side: 'primary', on: 'startInitialReplication', from: [RI], to: IP },
  { side: 'primary', on: 'cancelInitialReplication', from: [IP], to: RI },
  { side: 'primary', on: 'cancelInitialReplication', from: [S], to: RI, when: 'initialReplicationOpen' },
  { side: 'primary', on: 'suspend', from: [IP, R, E], to: S },
  { side: 'primary', on: 'suspend', from: [RS], to: RX },
  { side: 'primary', on: 'resume', from: [S, E], to: R, when: 'initialReplicationDone' },
  { side: 'primary', on: 'resume', from: [S, E], to: IP, when: 'initialReplicationOpen' },
  { side: 'primary', on: 'resume', from: [WR, RX], to: RS },
  { side: 'primary', on: 'resynchronize', from: [R, S, E, WR, RX], to: RS },
  { side: 'primary', on: 'cancelResynchronize', from: [RS, RX], to: WR },
  { side: 'primary', on: 'prepareFailover', from: [R], to: PF },
  { side: 'primary', on: 'cancelFailover', from: [PF], to: R },
  // Its disks go on as a replica of the new primary: this row ends, one of the replica side begins.
  { side: 'primary', on: 'reverseReplication', from: [PF], to: D },
  { side: 'primary', on: 'disable', from: [RI, IP, R, S, E, WR, RS, RX, PF], to: D },
  { side: 'primary', on: 'initialReplicationComplete', from: [IP], to: R },
  { side: 'primary', on: 'resyncRequired', from: [IP, R, S, E, RS], to: WR },
  { side: 'primary', on: 'windowOpens', from: [WR], to: RS },
  { side: 'primary', on: 'resyncComplete', from: [RS], to: R },
  { side: 'primary', on: 'nonRecoverableError', from: [IP, R, RS], to: E },
  { side: 'primary', on: 'replicaFailedOver', from: [R], to: E },
  { side: 'primary', on: 'replicaReversed', from: [IP, R, S, E, WR, RS, RX], to: D },

  { side: 'replica', on: 'enable', from: [D], to: WI },
  { side: 'replica', on: 'suspend', from: [R], to: S },
  { side: 'replica', on: 'resume', from: [S, E], to: R },
  { side: 'replica', on: 'startFailover', from: [R, S, E, WR, RS, RX], to: RP },
  ...TEST_ROWS,
  { side: 'replica', on: 'failoverStarted', from: [RP], to: FC, when: 'failback' },
  { side: 'replica', on: 'failoverStarted', from: [RP], to: FW },
  { side: 'replica', on: 'changeRecoveryPoint', from: [FW], to: FW },
  { side: 'replica', on: 'cancelFailover', from: [RP, FW], to: STATE_BEFORE },
  // At home, once the pair is reversed: data flows while the active side runs, then that is stopped and brings the rest.
  { side: 'replica', on: 'failback', from: [R], to: FB },
  { side: 'replica', on: 'finalizeFailback', from: [FB], to: RP },
  { side: 'replica', on: 'cancelFailover', from: [FB, FC], to: R },
  { side: 'replica', on: 'commitFailover', from: [FW, FC], to: FO },
  // The replica becomes a primary: this row ends, one of the primary side begins. From FW it counts as the commit.
  { side: 'replica', on: 'reverseReplication', from: [FW, FO], to: D },
  { side: 'replica', on: 'disable', from: [WI, R, S, E, WR, RS, RX, FW, FO, FB, FC], to: D },
  { side: 'replica', on: 'initialReplicationComplete', from: [WI], to: R },
  { side: 'replica', on: 'resyncRequired', from: [WI, R, S, E, RS], to: WR },
  { side: 'replica', on: 'resyncStarted', from: [WI, R, S, E, WR, RX], to: RS },
  { side: 'replica', on: 'resyncSuspended', from: [RS], to: RX },
  { side: 'replica', on: 'resyncCancelled', from: [RS, RX], to: WR },
  { side: 'replica', on: 'resyncComplete', from: [RS], to: R },
  { side: 'replica', on: 'nonRecoverableError', from: [R, RS], to: E },
]

/** What {@link transition} must know besides the state. */
export interface Facts {
  /** Whether initial replication has ended once for this relationship. */
  readonly isInitialReplicationDone: boolean
  /** Where a failover that may be cancelled began. */
  readonly stateBefore?: ReplicationState
}

/** The answer of the state machine. */
export type Transition =
  | { readonly isAllowed: true; readonly next: ReplicationState }
  | {
      readonly isAllowed: false
      readonly code: 'INVALID_STATE'
      /** The verbs that the present state takes. */
      readonly allowedVerbs: readonly Verb[]
    }

/** Where `trigger` leads from `state`, or the refusal. Pure: nothing is changed by asking. */
export function transition(side: Side, state: ReplicationState, trigger: Trigger, facts: Facts): Transition {
  const row = findRow(side, state, trigger, facts)
  const next = row?.to === STATE_BEFORE ? facts.stateBefore : row?.to
  if (next !== undefined) return { isAllowed: true, next }
  return { isAllowed: false, code: 'INVALID_STATE', allowedVerbs: allowedVerbs(side, state, facts) }
}

/** The verbs that `state` takes, in the order of {@link VERBS}. */
export function allowedVerbs(side: Side, state: ReplicationState, facts: Facts): readonly Verb[] {
  return VERBS.filter((verb) => findRow(side, state, verb, facts) !== undefined)
}

/**
 * The state that follows, for those who cannot go on without it.
 * @throws {INVALID_STATE} with the machine, the state and the verbs it takes; nothing has changed
 */
export function requireTransition(
  side: Side,
  state: ReplicationState,
  trigger: Trigger,
  facts: Facts,
  machine: string,
): ReplicationState {
  const answer = transition(side, state, trigger, facts)
  if (answer.isAllowed) return answer.next
  const allowed = answer.allowedVerbs.length === 0 ? 'nothing' : answer.allowedVerbs.join(', ')
  throw new SecondsiteError(answer.code, {
    message: `${trigger} is not possible on ${machine} while its state is ${state}; possible: ${allowed}`,
    details: { machine, side, state, trigger, allowedVerbs: answer.allowedVerbs },
  })
}

function findRow(side: Side, state: ReplicationState, trigger: Trigger, facts: Facts): Row | undefined {
  return STATE_TABLE.find(
    (row) => row.side === side && row.on === trigger && row.from.includes(state) && holds(row.when, facts),
  )
}

function holds(condition: Condition | undefined, { isInitialReplicationDone, stateBefore }: Facts): boolean {
  switch (condition) {
    case undefined:
      return true
    case 'failback':
      return stateBefore === FB
    case 'initialReplicationDone':
      return isInitialReplicationDone
    case 'initialReplicationOpen':
      return !isInitialReplicationDone
  }
}
