import { describe, expect, it } from 'vitest'
import { assessHealth, type HealthFacts, worstHealth } from './health.js'
import {
  averageLatencyMs,
  type Counted,
  type Counters,
  count,
  missedCycles,
  missedPercent,
  ZERO_COUNTERS,
} from './statistics.js'

const MINUTE = 60_000
const healthy: HealthFacts = {
  side: 'primary',
  state: 'Replicating',
  nowMs: 1_000 * MINUTE,
  lastReceivedMs: 995 * MINUTE,
  counters: ZERO_COUNTERS,
  replicationFrequencySeconds: 300,
  rpoThresholdMinutes: 60,
  resyncReason: null,
  errorCode: null,
}

function after(...events: Counted[]): Counters {
  return events.reduce(count, ZERO_COUNTERS)
}

const success = (latencyMs: number, sentBytes = 0): Counted => ({ kind: 'success', sentBytes, latencyMs })
const miss: Counted = { kind: 'miss' }

function found(changes: Partial<HealthFacts>): [string, string[]] {
  const report = assessHealth({ ...healthy, ...changes })
  return [report.health, report.details.map((detail) => detail.code)]
}

describe('health', () => {
  it('is Normal when nothing is wrong and not applicable without a relationship', () => {
    expect(found({})).toEqual(['Normal', []])
    expect(found({ state: 'Disabled', errorCode: 'TRANSPORT_FAILED' })).toEqual(['NotApplicable', []])
  })

  const DAY = 24 * 60 * MINUTE
  const young = { createdMs: 0, testFailoverReminderDays: 180, lastReceivedMs: null }
  it.each([
    ['of which the replica has not said', { lastTestFailoverMs: undefined, nowMs: 400 * DAY }, []],
    ['that was never made, on the last day', { lastTestFailoverMs: null, nowMs: 180 * DAY - 1 }, []],
    ['that was never made, too late', { lastTestFailoverMs: null, nowMs: 180 * DAY }, ['TEST_FAILOVER_DUE']],
    ['that was made in time', { lastTestFailoverMs: 250 * DAY, nowMs: 400 * DAY }, []],
    [
      'that was made too long ago',
      { lastTestFailoverMs: 200 * DAY, nowMs: 400 * DAY },
      ['TEST_FAILOVER_DUE'],
    ],
    [
      'that nobody is to be reminded of',
      { lastTestFailoverMs: null, nowMs: 400 * DAY, testFailoverReminderDays: 0 },
      [],
    ],
  ] as const)('knows a test failover %s', (_what, changes, codes) => {
    expect(found({ ...young, ...changes })).toEqual([codes.length > 0 ? 'Warning' : 'Normal', [...codes]])
  })

  it.each([
    [
      'a resync owed',
      { state: 'WaitingForStartResynchronize', resyncReason: 'LOG_THRESHOLD' },
      'Critical',
      'RESYNC_REQUIRED',
    ],
    ['a resync paused', { state: 'ResynchronizeSuspended' }, 'Critical', 'RESYNC_REQUIRED'],
    ['a resync running', { state: 'Resynchronizing' }, 'Warning', 'RESYNC_RUNNING'],
    ['the error state', { state: 'Error', errorCode: 'FENCED' }, 'Critical', 'REPLICATION_ERROR'],
    ['a primary that cannot send', { errorCode: 'TRANSPORT_FAILED' }, 'Critical', 'CANNOT_SEND'],
    ['a paused primary', { state: 'Suspended' }, 'Warning', 'PAUSED'],
    ['a paused replica', { state: 'Suspended', side: 'replica' }, 'Critical', 'PAUSED'],
    ['IR not started', { state: 'ReadyForInitialReplication' }, 'Warning', 'INITIAL_REPLICATION_INCOMPLETE'],
    ['IR running', { state: 'InitialReplicationInProgress' }, 'Warning', 'INITIAL_REPLICATION_INCOMPLETE'],
    ['a failover not reversed', { state: 'FailedOver', side: 'replica' }, 'Warning', 'FAILED_OVER'],
    ['one that leads home', { state: 'FailbackComplete', side: 'replica' }, 'Warning', 'FAILED_OVER'],
    [
      'logs coalesced at the threshold',
      { counters: after({ kind: 'coalesced' }) },
      'Warning',
      'LOGS_COALESCED',
    ],
    ['a hook that failed', { counters: after({ kind: 'quiesce-failure' }) }, 'Warning', 'QUIESCE_FAILED'],
  ] as const)('after %s', (_name, changes, health, code) => {
    expect(found(changes)).toEqual([health, [code]])
  })

  it('warns above 20 % of cycles missed, not at it', () => {
    const four = [success(0), success(0), success(0), success(0)]
    expect(found({ counters: after(...four, miss) })).toEqual(['Normal', []])
    expect(found({ counters: after(...four, miss, miss) })).toEqual(['Warning', ['CYCLES_MISSED']])
  })

  it('warns after an hour without a cycle, and sooner when the policy says so', () => {
    expect(found({ lastReceivedMs: 940 * MINUTE })).toEqual(['Normal', []])
    expect(found({ lastReceivedMs: 940 * MINUTE - 1 })).toEqual([
      'Warning',
      ['RPO_EXCEEDED', 'NOT_REPLICATED_FOR_LONG'],
    ])
    expect(found({ rpoThresholdMinutes: 4 })).toEqual(['Warning', ['RPO_EXCEEDED']])
  })

  it('warns when the average cycle outlasts the interval', () => {
    expect(found({ counters: after(success(300_000)) })).toEqual(['Normal', []])
    expect(found({ counters: after(success(300_000), success(300_002)) })).toEqual([
      'Warning',
      ['LATENCY_HIGH'],
    ])
  })

  it('lists all rules that hold and is the worst of them', () => {
    const changes = { state: 'Resynchronizing', errorCode: 'REPLICA_DISK_FULL', lastReceivedMs: 0 } as const
    expect(found(changes)).toEqual([
      'Critical',
      ['CANNOT_SEND', 'RESYNC_RUNNING', 'RPO_EXCEEDED', 'NOT_REPLICATED_FOR_LONG'],
    ])
  })

  it('of a group is that of its worst member', () => {
    expect(worstHealth(['Normal', 'Critical', 'Warning'])).toBe('Critical')
    expect(worstHealth([])).toBe('NotApplicable')
  })
})

describe('counters', () => {
  it('sum up cycles, bytes and errors and keep the maxima', () => {
    const counters = after(
      success(10, 5),
      success(30, 9),
      success(20, 7),
      { kind: 'failure', isNetwork: true },
      { kind: 'failure', isNetwork: false },
    )
    expect(counters).toEqual({
      ...ZERO_COUNTERS,
      replicationSuccessCount: 3,
      replicationFailureCount: 2,
      networkFailureCount: 1,
      replicationSizeBytes: 21,
      replicationSizeBytesMax: 9,
      replicationLatencyMs: 60,
      replicationLatencyMsMax: 30,
    })
    expect(averageLatencyMs(counters)).toBe(20)
  })

  it('divide by nothing without harm', () => {
    expect([averageLatencyMs(ZERO_COUNTERS), missedPercent(ZERO_COUNTERS)]).toEqual([0, 0])
  })

  it.each([
    [0, 0],
    [299, 0],
    [300, 0],
    [301, 1],
    [600, 1],
    [601, 2],
  ])('a cycle of %s s at 300 s misses %s', (seconds, missed) => {
    expect(missedCycles(seconds * 1000, 300_000)).toBe(missed)
  })
})
