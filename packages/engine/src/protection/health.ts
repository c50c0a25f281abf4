/**
 * Health of a machine's replication: the rules of the model, each a line of a table.
 *
 * State is what is now; health is the trend over the monitoring interval. All rules that hold are listed, and health is
 * the worst of them. A resynchronization that is owed is Critical, a running one at least Warning: neither looks normal.
 */

import type { JsonValue } from '../errors.js'
import type { ReplicationHealth, ReplicationState, Side } from '../states.js'
import { DAY_MS, formatDuration, HOUR_MS, MINUTE_MS, SECOND_MS } from '../units.js'
import { averageLatencyMs, type Counters, missedPercent } from './statistics.js'

/** Missed cycles above this share, in percent, are a warning. */
const MISSED_PERCENT_MAX = 20
/** Time without a cycle above this is a warning. */
const SILENCE_MS_MAX = HOUR_MS

/** What health depends on. */
export interface HealthFacts {
  readonly side: Side
  readonly state: ReplicationState
  readonly nowMs: number
  /** When the last cycle was received by the replica; null when none was. */
  readonly lastReceivedMs: number | null
  readonly counters: Counters
  readonly replicationFrequencySeconds: number
  readonly rpoThresholdMinutes: number
  /** Why a resynchronization is owed; null when none is. */
  readonly resyncReason: string | null
  /** Disks that the cuts do not hold for yet; default 0. */
  readonly uncopiedDiskCount?: number
  /** Code of the error that keeps the primary from sending; null when it sends. */
  readonly errorCode: string | null
  /** When the machine was protected; with it, or with the last test failover, the reminder of the next one begins. */
  readonly createdMs?: number
  /** Null before the first test failover; undefined where the replica has not said. */
  readonly lastTestFailoverMs?: number | null | undefined
  /** Days without a test failover that are too many; 0, the default, for any number. */
  readonly testFailoverReminderDays?: number
}

/** One rule that holds. */
export interface HealthDetail {
  readonly code: HealthCode
  readonly health: ReplicationHealth
  readonly params: Readonly<Record<string, JsonValue>>
  /** For people; may change. */
  readonly text: string
}

/** The worst of all rules that hold, and all of them. */
export interface HealthReport {
  readonly health: ReplicationHealth
  readonly details: readonly HealthDetail[]
}

/** Names of the rules. */
export type HealthCode =
  | 'RESYNC_REQUIRED'
  | 'RESYNC_RUNNING'
  | 'REPLICATION_ERROR'
  | 'CANNOT_SEND'
  | 'PAUSED'
  | 'INITIAL_REPLICATION_INCOMPLETE'
  | 'FAILED_OVER'
  | 'CYCLES_MISSED'
  | 'RPO_EXCEEDED'
  | 'NOT_REPLICATED_FOR_LONG'
  | 'LATENCY_HIGH'
  | 'LOGS_COALESCED'
  | 'QUIESCE_FAILED'
  | 'TEST_FAILOVER_DUE'
  | 'ENCRYPTION_SUSPECTED'
  | 'EXPIRY_FAILED'

type Finding = Omit<HealthDetail, 'code'>
type Rule = (facts: HealthFacts) => Finding | null

const RULES: readonly (readonly [HealthCode, Rule])[] = [
  ['RESYNC_REQUIRED', resyncRequired],
  [
    'REPLICATION_ERROR',
    (facts) => inState(facts, ['Error'], 'Critical', 'replication has stopped; somebody must act'),
  ],
  ['CANNOT_SEND', cannotSend],
  ['PAUSED', paused],
  [
    'RESYNC_RUNNING',
    (facts) => inState(facts, ['Resynchronizing'], 'Warning', 'a resynchronization is running'),
  ],
  ['INITIAL_REPLICATION_INCOMPLETE', initialIncomplete],
  ['FAILED_OVER', failedOver],
  ['CYCLES_MISSED', cyclesMissed],
  ['RPO_EXCEEDED', (facts) => silence(facts, facts.rpoThresholdMinutes * MINUTE_MS)],
  ['NOT_REPLICATED_FOR_LONG', (facts) => silence(facts, SILENCE_MS_MAX)],
  ['LATENCY_HIGH', latencyHigh],
  ['LOGS_COALESCED', logsCoalesced],
  ['QUIESCE_FAILED', quiesceFailed],
  ['TEST_FAILOVER_DUE', testFailoverDue],
  ['ENCRYPTION_SUSPECTED', encryptionSuspected],
  ['EXPIRY_FAILED', expiryFailed],
]

const ORDER: readonly ReplicationHealth[] = ['NotApplicable', 'Normal', 'Warning', 'Critical']

/** Applies every rule. A machine without a relationship has no health. */
export function assessHealth(facts: HealthFacts): HealthReport {
  if (facts.state === 'Disabled') return { health: 'NotApplicable', details: [] }
  const details = RULES.flatMap(([code, rule]) => {
    const finding = rule(facts)
    return finding === null ? [] : [{ code, ...finding }]
  })
  return { health: worstHealth(['Normal', ...details.map((detail) => detail.health)]), details }
}

