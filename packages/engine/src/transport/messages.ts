/**
 * The messages between primary and replica: their headers, what their bodies are, and who sends them.
 *
 * A header is small and JSON; bytes travel in the body. Both sides check every header against these schemas, on sending
 * and on receiving. Unknown fields are dropped, so a later version may add some. docs/spec/wire.md describes the flow.
 */

import { z } from 'zod'
import { type ErrorDetails, toPlainError } from '../errors.js'
import { POINT_KINDS } from '../states.js'

/** Version of the protocol that `hello` offers. */
export const PROTOCOL_VERSION = 1
/** Ranges of one digest request, at most: 8192 at 50 bytes of JSON is 400 KiB of header. */
export const DIGEST_RANGES_MAX = 8192
/** Disks of one machine, at most. */
export const MACHINE_DISKS_MAX = 256
/** Logs of one shipment and unfinished logs of a spool, at most. */
export const SHIPMENT_LOGS_MAX = 4096

/** Bytes of the failover settings of a machine as JSON, at most. */
export const FAILOVER_SETTINGS_BYTES_MAX = 256 * 1024

/** Characters of a name or an error's text, at most. */
const TEXT_LENGTH_MAX = 4096

/** Whole and exact: zod's `int` is the safe integers. */
const count = z.int().min(0)
/** Ids become parts of file names on the other side, so they are made of harmless characters. */
const id = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/)
/** The same of a disk's name: one component of a path. */
const fileName = z.string().regex(/^(?!\.{1,2}$)[^/\0]{1,200}$/)
const text = z.string().max(TEXT_LENGTH_MAX)
/** The request or shipment that a message belongs to; a reply carries the key of what it answers. */
const key = count

/** Shape of `PlainError`; an error crosses the wire as data. */
const plainError = z.object({
  code: z.string().min(1).max(64),
  message: text,
  details: z.custom<ErrorDetails>((value) => z.record(z.string(), z.json()).safeParse(value).success),
})

/** Bytes of a disk. */
const diskSize = z.int().min(512).multipleOf(512)

const diskHello = z.object({
  diskId: id,
  name: fileName,
  sizeBytes: count,
  sectorSizeBytes: count,
  /** A shrink that was accepted: until a shipment carries it out the replica keeps the size it had. */
  shrink: z.object({ shrinkId: id, fromBytes: diskSize }).nullable().default(null),
  /** Whether an image that is lost may be made anew, and the points that it was part of given up. */
  mayRecreateImage: z.boolean().default(false),
})

/** A disk that shrinks with a shipment. */
const diskShrink = z.object({ diskId: id, shrinkId: id, fromBytes: diskSize, toBytes: diskSize })

const recoverySettings = z.object({
  recoveryPoints: count,
  recoveryPointIntervalSeconds: count,
  retention: z.object({ hourly: count, daily: count, weekly: count, lockHours: count }),
  keepEveryWrite: z.object({ hours: count, bytesMax: count }),
})

const shippedLog = z.object({
  diskId: id,
  logId: id,
  /** All zeros for the first log of a chain. */
  previousLogId: id,
  logSizeBytes: count,
  indexSizeBytes: count,
  entryCount: count,
  firstSequence: count,
  /** One past the sequence number of the last entry. */
  nextSequence: count,
  /** Of overlapping writes only the last is in it. An older primary does not say. */
  isCoalesced: z.boolean().default(false),
})

/** Something that happened at the replica and that people of the primary's side have to hear of. */
const notice = z.object({
  /** `NoticeCode`; a later replica may know more. */
  code: z.string().min(1).max(64),
  timeMs: count,
  details: z.custom<ErrorDetails>((value) => z.record(z.string(), z.json()).safeParse(value).success),
})

/** Notices of one message; what is left comes with the next. */
export const NOTICES_MAX = 64

const diskWelcome = z.object({
  diskId: id,
  /** Newest log that is spooled, synced and verified; null when there is none. */
  receivedLogId: id.nullable(),
  /** Newest log that the image holds; null when there is none. */
  appliedLogId: id.nullable(),
})

/** Bytes of a log that are durable on the replica: a prefix of its `.hrl` followed by its `.hrx`. */
const spooled = z.object({ logId: id, durableBytes: count })

