import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { allowedVerbs, EVENTS, requireTransition, type Trigger, transition, VERBS } from './machine.js'
import { stateMachineMarkdown } from './state-diagram.js'
import { parseReplicationState, REPLICATION_STATE, type ReplicationState, type Side } from '../states.js'

const done = { isInitialReplicationDone: true, stateBefore: 'Suspended' } as const
const open = { isInitialReplicationDone: false, stateBefore: 'Suspended' } as const

const NAMES: Record<string, ReplicationState> = {
  D: 'Disabled',
  RI: 'ReadyForInitialReplication',
  IP: 'InitialReplicationInProgress',
  WI: 'WaitingForInitialReplication',
  R: 'Replicating',
  S: 'Suspended',
  E: 'Error',
  WR: 'WaitingForStartResynchronize',
  RS: 'Resynchronizing',
  RX: 'ResynchronizeSuspended',
  PF: 'PreparedForFailover',
  RP: 'RecoveryInProgress',
  FW: 'FailedOverWaitingCompletion',
  FO: 'FailedOver',
  FB: 'FailbackInProgress',
  FC: 'FailbackComplete',
}

// Written by hand from the tables of the model, not from the program. "R/IP": done / still open.
const PRIMARY_VERBS = `
from enable startInitialReplication cancelInitialReplication suspend resume resynchronize cancelResynchronize disable
D    RI     -                       -                        -       -      -             -                   -
RI   -      IP                      -                        -       -      -             -                   D
IP   -      -                       RI                       S       -      -             -                   D
R    -      -                       -                        S       -      RS            -                   D
S    -      -                       -/RI                     -       R/IP   RS            -                   D
E    -      -                       -                        S       R/IP   RS            -                   D
WR   -      -                       -                        -       RS     RS            -                   D
RS   -      -                       -                        RX      -      -             WR                  D
RX   -      -                       -                        -       RS     RS            WR                  D
PF   -      -                       -                        -       -      -             -                   D`

const PRIMARY_FAILOVER = `
from prepareFailover startFailover changeRecoveryPoint cancelFailover commitFailover reverseReplication failback finalizeFailback startTestFailover
D    -               -             -                   -              -              -                  -        -                -
RI   -               -             -                   -              -              -                  -        -                -
IP   -               -             -                   -              -              -                  -        -                -
R    PF              -             -                   -              -              -                  -        -                -
S    -               -             -                   -              -              -                  -        -                -
E    -               -             -                   -              -              -                  -        -                -
WR   -               -             -                   -              -              -                  -        -                -
RS   -               -             -                   -              -              -                  -        -                -
RX   -               -             -                   -              -              -                  -        -                -
PF   -               -             -                   R              -              D                  -        -                -`

const PRIMARY_EVENTS = `
from initialReplicationComplete resyncRequired windowOpens resyncComplete nonRecoverableError replicaFailedOver replicaReversed
D    -                          -              -           -              -                   -              -
RI   -                          -              -           -              -                   -              -
IP   R                          WR             -           -              E                   -              D
R    -                          WR             -           -              E                   E              D
S    -                          WR             -           -              -                   -              D
E    -                          WR             -           -              -                   -              D
WR   -                          -              RS          -              -                   -              D
RS   -                          WR             -           R              E                   -              D
RX   -                          -              -           -              -                   -              D
PF   -                          -              -           -              -                   -              -`

const REPLICA_VERBS = `
from enable suspend resume disable startInitialReplication startTestFailover
D    WI     -       -      -       -                       -
WI   -      -       -      D       -                       -
R    -      S       -      D       -                       R
S    -      -       R      D       -                       S
E    -      -       R      D       -                       E
WR   -      -       -      D       -                       WR
RS   -      -       -      D       -                       RS
RX   -      -       -      D       -                       RX
RP   -      -       -      -       -                       -
FW   -      -       -      D       -                       -
FO   -      -       -      D       -                       -
FB   -      -       -      D       -                       -
FC   -      -       -      D       -                       -`

// The state before is S.
const REPLICA_FAILOVER = `
from startFailover failoverStarted changeRecoveryPoint cancelFailover commitFailover reverseReplication prepareFailover failback finalizeFailback
D    -             -               -                   -              -              -                  -               -        -
WI   -             -               -                   -              -              -                  -               -        -
R    RP            -               -                   -              -              -                  -               FB       -
S    RP            -               -                   -              -              -                  -               -        -
E    RP            -               -                   -              -              -                  -               -        -
WR   RP            -               -                   -              -              -                  -               -        -
RS   RP            -               -                   -              -              -                  -               -        -
RX   RP            -               -                   -              -              -                  -               -        -
RP   -             FW              -                   S              -              -                  -               -        -
FW   -             -               FW                  S              FO             D                  -               -        -
FO   -             -               -                   -              -              D                  -               -        -
FB   -             -               -                   R              -              -                  -               -        RP
FC   -             -               -                   R              FO             -                  -               -        -`