/** The worst of several; a group's health is that of its worst member. */
export function worstHealth(healths: readonly ReplicationHealth[]): ReplicationHealth {
  return healths.reduce(
    (worst, next) => (ORDER.indexOf(next) > ORDER.indexOf(worst) ? next : worst),
    'NotApplicable',
  )
}

function inState(
  facts: HealthFacts,
  states: readonly ReplicationState[],
  health: ReplicationHealth,
  text: string,
): Finding | null {
  return states.includes(facts.state) ? { health, params: { state: facts.state }, text } : null
}

function resyncRequired(facts: HealthFacts): Finding | null {
  const isOwed = facts.state === 'WaitingForStartResynchronize' || facts.state === 'ResynchronizeSuspended'
  if (!isOwed) return null
  const reason = facts.resyncReason ?? 'UNKNOWN'
  return { health: 'Critical', params: { reason }, text: `resynchronization is required: ${reason}` }
}

function cannotSend(facts: HealthFacts): Finding | null {
  if (facts.errorCode === null || facts.state === 'Error') return null
  const code = facts.errorCode
  return { health: 'Critical', params: { code }, text: `the primary cannot send: ${code}` }
}

function paused(facts: HealthFacts): Finding | null {
  const health = facts.side === 'replica' ? 'Critical' : 'Warning'
  return inState(facts, ['Suspended'], health, `the ${facts.side} is paused`)
}

function initialIncomplete(facts: HealthFacts): Finding | null {
  const states = [
    'ReadyForInitialReplication',
    'InitialReplicationInProgress',
    'WaitingForInitialReplication',
  ] as const
  const count = facts.uncopiedDiskCount ?? 0
  const joining = { health: 'Warning' as const, params: { count }, text: `${count} disks are being copied` }
  const finding = inState(facts, states, 'Warning', 'initial replication is not complete')
  return finding ?? (count > 0 ? joining : null)
}

function failedOver(facts: HealthFacts): Finding | null {
  const states = ['FailedOverWaitingCompletion', 'FailedOver', 'FailbackComplete'] as const
  return inState(facts, states, 'Warning', 'failed over and not reversed')
}

function cyclesMissed(facts: HealthFacts): Finding | null {
  const percent = missedPercent(facts.counters)
  if (percent <= MISSED_PERCENT_MAX) return null
  const params = { percent, missed: facts.counters.replicationMissCount }
  return { health: 'Warning', params, text: `${Math.round(percent)} % of the cycles were missed` }
}

function silence(facts: HealthFacts, limitMs: number): Finding | null {
  if (facts.lastReceivedMs === null) return null
  const silentMs = facts.nowMs - facts.lastReceivedMs
  if (silentMs <= limitMs) return null
  return {
    health: 'Warning',
    params: { silentMs, limitMs },
    text: `last replicated ${formatDuration(silentMs)} ago`,
  }
}

function latencyHigh(facts: HealthFacts): Finding | null {
  const averageMs = averageLatencyMs(facts.counters)
  const limitMs = facts.replicationFrequencySeconds * SECOND_MS
  if (averageMs <= limitMs) return null
  const text = `a cycle takes ${formatDuration(averageMs)} on average, longer than its interval`
  return { health: 'Warning', params: { averageMs, limitMs }, text }
}

function logsCoalesced(facts: HealthFacts): Finding | null {
  const { thresholdCoalesceCount } = facts.counters
  if (thresholdCoalesceCount === 0) return null
  const params = { count: thresholdCoalesceCount }
  return { health: 'Warning', params, text: 'logs reached the threshold and had to be coalesced' }
}

function quiesceFailed(facts: HealthFacts): Finding | null {
  const { applicationConsistentFailureCount: count } = facts.counters
  if (count === 0) return null
  const text = `${count} cuts that were to be application-consistent are crash-consistent`
  return { health: 'Warning', params: { count }, text }
}

/** A machine of which nobody knows whether it comes up at the other site looks protected, and may not be. */
function testFailoverDue(facts: HealthFacts): Finding | null {
  const { lastTestFailoverMs, createdMs, testFailoverReminderDays = 0 } = facts
  if (lastTestFailoverMs === undefined || createdMs === undefined || testFailoverReminderDays === 0)
    return null
  const sinceMs = lastTestFailoverMs ?? createdMs
  const days = Math.floor((facts.nowMs - sinceMs) / DAY_MS)
  if (days < testFailoverReminderDays) return null
  const params = { days, lastTestFailoverMs, limitDays: testFailoverReminderDays }
  const text =
    lastTestFailoverMs === null
      ? `no test failover was ever made, ${days} days after the machine was protected`
      : `the last test failover was made ${days} days ago`
  return { health: 'Warning', params, text }
}

function encryptionSuspected(facts: HealthFacts): Finding | null {
  const { encryptionSuspectedCount: count } = facts.counters
  if (count === 0) return null
  const text = 'data looks as if it was being encrypted in place: look at the recovery points before it'
  return { health: 'Warning', params: { count }, text }
}

function expiryFailed(facts: HealthFacts): Finding | null {
  const { expiryFailureCount: count } = facts.counters
  if (count === 0) return null
  const text = 'the replica could not let go of recovery points or kept logs: its disk may fill'
  return { health: 'Warning', params: { count }, text }
}
