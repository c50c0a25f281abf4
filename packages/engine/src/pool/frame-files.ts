/**
 * Frames from and to files, the way a worker does it: synchronous calls on paths and offsets.
 */

import { closeSync, existsSync, openSync, readSync, writeSync } from 'node:fs'
import { fromSystemError, SecondsiteError } from '../errors.js'
import { FileFaultError, permit } from '../native/faults.js'
import { checkOffset } from '../units.js'
import {
  type Codec,
  type CompressionPolicy,
  decodeFrame,
  encodeInPlace,
  FRAME_HEADER_BYTES,
  frameRoom,
} from './frame.js'

/** The slice of a file to be encoded. */
export interface EncodeFrameArgs {
  readonly path: string
  readonly offset: number
  /** 1 to 16 MiB. */
  readonly lengthBytes: number
  readonly compression: CompressionPolicy
}

/** An encoded frame as it comes back from a worker; its buffer was moved, not copied. */
export interface EncodeFrameResult {
  readonly body: Uint8Array<ArrayBuffer>
  readonly codec: Codec
  readonly rawBytes: number
  readonly encodedBytes: number
}

/** A frame, and where its bytes belong. */
export interface DecodeFrameArgs {
  readonly body: Uint8Array
  /** Must exist. */
  readonly path: string
  /** What the message said; a frame of another place or size is refused. */
  readonly offset: number
  readonly rawBytes: number
}

/**
 * Reads a slice of a file and encodes it.
 *
 * @throws {LOG_CORRUPT} when the file is gone or ends inside the slice: a sealed log does neither by itself
 * @throws {IO_FAILED} when it cannot be read
 */
export function encodeFrameOf(args: EncodeFrameArgs): EncodeFrameResult {
  const { path, offset, lengthBytes, compression } = args
  checkOffset(offset)
  const room = frameRoom(checkOffset(lengthBytes, 'lengthBytes'))
  readSlice(path, offset, room.subarray(FRAME_HEADER_BYTES))
  const { bytes, ...rest } = encodeInPlace(room, offset, compression)
  return { body: bytes, ...rest }
}

/**
 * Decodes a frame, checks it, and writes its bytes to their place. Durable only after a sync of the file.
 *
 * @returns bytes written
 * @throws {FRAME_CORRUPT} when the frame is damaged or belongs elsewhere; nothing has been written
 * @throws {REPLICA_DISK_FULL} when there is no space left
 */
export function decodeFrameTo({ body, path, offset, rawBytes }: DecodeFrameArgs): number {
  checkOffset(offset)
  const { header, raw } = decodeFrame(body)
  if (header.offset !== offset || header.rawBytes !== rawBytes) {
    const reason = `holds ${header.rawBytes} bytes for offset ${header.offset}, not ${rawBytes} for ${offset}`
    throw new SecondsiteError('FRAME_CORRUPT', {
      message: `frame ${reason}`,
      details: { path, offset, reason },
    })
  }
  writeSlice(path, offset, raw)
  return raw.length
}

function readSlice(path: string, offset: number, bytes: Uint8Array): void {
  if (!existsSync(path)) throw damaged(path, 0, 'the file is gone')
  withFile(path, 'r', 'read', (file) => {
    permit(path, 'read', offset, bytes.length)
    let filled = 0
    while (filled < bytes.length) {
      const read = readSync(file, bytes, filled, bytes.length - filled, offset + filled)
      if (read === 0) throw damaged(path, offset + filled, 'the file ends there, inside of the log')
      filled += read
    }
  })
}

function writeSlice(path: string, offset: number, bytes: Uint8Array): void {
  withFile(path, 'r+', 'write', (file) => {
    try {
      permit(path, 'write', offset, bytes.length)
    } catch (error) {
      // The part before a failure reaches the disk.
      if (error instanceof FileFaultError) writeAll(file, offset, bytes.subarray(0, error.permittedBytes))
      throw error
    }
    writeAll(file, offset, bytes)
  })
}

function writeAll(file: number, offset: number, bytes: Uint8Array): void {
  let written = 0
  while (written < bytes.length) {
    written += writeSync(file, bytes, written, bytes.length - written, offset + written)
  }
}

function withFile<Result>(
  path: string,
  flags: string,
  operation: string,
  use: (file: number) => Result,
): Result {
  try {
    permit(path, 'open')
    const file = openSync(path, flags)
    try {
      return use(file)
    } finally {
      closeSync(file)
    }
  } catch (error) {
    throw fromSystemError(error, { operation, path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

function damaged(path: string, offset: number, reason: string): SecondsiteError {
  const message = `log damaged: ${path} at offset ${offset}: ${reason}`
  return new SecondsiteError('LOG_CORRUPT', { message, details: { path, offset, reason } })
}
