/**
 * Randomness as a parameter: production takes the system's, a simulation one that a seed replays.
 */

import { randomBytes, randomUUID } from 'node:crypto'

/** The source of randomness. */
export interface Random {
  /** A whole number from 0 to 2^32 - 1. */
  uint32(): number
  /** A whole number from 0 to `bound` - 1; `bound` is 1 to 2^32. */
  below(bound: number): number
  /** A number from 0 (included) to 1 (excluded). */
  unit(): number
  /** `count` bytes in an ArrayBuffer of their own. */
  bytes(count: number): Uint8Array<ArrayBuffer>
  /** A version 4 UUID, lower case. */
  uuid(): string
}

/** The operating system's randomness. */
export const systemRandom: Random = {
  uint32: () => randomBytes(4).readUInt32LE(),
  below: (bound) => Math.floor((randomBytes(4).readUInt32LE() / 2 ** 32) * bound),
  unit: () => randomBytes(4).readUInt32LE() / 2 ** 32,
  bytes: (count) => Uint8Array.from(randomBytes(count)),
  uuid: () => randomUUID(),
}

/**
 * A generator that gives the same numbers for the same seed (sfc32; passes PractRand). Not for keys.
 *
 * The seed is expanded with splitmix32, and the first 12 outputs are dropped as the algorithm asks.
 */
export class SeededRandom implements Random {
  /** What was given to the constructor; print it when a run fails. */
  readonly seed: number
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor(seed: number) {
    this.seed = seed
    const next = splitmix32(seed)
    this.#a = next()
    this.#b = next()
    this.#c = next()
    for (let round = 0; round < 12; round += 1) this.uint32()
  }

  uint32(): number {
    const result = (this.#a + this.#b + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + result
    this.#c |= 0
    return result >>> 0
  }

  below(bound: number): number {
    return Math.floor(this.unit() * bound)
  }

  unit(): number {
    return this.uint32() / 2 ** 32
  }

  bytes(count: number): Uint8Array<ArrayBuffer> {
    const words = new Uint32Array(Math.ceil(count / 4))
    for (let index = 0; index < words.length; index += 1) words[index] = this.uint32()
    return new Uint8Array(words.buffer, 0, count).slice()
  }

  uuid(): string {
    const bytes = this.bytes(16)
    bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40
    bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80
    const hex = Buffer.from(bytes).toString('hex')
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
  }
}

function splitmix32(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x9e3779b9) | 0
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
    return mixed ^ (mixed >>> 15)
  }
}
