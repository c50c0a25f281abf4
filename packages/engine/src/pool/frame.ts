/**
 * Frames: a slice of a log, compressed where that pays, with a header that proves slice and place.
 *
 * The checksum covers the first 24 bytes of the header and the decoded bytes, so it also finds a codec that wrote
 * nonsense, and a frame that belongs elsewhere. Sizes are checked against the limits before anything is decompressed: a
 * block of LZ4 says itself how much it will grow to, and is believed by its decoder. docs/spec/wire.md fixes the layout.
 */

import { xxh3 } from '@node-rs/xxhash'
import { compressSync, uncompressSync } from 'lz4-napi'
import binding from 'zstd-napi/binding.js'
import { SecondsiteError } from '../errors.js'

/** Bytes of the header of a frame. */
export const FRAME_HEADER_BYTES = 32
/** Bytes of a slice before encoding, at most. */
export const FRAME_RAW_BYTES_MAX = 16 * 1024 * 1024
/** "SSFR" in little-endian byte order. */
const FRAME_MAGIC = 0x52465353
const FRAME_VERSION = 1
/** Bytes of the header that its checksum covers. */
const HASHED_HEADER_BYTES = 24
/** Bytes that LZ4 blocks carry in front: their decoded size. */
const LZ4_SIZE_BYTES = 4

/** How the payload of a frame is written. */
export type Codec = 'raw' | 'lz4' | 'zstd'
/** What the policy asks for; `adaptive` looks at a sample first. */
export type CompressionPolicy = 'adaptive' | 'lz4' | 'zstd' | 'none'

const CODEC_NUMBERS = { raw: 0, lz4: 1, zstd: 2 } as const satisfies Record<Codec, number>
const CODECS: readonly Codec[] = ['raw', 'lz4', 'zstd']

/** Level 1: 7 to 23 % slower than LZ4, and 37 to 51 % smaller. */
const ZSTD_LEVEL = 1
/** A frame travels compressed when it saves 1/20 of its bytes, 5 %; less does not pay for decompressing. */
const SAVING_DIVISOR = 20
/** The sample: 4 pieces of 16 KiB, 64 KiB of a frame of 4 MiB, 1.6 %. */
const SAMPLE_PIECES = 4
const SAMPLE_PIECE_BYTES = 16 * 1024

/** An encoded frame: header and payload in an ArrayBuffer of its own, which can be transferred. */
export interface EncodedFrame {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly codec: Codec
  readonly rawBytes: number
  /** Bytes of the payload, without the header. */
  readonly encodedBytes: number
}

/** What a header says. */
export interface FrameHeader {
  readonly codec: Codec
  readonly rawBytes: number
  readonly encodedBytes: number
  readonly offset: number
  readonly hash: bigint
}

/** Room for a frame whose slice has `rawBytes` bytes; they go behind the first {@link FRAME_HEADER_BYTES}. */
export function frameRoom(rawBytes: number): Uint8Array<ArrayBuffer> {
  if (rawBytes === 0 || rawBytes > FRAME_RAW_BYTES_MAX) {
    throw new TypeError(`a frame holds 1 to ${FRAME_RAW_BYTES_MAX} bytes, not ${rawBytes}`)
  }
  const room = new Uint8Array(Buffer.allocUnsafeSlow(FRAME_HEADER_BYTES + rawBytes).buffer)
  return room.fill(0, 0, FRAME_HEADER_BYTES)
}

/** Encodes the slice `raw`, which starts at `offset` of its file. */
export function encodeFrame(raw: Uint8Array, offset: number, policy: CompressionPolicy): EncodedFrame {
  const room = frameRoom(raw.length)
  room.set(raw, FRAME_HEADER_BYTES)
  return encodeInPlace(room, offset, policy)
}

/** Encodes the slice that lies in a {@link frameRoom}; what does not shrink stays where it is. */
export function encodeInPlace(
  room: Uint8Array<ArrayBuffer>,
  offset: number,
  policy: CompressionPolicy,
): EncodedFrame {
  const raw = room.subarray(FRAME_HEADER_BYTES)
  const { codec, payload } = compressed(raw, policy)
  const bytes = codec === 'raw' ? room : frameRoom(payload.length)
  if (codec !== 'raw') bytes.set(payload, FRAME_HEADER_BYTES)
  writeHeader(bytes, codec, raw, payload.length, offset)
  return { bytes, codec, rawBytes: raw.length, encodedBytes: payload.length }
}

interface Payload {
  readonly codec: Codec
  readonly payload: Uint8Array
}

function compressed(raw: Uint8Array, policy: CompressionPolicy): Payload {
  const asIs: Payload = { codec: 'raw', payload: raw }
  if (policy === 'none' || (policy === 'adaptive' && !isWorthCompressing(raw))) return asIs
  const codec = policy === 'lz4' ? 'lz4' : 'zstd'
  const payload = codec === 'lz4' ? compressLz4(raw) : compressZstd(raw)
  return pays(raw.length, payload.length) ? { codec, payload } : asIs
}

function pays(rawBytes: number, encodedBytes: number): boolean {
  return encodedBytes <= rawBytes - rawBytes / SAVING_DIVISOR
}

/** Tries LZ4 on pieces spread over the slice; one that shrinks is enough, as data of a disk is patchy. */
function isWorthCompressing(raw: Uint8Array): boolean {
  if (raw.length <= SAMPLE_PIECES * SAMPLE_PIECE_BYTES) return true
  const stride = Math.floor((raw.length - SAMPLE_PIECE_BYTES) / (SAMPLE_PIECES - 1))
  for (let piece = 0; piece < SAMPLE_PIECES; piece += 1) {
    const sample = raw.subarray(piece * stride, piece * stride + SAMPLE_PIECE_BYTES)
    if (pays(sample.length, compressLz4(sample).length)) return true
  }
  return false
}

