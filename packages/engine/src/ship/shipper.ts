/**
 * Sends one shipment over a link: announce, frames in order, end, then wait for received and applied.
 *
 * Frames are encoded ahead by workers while earlier ones are being sent. What the replica already has is not sent
 * again. The shipper keeps nothing: after a broken link the next call starts from what `welcome` says.
 */

import { throwIfAborted } from '../errors.js'
import type { Link } from '../transport/link.js'
import { message } from '../transport/messages.js'
import { type FrameSlice, type ResumeCursor, type Shipment, type ShipmentLog, slicesOf } from './shipment.js'

/** Frames that are encoded or wait to be sent, at most; the bound on memory is this times the size of a frame. */
export const FRAMES_AHEAD_MAX = 4

/** Turns a slice of a file into the body of a frame; done by a worker. */
export type EncodeFrame = (slice: FrameSlice, signal?: AbortSignal) => Promise<Uint8Array>

export interface ShipOptions {
  readonly encode: EncodeFrame
  /** Bytes of a frame before encoding, 4096 to 16 MiB. */
  readonly frameBytes: number
  /** What `welcome` said is durable, per log. */
  readonly received: ResumeCursor
  readonly signal?: AbortSignal
  /** Called after each frame has been handed to the channel. */
  readonly onFrame?: (rawBytes: number, sentBytes: number) => void
}

/** What one call sent. */
export interface ShipReport {
  /** Bytes of the slices, decoded. */
  readonly rawBytes: number
  /** Bytes of the bodies, as sent. */
  readonly sentBytes: number
  readonly frameCount: number
}

/**
 * Sends `shipment` and resolves when the replica says that it is received: spooled, synced and verified.
 *
 * @throws {TRANSPORT_LOST} when the link breaks; ship again over a new one
 * @throws {ABORTED} when `signal` is aborted; what was acknowledged is kept on the replica
 * @throws what the replica answered, for example LOG_CHAIN_GAP or REPLICA_DISK_FULL
 */
export async function ship(link: Link, shipment: Shipment, options: ShipOptions): Promise<ShipReport> {
  const { signal } = options
  const received = link.reply('received', shipment.number, signal)
  // Whoever waits is told below; until then a refusal must not count as unhandled.
  received.catch(() => {})
  await link.send(beginOf(shipment), signal)
  const report = await sendFrames(link, shipment, options)
  await link.send(message('shipment-end', { key: shipment.number }), signal)
  await received
  return report
}

async function sendFrames(link: Link, shipment: Shipment, options: ShipOptions): Promise<ShipReport> {
  const report = { rawBytes: 0, sentBytes: 0, frameCount: 0 }
  for await (const { slice, body } of encodedAhead(shipment, options)) {
    throwIfAborted(options.signal)
    await link.send(frameOf(shipment, slice, body), options.signal)
    report.rawBytes += slice.lengthBytes
    report.sentBytes += body.length
    report.frameCount += 1
    options.onFrame?.(slice.lengthBytes, body.length)
  }
  return report
}

interface EncodedFrame {
  readonly slice: FrameSlice
  readonly body: Uint8Array
}

/** The frames of a shipment in order, with {@link FRAMES_AHEAD_MAX} of them being encoded. */
async function* encodedAhead(shipment: Shipment, options: ShipOptions): AsyncGenerator<EncodedFrame> {
  const ahead: Promise<EncodedFrame>[] = []
  for (const slice of slicesOf(shipment, options.frameBytes, options.received)) {
    const encoding = options.encode(slice, options.signal).then((body) => ({ slice, body }))
    encoding.catch(() => {}) // Taken below; a failure further ahead must not count as unhandled meanwhile.
    ahead.push(encoding)
    if (ahead.length >= FRAMES_AHEAD_MAX) yield (await ahead.shift()) as EncodedFrame
  }
  for (const encoding of ahead) yield await encoding
}

function beginOf(shipment: Shipment) {
  const { number: key, kind, cutTimeMs, isRebase, pointKind, groupPointId } = shipment
  const logs = shipment.logs.map(shippedLogOf)
  const shrinks = [...shipment.shrinks]
  return message('shipment-begin', { key, kind, cutTimeMs, isRebase, pointKind, groupPointId, shrinks, logs })
}

function shippedLogOf({ diskId, log, isCoalesced = false }: ShipmentLog) {
  const { id: logId, previousId: previousLogId, logSizeBytes, indexSizeBytes, entryCount } = log
  const { firstSequence, nextSequence } = log
  return {
    diskId,
    logId,
    previousLogId,
    logSizeBytes,
    indexSizeBytes,
    entryCount,
    firstSequence,
    nextSequence,
    isCoalesced,
  }
}

function frameOf(shipment: Shipment, slice: FrameSlice, body: Uint8Array) {
  const { diskId, logId, part, offset, lengthBytes: rawBytes } = slice
  return message('frame', { key: shipment.number, diskId, logId, part, offset, rawBytes }, body)
}
