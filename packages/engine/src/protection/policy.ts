/**
 * The replication policy of a machine: every setting with its range and default.
 *
 * What a caller gives is checked at once and whole, before anything is done with it; each setting out of range is
 * listed with its path, its value and what is allowed. Unknown settings are refused, as a misspelt one would be lost.
 */

import { z } from 'zod'
import { type JsonValue, SecondsiteError } from '../errors.js'
import { quiesceSchema } from '../quiesce/settings.js'
import { failoverSettingsSchema } from '../recovery/failover-settings.js'
import { KIB, MIB } from '../units.js'

/** Intervals of the original, in seconds; others are allowed. */
export const REPLICATION_FREQUENCY_SECONDS = { fast: 30, normal: 300, slow: 900 } as const

const CHUNK_BYTES_MIN = 4 * KIB
const CHUNK_BYTES_MAX = 4 * MIB

/** Setting a smallest, a largest and a default in one line, with a message that names the range. */
function whole(min: number, max: number, initial: number, unit: string) {
  const message = `a whole number of ${unit} from ${min} to ${max}`
  return z.number(message).int(message).min(min, message).max(max, message).default(initial)
}

function words<const Words extends readonly [string, ...string[]]>(list: Words, initial: Words[number]) {
  return z.enum(list, `one of ${list.join(', ')}`).default(initial as never)
}

const toggle = (initial: boolean) => z.boolean('true or false').default(initial)

const timeOfDay = (initial: string) =>
  z
    .string('a time as HH:MM')
    .regex(/^([01]\d|2[0-3]):[0-5]\d$/, 'a time as HH:MM')
    .default(initial)

const timeZone = z
  .string('a time zone as Area/City')
  .refine(isTimeZone, 'a time zone as Area/City')
  .optional()

function isTimeZone(name: string): boolean {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: name }).resolvedOptions().timeZone !== ''
  } catch {
    return false
  }
}

const chunkMessage = `a power of two from ${CHUNK_BYTES_MIN} to ${CHUNK_BYTES_MAX} bytes`

const autoResynchronizeSchema = z
  .strictObject({
    /** Whether a resynchronization that is owed starts by itself; default true. */
    enabled: toggle(true),
    /** Start as soon as one is owed instead of waiting for the window; default false. */
    immediately: toggle(false),
    /** Local time of the source; default 18:30. */
    windowStart: timeOfDay('18:30'),
    /** Local time of the source; earlier than the start means the next day, equal means always. Default 06:00. */
    windowEnd: timeOfDay('06:00'),
    /** IANA name; default the time zone of this computer. */
    timeZone,
  })
  .prefault({})

const coalesceSchema = z
  .strictObject({
    /** Drop what a later write of the same cycle overwrites; default true. */
    enabled: toggle(true),
    /** Percent of a log that coalescing must save to be worth it; default 10. */
    minimumSavingPercent: whole(1, 100, 10, 'percent'),
  })
  .prefault({})

const retentionSchema = z
  .strictObject({
    /** Hours of which the newest point is kept beyond `recoveryPoints`, 0 to 8760; default 0. */
    hourly: whole(0, 8760, 0, 'hours'),
    /** Days of which the newest point is kept, 0 to 3660; default 0. */
    daily: whole(0, 3660, 0, 'days'),
    /** Weeks of which the newest point is kept, 0 to 520; default 0. */
    weekly: whole(0, 520, 0, 'weeks'),
    /** Hours in which nothing removes a point, 0 to 8760; default 0, no lock. */
    lockHours: whole(0, 8760, 0, 'hours'),
  })
  .prefault({})

const keepEveryWriteSchema = z
  .strictObject({
    /** Hours for which the replica keeps received logs, so that any write can be gone back to, 0 to 720; default 0. */
    hours: whole(0, 720, 0, 'hours'),
    /** Bytes that they may take, 0 for no bound; default 0. The oldest go first. */
    bytesMax: whole(0, Number.MAX_SAFE_INTEGER, 0, 'bytes'),
  })
  .prefault({})