/** Header schemas by type. */
export const HEADERS = {
  /** The primary introduces itself; answered by `welcome` or `error`. */
  hello: z.object({
    key,
    protocolVersion: count,
    relationshipId: id,
    machine: text,
    /** The side with the higher number has the right to write; a lower one is refused with FENCED. */
    fencingNumber: count,
    disks: z.array(diskHello).max(MACHINE_DISKS_MAX),
    /** Which recovery points the replica keeps; a primary that says nothing wants none. */
    recovery: recoverySettings.optional(),
    /** What a failover needs besides disks, as JSON; null for nothing. One that is silent changes nothing. */
    failoverSettings: z.string().max(FAILOVER_SETTINGS_BYTES_MAX).nullable().optional(),
  }),
  /** Announces a shipment: logs that are applied together or not at all. */
  'shipment-begin': z.object({
    key,
    kind: z.enum(['initial', 'resync', 'delta']),
    /** Unix milliseconds of the point that the replica shows when this is applied. */
    cutTimeMs: count,
    /** True when the chain of logs begins anew. */
    isRebase: z.boolean(),
    /** What the cut was. An older primary cuts nothing but crash-consistently. */
    pointKind: z.enum(POINT_KINDS).default('crash-consistent'),
    /** The cut that all members of a consistency group share; null for one of the machine alone. */
    groupPointId: id.nullable().default(null),
    /** Disks that have shrunk before the cut; their images do once everything up to it is in them. */
    shrinks: z.array(diskShrink).max(MACHINE_DISKS_MAX).default([]),
    logs: z.array(shippedLog).max(SHIPMENT_LOGS_MAX),
  }),
  /** A slice of a log; the body is an encoded frame. */
  frame: z.object({
    key,
    diskId: id,
    logId: id,
    part: z.enum(['log', 'index']),
    /** Where the slice starts in its file. */
    offset: count,
    /** Bytes of the slice, decoded. */
    rawBytes: count,
  }),
  /** Every frame of the shipment has been sent; answered by `received`, later by `applied`. */
  'shipment-end': z.object({ key }),
  /** Asks for the digests of the chunks of some ranges; answered by `digests`. */
  'digest-request': z.object({
    key,
    diskId: id,
    ranges: z.array(z.object({ offset: count, lengthBytes: count })).max(DIGEST_RANGES_MAX),
    chunkBytes: z.int().min(4096).max(4_194_304),
    algorithm: z.enum(['xxh3-128', 'blake3']),
    /** Seed of the pass: 64 bits as 16 hex digits, so that no number rounds it. */
    seed: z.string().regex(/^[0-9a-f]{16}$/),
  }),
  /** Throws away what is held or unfinished in the spool: a resynchronization begins anew; answered by `status`. */
  discard: z.object({ key }),
  /** Asks how far the replica is; answered by `status`. */
  'status-request': z.object({ key }),
  /** The replica accepts the primary and says where shipping goes on. */
  welcome: z.object({
    key,
    protocolVersion: count,
    /** Newest shipment that is durable here; 0 when there is none. */
    receivedShipment: count,
    /** Newest shipment that the images hold; 0 when there is none. */
    appliedShipment: count,
    disks: z.array(diskWelcome).max(MACHINE_DISKS_MAX),
    spool: z.array(spooled).max(SHIPMENT_LOGS_MAX),
    /** Unix milliseconds at which the last test failover began; null before the first. An older replica does not tell. */
    lastTestFailoverMs: count.nullable().optional(),
    /** What has happened since the last message that had any. */
    notices: z.array(notice).max(NOTICES_MAX).default([]),
  }),
  /** Bytes of a log that have become durable. Comes by itself while frames arrive. */
  ack: spooled,
  /** The shipment is spooled, synced and verified; the primary may let go of its logs. */
  received: z.object({ key }),
  /** The images hold the shipment. */
  applied: z.object({ key, cutTimeMs: count, notices: z.array(notice).max(NOTICES_MAX).default([]) }),
  /** 16 bytes a chunk in the body, in the order of the ranges asked for. */
  digests: z.object({ key }),
  /** How far the replica is. */
  status: z.object({ key, receivedShipment: count, appliedShipment: count, spoolBytes: count }),
  /** Refusal or failure; the sender closes the channel after it. */
  error: z.object({ error: plainError }),
} as const

/** Name of a message. */
export type MessageType = keyof typeof HEADERS
/** Header of a message of this type. */
export type HeaderOf<Type extends MessageType> = z.output<(typeof HEADERS)[Type]>
/** Header as a sender writes it: fields with a default may be left out. */
export type HeaderInputOf<Type extends MessageType> = z.input<(typeof HEADERS)[Type]>
/** Messages of the replica that answer one of the primary, by its key. */
export type ReplyType = 'welcome' | 'received' | 'applied' | 'digests' | 'status'

/** A message of one type; without an argument, of any. Switching on `type` narrows it when it is `AnyMessage`. */
export interface Message<Type extends MessageType = MessageType> {
  readonly type: Type
  readonly header: HeaderOf<Type>
  readonly body?: Uint8Array
}

/** A message of any type, as a discriminated union. */
export type AnyMessage = { [Type in MessageType]: Message<Type> }[MessageType]

/**
 * What the body of a type is: `none`; `hashed`, covered by a checksum of the wire; `self-proving`, a frame that carries
 * its own, so that the bytes are not hashed a second time.
 */
export type BodyKind = 'none' | 'hashed' | 'self-proving'

/** Number on the wire and kind of body, by type. Numbers are never used again for something else. */
export const WIRE_TYPES: {
  readonly [Type in MessageType]: { readonly number: number; readonly body: BodyKind }
} = {
  hello: { number: 1, body: 'none' },
  'shipment-begin': { number: 2, body: 'none' },
  frame: { number: 3, body: 'self-proving' },
  'shipment-end': { number: 4, body: 'none' },
  'digest-request': { number: 5, body: 'none' },
  'status-request': { number: 6, body: 'none' },
  discard: { number: 7, body: 'none' },
  welcome: { number: 65, body: 'none' },
  ack: { number: 66, body: 'none' },
  received: { number: 67, body: 'none' },
  applied: { number: 68, body: 'none' },
  digests: { number: 69, body: 'hashed' },
  status: { number: 70, body: 'none' },
  error: { number: 71, body: 'none' },
}

/** Makes a message; fields with a default are filled in. @throws TypeError when the header does not fit its type */
export function message<Type extends MessageType>(
  type: Type,
  header: HeaderInputOf<Type>,
  body?: Uint8Array,
): Message<Type> {
  const parsed = HEADERS[type].safeParse(header)
  if (!parsed.success) throw new TypeError(`header of ${type}: ${z.prettifyError(parsed.error)}`)
  const checked = parsed.data as HeaderOf<Type>
  return body === undefined ? { type, header: checked } : { type, header: checked, body }
}

/** The message that says why the sender gives up; a text that is too long is cut. */
export function errorMessage(thrown: unknown): Message<'error'> {
  const error = toPlainError(thrown)
  return message('error', { error: { ...error, message: error.message.slice(0, TEXT_LENGTH_MAX) } })
}
