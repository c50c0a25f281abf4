import { xxh3 } from '@node-rs/xxhash'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { DIGEST_RANGES_MAX, errorMessage, type Message, message, SHIPMENT_LOGS_MAX } from './messages.js'
import {
  encodeMessage,
  MessageDecoder,
  WIRE_BODY_BYTES_MAX,
  WIRE_HEADER_BYTES_MAX,
  WIRE_PREFIX_BYTES,
} from './wire.js'

const frame = message(
  'frame',
  { key: 7, diskId: 'disk', logId: 'log', part: 'index', offset: 4096, rawBytes: 3 },
  new Uint8Array([1, 2, 3]),
)
const digests = message('digests', { key: 9 }, new Uint8Array(32).fill(5))
const end = message('shipment-end', { key: 7 })
const conversation: Message[] = [frame, end, digests, end]

const hash32 = (bytes: Uint8Array): number => Number(BigInt.asUintN(32, xxh3.xxh64(bytes)))

/** Header and body under a prefix written by hand here, with checksums that are right. */
function handmade(
  fields: Partial<Record<'magic' | 'version' | 'type' | 'reserved' | 'headerBytes' | 'bodyBytes', number>>,
  header: string,
  body = '',
): Buffer {
  const prefix = Buffer.alloc(32)
  prefix.writeUInt32LE(fields.magic ?? 0x50575353, 0)
  prefix.writeUInt8(fields.version ?? 1, 4)
  prefix.writeUInt8(fields.type ?? 4, 5)
  prefix.writeUInt16LE(fields.reserved ?? 0, 6)
  prefix.writeUInt32LE(fields.headerBytes ?? Buffer.byteLength(header), 8)
  prefix.writeUInt32LE(fields.bodyBytes ?? Buffer.byteLength(body), 12)
  prefix.writeUInt32LE(hash32(Buffer.from(header)), 24)
  prefix.writeUInt32LE(hash32(prefix.subarray(0, 28)), 28)
  return Buffer.concat([prefix, Buffer.from(header), Buffer.from(body)])
}

function failure(bytes: Uint8Array): { code: string; message: string } {
  try {
    const decoder = new MessageDecoder()
    decoder.push(bytes)
    decoder.end()
  } catch (error) {
    if (isSecondsiteError(error)) return { code: error.code, message: error.message }
    throw error
  }
  return { code: 'none', message: '' }
}

describe('a message', () => {
  it('has the layout of the specification, computed by hand here', () => {
    expect(Buffer.from(encodeMessage(end))).toEqual(handmade({}, '{"key":7}'))
  })

  it('comes out of pieces of any size as it went in', () => {
    const stream = Buffer.concat(conversation.map(encodeMessage))
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }), (sizes) => {
        const decoder = new MessageDecoder()
        const decoded: Message[] = []
        for (let at = 0, turn = 0; at < stream.length; turn += 1) {
          const size = sizes[turn % sizes.length] ?? 1
          decoded.push(...decoder.push(stream.subarray(at, at + size)))
          at += size
        }
        decoder.end()
        expect(decoded.map(({ type, header }) => ({ type, header }))).toEqual(
          conversation.map(({ type, header }) => ({ type, header })),
        )
        expect(decoded.map(({ body }) => body && [...body])).toEqual(
          conversation.map(({ body }) => body && [...body]),
        )
      }),
    )
  })

  it('shares no memory with what was sent', () => {
    const body = new Uint8Array(16).fill(1)
    const bytes = encodeMessage(message('digests', { key: 1 }, body))
    body.fill(9)
    expect([...(new MessageDecoder().push(bytes)[0]?.body ?? [])]).toEqual(
      Array.from({ length: 16 }, () => 1),
    )
  })

  it('of a later version may carry fields that this one does not know', () => {
    const [received] = new MessageDecoder().push(handmade({}, '{"key":7,"new":true}'))
    expect(received?.header).toEqual({ key: 7 })
  })

  it('with any single bit flipped never arrives as something else', () => {
    const bytes = encodeMessage(digests)
    const before = Buffer.from(bytes)
    for (let bit = 0; bit < bytes.length * 8; bit += 1) {
      const damaged = bytes.slice()
      damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      expect(['FRAME_CORRUPT', 'PROTOCOL_ERROR']).toContain(failure(damaged).code)
    }
    expect(before.equals(bytes)).toBe(true)
  })

  it('cut at any byte is TRANSPORT_LOST, and none at its end', () => {
    const bytes = encodeMessage(frame)
    for (let length = 1; length < bytes.length; length += 1) {
      expect(failure(bytes.subarray(0, length)).code).toBe('TRANSPORT_LOST')
    }
    expect(failure(bytes).code).toBe('none')
    expect(failure(bytes.subarray(0, 0)).code).toBe('none')
  })
})