const settingsSchema = z.strictObject({
  /** Seconds between cuts, from 1 to 86400; default 300. */
  replicationFrequencySeconds: whole(1, 86_400, REPLICATION_FREQUENCY_SECONDS.normal, 'seconds'),
  /** Percent of a disk that its unacknowledged logs may reach; default 50. */
  resyncThresholdPercent: whole(1, 100, 50, 'percent'),
  /** `coalesce` first at the threshold, or mark for resynchronization at once (`strict`); default `coalesce`. */
  thresholdAction: words(['coalesce', 'strict'], 'coalesce'),
  autoResynchronize: autoResynchronizeSchema,
  /** Recovery points kept on the replica besides its present state, 0 to 1000; default 0. */
  recoveryPoints: whole(0, 1000, 0, 'points'),
  /** Seconds between two recovery points at least, 1 to 604800; default 3600. */
  recoveryPointIntervalSeconds: whole(1, 604_800, 3600, 'seconds'),
  retention: retentionSchema,
  keepEveryWrite: keepEveryWriteSchema,
  /** Unit of comparison; default 65536. */
  chunkBytes: z
    .number(chunkMessage)
    .refine(
      (bytes) => bytes >= CHUNK_BYTES_MIN && bytes <= CHUNK_BYTES_MAX && Number.isInteger(Math.log2(bytes)),
      chunkMessage,
    )
    .default(64 * KIB),
  /** Algorithm of the chunk digests; default `xxh3-128`. */
  digest: words(['xxh3-128', 'blake3'], 'xxh3-128'),
  /** How frames are compressed; default `adaptive`, which probes and sends raw what does not shrink. */
  compression: words(['adaptive', 'lz4', 'zstd', 'none'], 'adaptive'),
  coalesce: coalesceSchema,
  /** What a guest's FLUSH makes durable: log and disk, or the log alone; default `disk`. */
  flushMode: words(['disk', 'log'], 'disk'),
  /** Seconds of one interval of statistics and health, from 3600 to 604800; default 43200. */
  monitoringIntervalSeconds: whole(3600, 604_800, 43_200, 'seconds'),
  /** Local time at which the first interval of a day starts; default 09:00. */
  monitoringStart: timeOfDay('09:00'),
  /** Minutes without a received cycle after which health is Warning; default 60. */
  rpoThresholdMinutes: whole(1, 10_080, 60, 'minutes'),
  /** Hours between application-consistent cuts, from 1 to 12; 0, the default, makes them only when asked for. */
  applicationConsistentSnapshotFrequencyInHours: whole(0, 12, 0, 'hours'),
  /** How applications are brought to rest for such a cut; default null, not at all. */
  quiesce: quiesceSchema.nullable().default(null),
  /** What a failover needs besides disks; kept with the replica. Default null, nothing. */
  failoverSettings: failoverSettingsSchema.nullable().default(null),
  /** Days without a test failover after which health is Warning and somebody is reminded, 0 to 3660; 0 for never. Default 180. */
  testFailoverReminderDays: whole(0, 3660, 180, 'days'),
})

const policySchema = settingsSchema.refine(
  (policy) => policy.quiesce !== null || policy.applicationConsistentSnapshotFrequencyInHours === 0,
  { path: ['quiesce'], message: 'a hook: application-consistent cuts are asked for' },
)

/** A policy with every setting filled in. */
export type Policy = z.output<typeof policySchema>
/** What a caller may give: any part of a policy. */
export type PolicyInput = z.input<typeof policySchema>

/**
 * Fills in the defaults and checks every setting.
 * @throws {OPTION_OUT_OF_RANGE} naming every setting that is wrong, its value and its range; nothing was changed
 */
export function parsePolicy(input: PolicyInput = {}): Policy {
  const result = policySchema.safeParse(input)
  if (result.success) return result.data
  const problems = result.error.issues.map((issue) => problemOf(issue, input))
  const lines = problems.map(
    ({ path, value, range }) => `${path} is ${JSON.stringify(value)}, must be ${range}`,
  )
  throw new SecondsiteError('OPTION_OUT_OF_RANGE', {
    message: `policy: ${lines.join('; ')}`,
    details: { problems },
  })
}

interface Problem {
  readonly [key: string]: JsonValue
  readonly path: string
  readonly value: JsonValue
  readonly range: string
}

function problemOf(issue: z.core.$ZodIssue, input: unknown): Problem {
  const keys = issue.code === 'unrecognized_keys' ? [...issue.path, issue.keys[0] ?? ''] : issue.path
  const value = keys.reduce<unknown>(
    (at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key],
    input,
  )
  const range = issue.code === 'unrecognized_keys' ? 'left out: there is no such setting' : issue.message
  return { path: keys.map(String).join('.'), value: plain(value), range }
}

function plain(value: unknown): JsonValue {
  const isSimple =
    value === null || typeof value === 'string' || typeof value === 'boolean' || Number.isFinite(value)
  return isSimple ? (value as JsonValue) : String(value)
}
