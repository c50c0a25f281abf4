import { xxh3 } from '@node-rs/xxhash'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { SeededRandom } from '../random.js'
import {
  type CompressionPolicy,
  decodeFrame,
  encodeFrame,
  FRAME_HEADER_BYTES,
  FRAME_RAW_BYTES_MAX,
} from './frame.js'

const random = new SeededRandom(20261121)
const noise = random.bytes(200_000)
const text = new Uint8Array(Buffer.from('replication of blocks '.repeat(9000)))
const policies: CompressionPolicy[] = ['adaptive', 'lz4', 'zstd', 'none']

function isRefused(frame: Uint8Array, reason: RegExp): void {
  expect(() => decodeFrame(frame)).toThrow(
    expect.objectContaining({ code: 'FRAME_CORRUPT', message: expect.stringMatching(reason) }),
  )
}

function flipped(frame: Uint8Array, bit: number): Uint8Array {
  const damaged = frame.slice()
  damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7))
  return damaged
}

/** The decoded bytes in hex, or the code of the refusal. */
function outcome(frame: Uint8Array): string {
  try {
    return Buffer.from(decodeFrame(frame).raw).toString('hex')
  } catch (error) {
    return isSecondsiteError(error) ? error.code : String(error)
  }
}

/** Writes the checksum that a forger would: the frame is then consistent, and only its claims are false. */
function resealed(frame: Uint8Array, raw: Uint8Array): Uint8Array {
  const hash = xxh3.xxh64(Buffer.concat([frame.subarray(0, 24), raw]))
  Buffer.from(frame.buffer).writeBigUInt64LE(hash, 24)
  return frame
}

describe('a frame', () => {
  it('gives back the slice and its place, whatever the policy', () => {
    const slice = fc.uint8Array({ minLength: 1, maxLength: 3000 })
    const offset = fc.nat({ max: Number.MAX_SAFE_INTEGER })
    fc.assert(
      fc.property(
        slice,
        offset,
        fc.constantFrom(...policies),
        fc.integer({ min: 1, max: 60 }),
        (raw, at, policy, times) => {
          const long = new Uint8Array(Buffer.concat(Array.from({ length: times }, () => raw)))
          const decoded = decodeFrame(encodeFrame(long, at, policy).bytes)
          expect(decoded.header.offset).toBe(at)
          expect(Buffer.compare(decoded.raw, long)).toBe(0)
        },
      ),
    )
  })

  it.each([
    ['adaptive', text, 'zstd'],
    ['adaptive', noise, 'raw'],
    ['lz4', text, 'lz4'],
    ['zstd', text, 'zstd'],
    ['none', text, 'raw'],
    ['lz4', noise, 'raw'],
    ['zstd', noise, 'raw'],
  ] as const)('encoded as %s chooses the codec by what it saves (case %#)', (policy, raw, codec) => {
    const frame = encodeFrame(raw, 0, policy)
    expect(frame.codec).toBe(codec)
    expect(frame.encodedBytes <= raw.length * 0.95 || codec === 'raw').toBe(true)
  })

  it('finds the patch that can be compressed in a slice of noise', () => {
    const patchy = noise.slice()
    patchy.fill(7, 60_000, 140_000)
    expect(encodeFrame(patchy, 0, 'adaptive').codec).toBe('zstd')
  })

  it('has the layout of the specification, computed by hand here', () => {
    const raw = new Uint8Array(Buffer.from('block'))
    const fields = ['05000000', '05000000', '0010000000000000'].join('')
    const head = Buffer.from('5353465201000000' + fields, 'hex')
    const hash = Buffer.alloc(8)
    hash.writeBigUInt64LE(xxh3.xxh64(Buffer.concat([head, raw])))
    expect(Buffer.from(encodeFrame(raw, 4096, 'none').bytes)).toEqual(Buffer.concat([head, hash, raw]))
  })

  it('with any single bit of its header flipped is refused', () => {
    for (const policy of policies) {
      const { bytes } = encodeFrame(text.subarray(0, 700), 512, policy)
      for (let bit = 0; bit < FRAME_HEADER_BYTES * 8; bit += 1) isRefused(flipped(bytes, bit), /frame/)
    }
  })

  it('with any single bit of its payload flipped never gives other bytes', () => {
    // A match at twice the distance reads the same in a text that repeats, so a codec may survive a flip unharmed.
    const raw = Buffer.concat([text.subarray(0, 700), noise.subarray(0, 50)])
    for (const policy of policies) {
      const { bytes } = encodeFrame(raw, 512, policy)
      for (let bit = FRAME_HEADER_BYTES * 8; bit < bytes.length * 8; bit += 1) {
        expect(['FRAME_CORRUPT', raw.toString('hex')]).toContain(outcome(flipped(bytes, bit)))
      }
    }
  })

  it('cut short, or with bytes behind it, is refused', () => {
    const { bytes } = encodeFrame(text, 0, 'zstd')
    for (const length of [0, 1, FRAME_HEADER_BYTES - 1, FRAME_HEADER_BYTES, bytes.length - 1])
      isRefused(bytes.slice(0, length), /frame/)
    isRefused(new Uint8Array([...bytes, 0]), /claims a payload/)
  })

  it('that claims to grow past the limit is refused before anything is decompressed', () => {
    const { bytes } = encodeFrame(text, 0, 'lz4')
    Buffer.from(bytes.buffer).writeUInt32LE(FRAME_RAW_BYTES_MAX + 1, 8)
    isRefused(resealed(bytes, text), /claims 16777217 bytes/)
  })

  it('whose LZ4 block claims another size than its header is refused', () => {
    const { bytes } = encodeFrame(text, 0, 'lz4')
    Buffer.from(bytes.buffer).writeUInt32LE(0xffff_ffff, FRAME_HEADER_BYTES)
    isRefused(resealed(bytes, text), /another size/)
  })

  it('whose zstd payload decodes to less than it claims is refused', () => {
    const { bytes } = encodeFrame(text, 0, 'zstd')
    Buffer.from(bytes.buffer).writeUInt32LE(text.length + 1, 8)
    isRefused(resealed(bytes, text), /decodes to/)
  })

  it('of nothing, or of more than the limit, is a mistake of the caller', () => {
    expect(() => encodeFrame(new Uint8Array(0), 0, 'none')).toThrow(TypeError)
    expect(() => encodeFrame(new Uint8Array(FRAME_RAW_BYTES_MAX + 1), 0, 'none')).toThrow(TypeError)
  })
})