describe('bytes that are not the protocol', () => {
  it.each([
    ['another protocol', Buffer.from('GET / HTTP/1.1\r\nHost: replica.example\r\n\r\n'), /magic/],
    ['a version to come', handmade({ version: 2 }, '{"key":7}'), /version 2/],
    ['reserved bytes in use', handmade({ reserved: 1 }, '{"key":7}'), /reserved/],
    ['a type to come', handmade({ type: 200 }, '{"key":7}'), /type 200/],
    ['no header', handmade({ headerBytes: 0 }, ''), /header of 0 bytes/],
    [
      'a header over the limit',
      handmade({ headerBytes: WIRE_HEADER_BYTES_MAX + 1 }, ''),
      /header of 2097153 bytes/,
    ],
    [
      'a body over the limit',
      handmade({ type: 3, bodyBytes: WIRE_BODY_BYTES_MAX + 1 }, '{}'),
      /body of 16777249 bytes/,
    ],
    ['a body of 4 GiB', handmade({ type: 69, bodyBytes: 0xffff_ffff }, '{}'), /body of 4294967295 bytes/],
    ['a body where none belongs', handmade({}, '{"key":7}', 'body'), /body of 4 bytes/],
    ['a header that is not JSON', handmade({}, '{"key":7'), /not JSON/],
    ['a header without its field', handmade({}, '{}'), /key/],
    ['a header of the wrong kind', handmade({}, '{"key":"7"}'), /key/],
    ['a number that is not exact', handmade({}, '{"key":9007199254740993}'), /key/],
    ['a negative number', handmade({}, '{"key":-1}'), /key/],
    ['a header that is null', handmade({}, 'null'), /shipment-end/],
  ])('%s is PROTOCOL_ERROR', (_name, bytes, reason) => {
    expect(failure(bytes)).toEqual({ code: 'PROTOCOL_ERROR', message: expect.stringMatching(reason) })
  })

  it('within a conversation are damage, and name where', () => {
    const good = encodeMessage(end)
    const decoder = new MessageDecoder()
    expect(decoder.push(good)).toHaveLength(1)
    expect(() => decoder.push(new Uint8Array(WIRE_PREFIX_BYTES).fill(1))).toThrow(
      expect.objectContaining({
        code: 'FRAME_CORRUPT',
        details: expect.objectContaining({ offset: good.length }),
      }),
    )
  })

  it('take no memory for what they claim before they are proven', () => {
    const prefix = handmade({ type: 3, headerBytes: 100, bodyBytes: WIRE_BODY_BYTES_MAX }, '')
    prefix.writeUInt32LE(0, 28)
    expect(failure(prefix).code).toBe('FRAME_CORRUPT')
  })
})

describe('a sender', () => {
  it.each([
    ['a header that does not fit', { type: 'shipment-end', header: { key: 1.5 } }],
    ['a body that is missing', { type: 'digests', header: { key: 1 } }],
    ['a body that does not belong', { type: 'shipment-end', header: { key: 1 }, body: new Uint8Array(1) }],
    [
      'a body over the limit',
      { type: 'digests', header: { key: 1 }, body: new Uint8Array(WIRE_BODY_BYTES_MAX + 1) },
    ],
  ])('is told of %s by a TypeError', (_name, wrong) => {
    expect(() => encodeMessage(wrong as Message)).toThrow(TypeError)
  })

  it('can send lists that are as long as they may be', () => {
    const huge = Number.MAX_SAFE_INTEGER
    const id = '0123456789ab-0123-0123-0123-0123456789ab'
    const sizes = {
      logSizeBytes: huge,
      indexSizeBytes: huge,
      entryCount: huge,
      firstSequence: huge,
      nextSequence: huge,
    }
    const logs = Array.from({ length: SHIPMENT_LOGS_MAX }, () => ({
      diskId: id,
      logId: id,
      previousLogId: id,
      ...sizes,
    }))
    const ranges = Array.from({ length: DIGEST_RANGES_MAX }, () => ({ offset: huge, lengthBytes: huge }))
    const begin = message('shipment-begin', {
      key: 1,
      kind: 'delta',
      cutTimeMs: 0,
      isRebase: false,
      logs,
    })
    const ask = {
      key: 1,
      diskId: id,
      ranges,
      chunkBytes: 4096,
      algorithm: 'blake3',
      seed: '0123456789abcdef',
    } as const
    for (const sent of [begin, message('digest-request', ask)]) {
      expect(new MessageDecoder().push(encodeMessage(sent))).toEqual([sent])
    }
  })

  it('can always tell an error, however long its text', () => {
    const told = errorMessage(new Error('x'.repeat(1_000_000)))
    const [received] = new MessageDecoder().push(encodeMessage(told))
    expect(received?.header).toMatchObject({ error: { code: 'INTERNAL', message: 'x'.repeat(4096) } })
  })
})
