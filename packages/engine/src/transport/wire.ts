/**
 * Messages as bytes: a prefix of 32 bytes that proves itself, the header as JSON, the body. docs/spec/wire.md fixes it.
 *
 * The prefix carries a checksum of its own, so lengths are believed, and memory is taken, only when they are what the
 * other side wrote and within the limits. A wrong checksum is FRAME_CORRUPT: the way to us damaged it, trying again
 * helps. Anything wrong under a right checksum was sent so, and is PROTOCOL_ERROR.
 */

import { xxh3 } from '@node-rs/xxhash'
import { z } from 'zod'
import { SecondsiteError } from '../errors.js'
import { HEADERS, type Message, type MessageType, WIRE_TYPES } from './messages.js'

/** "SSWP" in little-endian byte order. */
export const WIRE_MAGIC = 0x50575353
/** Version of the encoding; a change of layout raises it. */
export const WIRE_VERSION = 1
/** Bytes of the prefix. */
export const WIRE_PREFIX_BYTES = 32
/** Bytes of a header, at most: SHIPMENT_LOGS_MAX logs at 400 bytes of JSON are 1.6 MiB. */
export const WIRE_HEADER_BYTES_MAX = 2 * 1024 * 1024
/** Bytes of a body, at most: a frame of 16 MiB that did not shrink, and its 32 bytes of header. */
export const WIRE_BODY_BYTES_MAX = 16 * 1024 * 1024 + 32

const TYPE_BY_NUMBER = new Map<number, MessageType>(
  (Object.keys(WIRE_TYPES) as MessageType[]).map((type) => [WIRE_TYPES[type].number, type]),
)

interface Prefix {
  readonly type: MessageType
  readonly headerBytes: number
  readonly bodyBytes: number
  readonly bodyHash: bigint
  readonly headerHash: number
}

/** The bytes of a message in one buffer of its own. Errors as {@link messagePieces}. */
export function encodeMessage(message: Message): Uint8Array {
  return joined(messagePieces(message))
}

/** Several pieces in one buffer of its own. */
export function joined(pieces: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(pieces.reduce((total, piece) => total + piece.length, 0))
  let at = 0
  for (const piece of pieces) {
    bytes.set(piece, at)
    at += piece.length
  }
  return bytes
}

/**
 * The bytes of a message: prefix and header, then the body itself, where there is one. The body is not copied.
 *
 * @throws TypeError when header or body do not fit the type, or are over their limits
 */
export function messagePieces(message: Message): Uint8Array[] {
  const { type, body = new Uint8Array(0) } = message
  const checked = HEADERS[type].safeParse(message.header)
  if (!checked.success) throw new TypeError(`header of ${type}: ${z.prettifyError(checked.error)}`)
  const header = Buffer.from(JSON.stringify(checked.data))
  checkSizes(type, header.length, message.body)
  const bytes = Buffer.allocUnsafeSlow(WIRE_PREFIX_BYTES + header.length)
  header.copy(bytes, WIRE_PREFIX_BYTES)
  writePrefix(bytes, type, header, body)
  return body.length === 0 ? [plain(bytes)] : [plain(bytes), body]
}

function checkSizes(type: MessageType, headerBytes: number, body: Uint8Array | undefined): void {
  if (headerBytes > WIRE_HEADER_BYTES_MAX) throw new TypeError(`header of ${type} has ${headerBytes} bytes`)
  if ((body === undefined) !== (WIRE_TYPES[type].body === 'none')) {
    throw new TypeError(`${type} ${body === undefined ? 'needs a body' : 'has no body'}`)
  }
  if ((body?.length ?? 0) > WIRE_BODY_BYTES_MAX) throw new TypeError(`body of ${type} is too large`)
}

function writePrefix(bytes: Buffer, type: MessageType, header: Uint8Array, body: Uint8Array): void {
  bytes.writeUInt32LE(WIRE_MAGIC, 0)
  bytes.writeUInt8(WIRE_VERSION, 4)
  bytes.writeUInt8(WIRE_TYPES[type].number, 5)
  bytes.writeUInt16LE(0, 6)
  bytes.writeUInt32LE(header.length, 8)
  bytes.writeUInt32LE(body.length, 12)
  bytes.writeBigUInt64LE(WIRE_TYPES[type].body === 'hashed' ? hash64(body) : 0n, 16)
  bytes.writeUInt32LE(hash32(header), 24)
  bytes.writeUInt32LE(hash32(bytes.subarray(0, 28)), 28)
}

// The streaming class is ten times as fast as the one-shot function on large input.
function hash64(bytes: Uint8Array): bigint {
  return xxh3.Xxh3.withSeed().update(bytes).digest()
}

/** The same memory as a plain array: `slice` of a Buffer shares its memory, which whoever takes a message must not meet. */
function plain(bytes: Buffer): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
}

/** Whether nothing else lives in the memory of `bytes`, so that it may be handed on or moved to a worker. */
function isOwned(bytes: Uint8Array): boolean {
  return bytes.length === bytes.buffer.byteLength
}

function hash32(bytes: Uint8Array): number {
  return Number(BigInt.asUintN(32, hash64(bytes)))
}

/**
 * Messages out of a stream of bytes, in pieces of any size.
 *
 * After an error the decoder is of no more use: nobody knows where the next message starts.
 */
export class MessageDecoder {
  /** What is being gathered, one after another: a prefix, its header, its body. Made at its first byte. */
  #part: Buffer | undefined
  #partBytes = WIRE_PREFIX_BYTES
  #filled = 0
  #prefix: Prefix | undefined
  #header: Message['header'] | undefined
  #offset = 0
  #decodedCount = 0

