/**
 * The entries of a run's journal. Version 1.
 *
 * An entry says what happened; what the run therefore is, run-view makes of them. Entries are never changed or removed.
 */

import { z } from 'zod'
import type { ErrorDetails, JsonValue } from '../errors.js'
import { GROUP_CHOICES } from './group-choice.js'
import { PLAN_RUN_KINDS, planSchema, pointSchema } from './plan.js'

/** Version of what this program writes. */
export const JOURNAL_VERSION = 1

const text = z.string()
const json = z.json() as unknown as z.ZodType<JsonValue>

const errorSchema = z.object({
  code: text,
  message: text,
  details: z.record(text, json) as unknown as z.ZodType<ErrorDetails>,
})

/** Always first: what is run. The plan is kept whole, as its file may have been edited when the run goes on. */
const runSchema = z.object({
  type: z.literal('run'),
  version: z.literal(JOURNAL_VERSION),
  runId: text,
  kind: z.enum(PLAN_RUN_KINDS),
  plan: planSchema,
  /** Where relative paths of the plan start. */
  directory: text,
})

/** A process has begun to work on the run; steps that were in flight before are in flight no more. */
const sessionSchema = z.object({ type: z.literal('session'), operator: text, processId: z.number() })

const startedSchema = z.object({ type: z.literal('started'), step: text })
/** The process of a command runs; `identity` tells it from a later one of the same number. */
const spawnedSchema = z.object({
  type: z.literal('spawned'),
  step: text,
  processId: z.number(),
  identity: text,
})
const doneSchema = z.object({ type: z.literal('done'), step: text, result: json.optional() })
const failedSchema = z.object({ type: z.literal('failed'), step: text, error: errorSchema })
/** Stopped by the signal of the run, in the middle. */
const interruptedSchema = z.object({ type: z.literal('interrupted'), step: text })
/** Not tried, as something that it stands on has failed. */
const blockedSchema = z.object({ type: z.literal('blocked'), step: text, reason: text })
/** A manual step was reached. */
const waitingSchema = z.object({ type: z.literal('waiting'), step: text })
/** Somebody has said what becomes of a step that waited, failed or was cut off. */
const decidedSchema = z.object({
  type: z.literal('decided'),
  step: text,
  decision: z.enum(['confirm', 'redo', 'skip']),
  operator: text,
})
/** What machines got that chose a cut together; it stays so for the whole run. */
const chosenSchema = z.object({
  type: z.literal('chosen'),
  points: z.array(
    z.object({
      machine: text,
      wanted: z.enum(GROUP_CHOICES),
      choice: pointSchema,
      groupId: text.nullable(),
      groupPointId: text.nullable(),
    }),
  ),
})
/** The session is over; the last of a run says how it ended. */
const endedSchema = z.object({
  type: z.literal('ended'),
  outcome: z.enum(['WaitingForInput', 'Failed', 'Aborted', 'Completed', 'CompletedWithErrors', 'Abandoned']),
  operator: text,
})

const entrySchema = z.discriminatedUnion('type', [
  runSchema,
  sessionSchema,
  startedSchema,
  spawnedSchema,
  doneSchema,
  failedSchema,
  interruptedSchema,
  blockedSchema,
  waitingSchema,
  decidedSchema,
  chosenSchema,
  endedSchema,
])

/** An entry with its number and time. */
export const journalEntrySchema = z.intersection(z.object({ n: z.number(), atMs: z.number() }), entrySchema)

/** What is written. */
export type JournalEntry = z.output<typeof entrySchema>
/** What is read: an entry with its number from 0 and its Unix time in milliseconds. */
export type NumberedEntry = z.output<typeof journalEntrySchema>
/** The first entry of every journal. */
export type RunEntry = z.output<typeof runSchema>
/** How a session ended. */
export type SessionOutcome = z.output<typeof endedSchema>['outcome']
/** What somebody decides about a step. */
export type StepDecision = z.output<typeof decidedSchema>['decision']
