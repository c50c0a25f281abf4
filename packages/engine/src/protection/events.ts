/**
 * What happens to machines, as numbered events for people and monitoring: kept in the state database, told to a listener.
 *
 * The numbers of the original are kept where it has one (29174, 29242, 29244, 32315); ours stand above 40000. A number
 * never changes its meaning. The newest {@link EVENTS_KEPT_MAX} are kept.
 */

import type { Clock } from '../clock.js'
import type { ErrorDetails } from '../errors.js'
import type { EventLevel, EventRow } from '../store/state-schema.js'
import type { StateStore } from '../store/state-store.js'
import type { Trigger } from './machine.js'

/** Events kept in the state database. */
export const EVENTS_KEPT_MAX = 10_000
/** How many may come between two removals of old ones. */
const PRUNE_EVERY = 100

/** Something that happened to a machine. */
export interface MachineEvent {
  /** Stable number. */
  readonly id: number
  readonly level: EventLevel
  readonly machine: string
  readonly timeMs: number
  /** For people; may change. */
  readonly text: string
  readonly details: ErrorDetails
}

/** Called for each event. It must not throw: what it throws becomes a warning of the process. */
export type MachineEventListener = (event: MachineEvent) => void

/** Which events {@link EventLog.list} gives. */
export interface EventFilter {
  readonly machine?: string
  /** Unix milliseconds; default all that are kept. */
  readonly sinceMs?: number
  /** The newest so many; default 1000. */
  readonly countMax?: number
}

/** Number, level and text of each. */
export const EVENTS = {
  statisticsInterval: [29174, 'information', 'statistics of the monitoring interval that ended'],
  resyncStarted: [29242, 'information', 'a resynchronization started'],
  resyncFinished: [29244, 'information', 'comparing and sending of a resynchronization finished'],
  healthWarning: [32315, 'warning', 'replication health got worse'],
  enabled: [40001, 'information', 'replication was enabled'],
  initialStarted: [40002, 'information', 'initial replication started'],
  initialComplete: [40003, 'information', 'initial replication is complete'],
  initialCancelled: [40004, 'information', 'initial replication was cancelled'],
  suspended: [40005, 'information', 'replication was paused'],
  resumed: [40006, 'information', 'replication was resumed'],
  resyncRequired: [40007, 'warning', 'a resynchronization is required'],
  resyncCancelled: [40008, 'information', 'a resynchronization was cancelled'],
  disabled: [40009, 'information', 'replication was disabled'],
  stopped: [40010, 'error', 'replication has stopped; somebody must act'],
  failed: [40011, 'warning', 'replication failed and will be tried again'],
  recovered: [40012, 'information', 'replication works again'],
  logsCoalesced: [40013, 'warning', 'logs reached the threshold and were coalesced'],
  diskRecovered: [40014, 'information', 'a disk was recovered after it had not been closed'],
  diskGrown: [40015, 'information', 'a disk has grown'],
  diskShrunk: [40016, 'warning', 'a disk has shrunk, which was accepted'],
  imagesRecreated: [
    40017,
    'warning',
    'images of the replica were lost and are made anew; points without them show less',
  ],
  diskAdded: [40020, 'information', 'a disk joined the machine and is being copied'],
  diskCopied: [40021, 'information', 'a disk that joined is copied: the cuts of the machine hold for it'],
  diskRemoved: [40022, 'information', 'a disk left the machine'],
  quiesced: [40030, 'information', 'an application-consistent cut was made'],
  quiesceFailed: [40031, 'warning', 'applications could not be held at rest; the cut was crash-consistent'],
  thawFailed: [40032, 'error', 'what was frozen for a cut could not be thawed; somebody must act'],
  thawedLate: [40033, 'warning', 'what processes that died had left frozen was thawed'],
  testFailoverDue: [
    40050,
    'warning',
    'no test failover was made for long: nobody knows whether the replica starts',
  ],
  encryptionSuspected: [40060, 'warning', 'data looks as if it was being encrypted in place'],
  expiryFailed: [40061, 'warning', 'the replica could not let go of recovery points or kept logs'],
} as const satisfies Record<string, readonly [number, EventLevel, string]>

/** Name of an event. */
export type EventName = keyof typeof EVENTS

/** The event of a transition; those that are missing have one of their own or none. */
export const EVENT_OF_TRIGGER: Partial<Record<Trigger, EventName>> = {
  startInitialReplication: 'initialStarted',
  initialReplicationComplete: 'initialComplete',
  cancelInitialReplication: 'initialCancelled',
  suspend: 'suspended',
  resume: 'resumed',
  resyncRequired: 'resyncRequired',
  cancelResynchronize: 'resyncCancelled',
  nonRecoverableError: 'stopped',
}

export class EventLog {
  readonly #store: StateStore
  readonly #clock: Clock
  readonly #listener: MachineEventListener | undefined

  constructor(store: StateStore, clock: Clock, listener?: MachineEventListener) {
    this.#store = store
    this.#clock = clock
    this.#listener = listener
  }

  /** Writes an event and tells the listener. */
  async raise(
    { machineId, name: machine }: { readonly machineId: string; readonly name: string },
    event: EventName,
    details: ErrorDetails = {},
  ): Promise<void> {
    const [id, level, text] = EVENTS[event]
    const timeMs = this.#clock.nowMs()
    const row = { machineId, machine, timeMs, id, level, text, detailsJson: JSON.stringify(details) }
    const { insertId } = await this.#store.db.insertInto('events').values(row).executeTakeFirstOrThrow()
    if (Number(insertId) % PRUNE_EVERY === 0) await this.#prune(Number(insertId))
    this.#tell({ id, level, machine, timeMs, text, details })
  }

  /** The events kept, oldest first. */
  async list({ machine, sinceMs = 0, countMax = 1000 }: EventFilter = {}): Promise<MachineEvent[]> {
    const all = this.#store.db.selectFrom('events').selectAll().where('timeMs', '>=', sinceMs)
    const query = machine === undefined ? all : all.where('machine', '=', machine)
    const rows = await query.orderBy('eventId', 'desc').limit(countMax).execute()
    return rows.toReversed().map(eventOf)
  }

  /** The newest event of one kind; undefined when none is kept. */
  async newest(
    { machineId }: { readonly machineId: string },
    event: EventName,
  ): Promise<MachineEvent | undefined> {
    const [id] = EVENTS[event]
    const query = this.#store.db.selectFrom('events').selectAll().where('machineId', '=', machineId)
    const row = await query.where('id', '=', id).orderBy('eventId', 'desc').limit(1).executeTakeFirst()
    return row && eventOf(row)
  }

  async #prune(newest: number): Promise<void> {
    await this.#store.db
      .deleteFrom('events')
      .where('eventId', '<=', newest - EVENTS_KEPT_MAX)
      .execute()
  }

  #tell(event: MachineEvent): void {
    try {
      this.#listener?.(event)
    } catch (error) {
      process.emitWarning(`the event listener threw: ${String(error)}`)
    }
  }
}

function eventOf({ id, level, machine, timeMs, text, detailsJson }: EventRow): MachineEvent {
  return { id, level, machine, timeMs, text, details: JSON.parse(detailsJson) as ErrorDetails }
}