interface Cell {
  side: Side
  from: ReplicationState
  trigger: Trigger
  done: string
  open: string
}

function cells(side: Side, text: string): Cell[] {
  const [head = [], ...lines] = text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
  return lines.flatMap((line) =>
    line.slice(1).map((cell, index) => {
      const [whenDone = '-', whenOpen = whenDone] = cell.split('/')
      const from = NAMES[line[0] ?? ''] ?? 'Unknown'
      return { side, from, trigger: head[index + 1] as Trigger, done: whenDone, open: whenOpen }
    }),
  )
}

const ALL = [
  ...cells('primary', PRIMARY_VERBS),
  ...cells('primary', PRIMARY_EVENTS),
  ...cells('primary', PRIMARY_FAILOVER),
  ...cells('replica', REPLICA_VERBS),
  ...cells('replica', REPLICA_FAILOVER),
]

describe('transition', () => {
  it('has a test for each state and each verb of the primary side', () => {
    const verbs = [...cells('primary', PRIMARY_VERBS), ...cells('primary', PRIMARY_FAILOVER)]
    expect(new Set(verbs.map((cell) => cell.trigger))).toEqual(new Set(VERBS))
    expect(ALL).toHaveLength(10 * 8 + 10 * 7 + 10 * 9 + 13 * 6 + 13 * 9)
    expect(ALL.every((cell) => ([...VERBS, ...EVENTS] as string[]).includes(cell.trigger))).toBe(true)
  })

  it.each(ALL)('$side $from on $trigger leads to $done, or $open before IR is done', (cell) => {
    for (const [facts, expected] of [[done, cell.done] as const, [open, cell.open] as const]) {
      const answer = transition(cell.side, cell.from, cell.trigger, facts)
      expect(answer.isAllowed ? answer.next : answer.code).toBe(
        expected === '-' ? 'INVALID_STATE' : NAMES[expected],
      )
    }
  })

  it('refuses every verb in a state that is not known', () => {
    expect(allowedVerbs('primary', 'Unknown', done)).toEqual([])
    expect(allowedVerbs('replica', 'Unknown', done)).toEqual([])
  })

  it('ends a failover that leads home in a state of its own', () => {
    const home = { ...done, stateBefore: 'FailbackInProgress' } as const
    expect(requireTransition('replica', 'RecoveryInProgress', 'failoverStarted', home, 'web01')).toBe(
      NAMES['FC'],
    )
    expect(requireTransition('replica', 'RecoveryInProgress', 'cancelFailover', home, 'web01')).toBe(
      NAMES['FB'],
    )
  })

  it('shows the resync states of the primary on the replica', () => {
    let state: ReplicationState = 'Replicating'
    const path = (
      [
        'resyncRequired',
        'resyncStarted',
        'resyncSuspended',
        'resyncCancelled',
        'resyncStarted',
        'resyncComplete',
      ] as const
    ).map((trigger) => (state = requireTransition('replica', state, trigger, done, 'web01')))
    expect(path).toEqual(['WR', 'RS', 'RX', 'WR', 'RS', 'R'].map((name) => NAMES[name]))
  })

  it('refuses with the number of the model, the state and what is possible', () => {
    try {
      requireTransition('primary', 'Suspended', 'suspend', done, 'web01')
      expect.unreachable()
    } catch (error) {
      if (!isSecondsiteError(error, 'INVALID_STATE')) throw error
      expect(error.returnCode).toBe(32775)
      expect(error.details).toMatchObject({ machine: 'web01', state: 'Suspended', trigger: 'suspend' })
      expect(error.details.allowedVerbs).toEqual(['resume', 'resynchronize', 'disable'])
    }
  })
})

describe('states', () => {
  it('gives the numbers of the model', () => {
    expect(REPLICATION_STATE).toMatchObject({
      Disabled: 0,
      Replicating: 3,
      Error: 8,
      Resynchronizing: 10,
      FiredrillInProgress: 21,
    })
  })

  it('reads older names and refuses unknown ones', () => {
    expect(parseReplicationState('NotApplicable')).toBe('Disabled')
    expect(parseReplicationState('SyncedReplicationComplete')).toBe('PreparedForFailover')
    expect(parseReplicationState('Error')).toBe('Error')
    expect(parseReplicationState('toString')).toBeUndefined()
  })
})

describe('docs/state-machine.md', () => {
  it('is the table as it is now (vitest -u renders it anew)', async () => {
    await expect(stateMachineMarkdown()).toMatchFileSnapshot('../../../../docs/state-machine.md')
  })
})