  /**
   * Takes the next bytes; returns the messages they complete. A body that comes as a piece with a buffer of its own is
   * taken over as it is.
   * @throws {PROTOCOL_ERROR} when the bytes are not the protocol; carries `offset` in the stream and `reason`
   * @throws {FRAME_CORRUPT} when a checksum fails; carries `offset` in the stream
   */
  push(bytes: Uint8Array): Message[] {
    const messages: Message[] = []
    let at = 0
    while (at < bytes.length) {
      at += this.#take(bytes, at)
      if (this.#filled === this.#partBytes) this.#step(messages)
    }
    return messages
  }

  /** Says that no more bytes come. @throws {TRANSPORT_LOST} when they ended in the middle of a message */
  end(): void {
    if (this.#prefix === undefined && this.#filled === 0) return
    throw new SecondsiteError('TRANSPORT_LOST', {
      message: `the connection ended in the middle of a message, ${this.#filled} bytes of a part, in the message at offset ${this.#offset}`,
      details: { offset: this.#offset },
    })
  }

  #take(bytes: Uint8Array, at: number): number {
    const isBody = this.#header !== undefined && this.#filled === 0
    if (isBody && at === 0 && bytes.length === this.#partBytes && isOwned(bytes)) {
      this.#part = Buffer.from(bytes.buffer)
      this.#filled = bytes.length
      return bytes.length
    }
    this.#part ??= Buffer.allocUnsafeSlow(this.#partBytes)
    const taken = Math.min(this.#partBytes - this.#filled, bytes.length - at)
    this.#part.set(bytes.subarray(at, at + taken), this.#filled)
    this.#filled += taken
    return taken
  }

  #step(messages: Message[]): void {
    const part = this.#part ?? Buffer.alloc(0)
    if (this.#prefix === undefined) {
      this.#prefix = this.#readPrefix(part)
      return this.#expect(this.#prefix.headerBytes)
    }
    if (this.#header === undefined) {
      this.#header = this.#readHeader(this.#prefix, part)
      this.#expect(this.#prefix.bodyBytes)
      if (this.#prefix.bodyBytes > 0) return
    }
    messages.push(this.#readBody(this.#prefix, this.#header, this.#part ?? Buffer.alloc(0)))
    this.#offset += WIRE_PREFIX_BYTES + this.#prefix.headerBytes + this.#prefix.bodyBytes
    this.#decodedCount += 1
    this.#prefix = undefined
    this.#header = undefined
    this.#expect(WIRE_PREFIX_BYTES)
  }

  #expect(partBytes: number): void {
    this.#part = undefined
    this.#partBytes = partBytes
    this.#filled = 0
  }

  #readPrefix(bytes: Buffer): Prefix {
    const isOurs = bytes.readUInt32LE(0) === WIRE_MAGIC
    // Whoever never sent one good message speaks another protocol; in a running conversation bytes were damaged.
    if (!isOurs && this.#decodedCount === 0) throw this.#protocolError('magic number is wrong')
    if (bytes.readUInt32LE(28) !== hash32(bytes.subarray(0, 28))) throw this.#corrupt('prefix')
    if (!isOurs) throw this.#protocolError('magic number is wrong')
    if (bytes.readUInt8(4) !== WIRE_VERSION)
      throw this.#protocolError(`version ${bytes.readUInt8(4)} is unknown`)
    if (bytes.readUInt16LE(6) !== 0) throw this.#protocolError('reserved bytes are not zero')
    return this.#checkPrefix(bytes)
  }

  #checkPrefix(bytes: Buffer): Prefix {
    const type = TYPE_BY_NUMBER.get(bytes.readUInt8(5))
    const headerBytes = bytes.readUInt32LE(8)
    const bodyBytes = bytes.readUInt32LE(12)
    if (type === undefined) throw this.#protocolError(`message type ${bytes.readUInt8(5)} is unknown`)
    // The shortest header is "{}".
    if (headerBytes < 2 || headerBytes > WIRE_HEADER_BYTES_MAX)
      throw this.#protocolError(`${type} claims a header of ${headerBytes} bytes`)
    if (bodyBytes > (WIRE_TYPES[type].body === 'none' ? 0 : WIRE_BODY_BYTES_MAX))
      throw this.#protocolError(`${type} claims a body of ${bodyBytes} bytes`)
    const headerHash = bytes.readUInt32LE(24)
    return { type, headerBytes, bodyBytes, bodyHash: bytes.readBigUInt64LE(16), headerHash }
  }

  #readBody({ type, bodyHash }: Prefix, header: Message['header'], bytes: Buffer): Message {
    if (WIRE_TYPES[type].body === 'none') return { type, header }
    const body = plain(bytes)
    if (WIRE_TYPES[type].body === 'hashed' && hash64(body) !== bodyHash) throw this.#corrupt('body')
    return { type, header, body }
  }

  #readHeader({ type, headerHash }: Prefix, bytes: Buffer): Message['header'] {
    if (hash32(bytes) !== headerHash) throw this.#corrupt('header')
    let json: unknown
    try {
      json = JSON.parse(bytes.toString('utf8'))
    } catch {
      throw this.#protocolError(`header of ${type} is not JSON`)
    }
    const checked = HEADERS[type].safeParse(json)
    if (!checked.success) throw this.#protocolError(`header of ${type}: ${z.prettifyError(checked.error)}`)
    return checked.data
  }

  #protocolError(reason: string): SecondsiteError {
    return new SecondsiteError('PROTOCOL_ERROR', {
      message: `message at offset ${this.#offset}: ${reason}`,
      details: { offset: this.#offset, reason },
    })
  }

  #corrupt(part: string): SecondsiteError {
    return new SecondsiteError('FRAME_CORRUPT', {
      message: `message at offset ${this.#offset}: checksum of its ${part} is wrong`,
      details: { offset: this.#offset, reason: `checksum of ${part}` },
    })
  }
}