function compressLz4(raw: Uint8Array): Uint8Array {
  return compressSync(bufferOf(raw))
}

function compressZstd(raw: Uint8Array): Uint8Array {
  const out = new Uint8Array(binding.compressBound(raw.length))
  return out.subarray(0, binding.compress(out, raw, ZSTD_LEVEL))
}

/** The same memory as a Buffer, which lz4-napi insists on. */
function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
}

function writeHeader(
  bytes: Uint8Array,
  codec: Codec,
  raw: Uint8Array,
  encodedBytes: number,
  offset: number,
): void {
  const header = new DataView(bytes.buffer, bytes.byteOffset, FRAME_HEADER_BYTES)
  header.setUint32(0, FRAME_MAGIC, true)
  header.setUint8(4, FRAME_VERSION)
  header.setUint8(5, CODEC_NUMBERS[codec])
  header.setUint32(8, raw.length, true)
  header.setUint32(12, encodedBytes, true)
  header.setBigUint64(16, BigInt(offset), true)
  header.setBigUint64(24, frameHash(bytes, raw), true)
}

// The streaming class is ten times as fast as the one-shot function from 16 KiB up.
function frameHash(frame: Uint8Array, raw: Uint8Array): bigint {
  return xxh3.Xxh3.withSeed().update(frame.subarray(0, HASHED_HEADER_BYTES)).update(raw).digest()
}

/**
 * Reads the header of a frame and checks everything that can be checked without decompressing.
 *
 * @throws {FRAME_CORRUPT} carries `reason`
 */
export function readFrameHeader(frame: Uint8Array): FrameHeader {
  if (frame.length < FRAME_HEADER_BYTES) throw corrupt(`${frame.length} bytes are no frame`)
  const header = new DataView(frame.buffer, frame.byteOffset, FRAME_HEADER_BYTES)
  if (header.getUint32(0, true) !== FRAME_MAGIC) throw corrupt('magic number is wrong')
  if (header.getUint8(4) !== FRAME_VERSION) throw corrupt(`version ${header.getUint8(4)} is unknown`)
  if (header.getUint16(6, true) !== 0) throw corrupt('reserved bytes are not zero')
  const codec = CODECS[header.getUint8(5)]
  if (codec === undefined) throw corrupt(`codec ${header.getUint8(5)} is unknown`)
  const rawBytes = header.getUint32(8, true)
  const encodedBytes = header.getUint32(12, true)
  const offset = Number(header.getBigUint64(16, true))
  const read = { codec, rawBytes, encodedBytes, offset, hash: header.getBigUint64(24, true) }
  checkSizes(frame, read)
  return read
}

function checkSizes(frame: Uint8Array, { codec, rawBytes, encodedBytes, offset }: FrameHeader): void {
  if (!Number.isSafeInteger(offset)) throw corrupt('offset is past 2^53')
  if (rawBytes === 0 || rawBytes > FRAME_RAW_BYTES_MAX) throw corrupt(`claims ${rawBytes} bytes`)
  if (encodedBytes !== frame.length - FRAME_HEADER_BYTES) {
    throw corrupt(`claims a payload of ${encodedBytes} bytes, has ${frame.length - FRAME_HEADER_BYTES}`)
  }
  const isFitting = codec === 'raw' ? encodedBytes === rawBytes : encodedBytes < rawBytes
  if (!isFitting) throw corrupt(`${encodedBytes} bytes of ${codec} for ${rawBytes} bytes cannot be`)
}

/**
 * Decodes a frame; the result may be a view into `frame`.
 *
 * @throws {FRAME_CORRUPT} when the header is impossible, the payload does not decode, or the checksum is wrong
 */
export function decodeFrame(frame: Uint8Array): { readonly header: FrameHeader; readonly raw: Uint8Array } {
  const header = readFrameHeader(frame)
  const raw = decompressed(header, frame.subarray(FRAME_HEADER_BYTES))
  if (raw.length !== header.rawBytes) throw corrupt(`decodes to ${raw.length} bytes`)
  if (frameHash(frame, raw) !== header.hash) throw corrupt('checksum is wrong')
  return { header, raw }
}

function decompressed({ codec, rawBytes }: FrameHeader, payload: Uint8Array): Uint8Array {
  try {
    if (codec === 'raw') return payload
    return codec === 'lz4' ? decompressLz4(payload, rawBytes) : decompressZstd(payload, rawBytes)
  } catch (error) {
    if (error instanceof SecondsiteError) throw error
    throw corrupt(`${codec} payload does not decode`, error)
  }
}

function decompressLz4(payload: Uint8Array, rawBytes: number): Uint8Array {
  const block = bufferOf(payload)
  if (block.length < LZ4_SIZE_BYTES || block.readUInt32LE(0) !== rawBytes)
    throw corrupt('lz4 claims another size')
  return uncompressSync(block)
}

function decompressZstd(payload: Uint8Array, rawBytes: number): Uint8Array {
  const out = new Uint8Array(rawBytes)
  return out.subarray(0, binding.decompress(out, payload))
}

function corrupt(reason: string, cause?: unknown): SecondsiteError {
  return new SecondsiteError('FRAME_CORRUPT', { message: `frame: ${reason}`, details: { reason }, cause })
}
