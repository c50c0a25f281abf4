/**
 * A guest that writes from four sides at once while everything behind its disk is in trouble, for hours of the engine's
 * clock: every write completes, none fails, each is read back; afterwards both sides become equal.
 */

import { readFileSync } from 'node:fs'
import type { ProtectedMachine } from '@secondsite/engine'
import { type FaultRule, ManualClock } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, codeOf } from './bad-day.js'
import { KIB, MIB } from './workplace.js'

const DISK_BYTES = 8 * MIB
const WRITER_COUNT = 4
const ROUND_COUNT = 6
/** Writes of each writer in a round; each is followed by a flush now and then. */
const WRITES_A_ROUND = 20
const HOUR_MS = 3_600_000

let day: BadDay
let clock: ManualClock
let isReplicaGone: boolean

beforeEach(() => {
  day = new BadDay()
  clock = new ManualClock(Date.UTC(2026, 10, 21))
  isReplicaGone = false
})

afterEach(() => day.end())

async function replicating(): Promise<ProtectedMachine> {
  day.engine = await day.place.open({
    clock,
    wrapTransport: (inner) => ({
      connect: (signal) => {
        if (isReplicaGone) throw new Error('nobody there')
        return inner.connect(signal)
      },
    }),
  })
  const policy = { autoResynchronize: { enabled: false } }
  const machine = await day.place.enable(day.engine, [day.place.makeDisk('os.raw', DISK_BYTES)], policy)
  await machine.startInitialReplication()
  return machine
}

/** Counts what becomes of the requests of a guest. */
class Guest {
  completed = 0
  readonly failed: unknown[] = []
  readonly #oracle: Uint8Array

  constructor(private readonly machine: ProtectedMachine) {
    this.#oracle = readFileSync(day.place.path('os.raw'))
  }

  /** Every writer has a part of the disk for itself, so that the order of writes is known. */
  async round(): Promise<void> {
    await Promise.all(Array.from({ length: WRITER_COUNT }, (_, writer) => this.#write(writer)))
  }

  async #write(writer: number): Promise<void> {
    const partBytes = DISK_BYTES / WRITER_COUNT
    for (let count = 1; count <= WRITES_A_ROUND; count += 1) {
      const lengthBytes = 512 * (1 + day.place.random.below(128))
      const within = 512 * day.place.random.below((partBytes - lengthBytes) / 512)
      const offset = writer * partBytes + within
      const bytes = day.place.random.bytes(lengthBytes)
      this.#oracle.set(bytes, offset)
      await this.#request(() => this.machine.disks[0]?.write(offset, bytes))
      if (count % 7 === 0) await this.#request(() => this.machine.disks[0]?.flush())
    }
  }

  async #request(request: () => Promise<void> | undefined): Promise<void> {
    try {
      await request()
      this.completed += 1
    } catch (error) {
      this.failed.push(error)
    }
  }

  async expectAllThere(): Promise<void> {
    const read = await this.machine.disks[0]?.read(0, DISK_BYTES)
    expect(Buffer.from(this.#oracle).equals(read ?? new Uint8Array())).toBe(true)
  }
}

const requests = WRITER_COUNT * ROUND_COUNT * (WRITES_A_ROUND + Math.floor(WRITES_A_ROUND / 7))

const troubles: readonly (readonly [string, readonly Omit<FaultRule, 'path'>[], boolean])[] = [
  ['the log disk is full', [{ suffix: '.hrl', operation: 'write', error: 'ENOSPC' }], false],
  [
    'the log disk is full and takes no new file',
    [
      { suffix: '.hrl', operation: 'write', error: 'ENOSPC' },
      { suffix: '.hrx', operation: 'write', error: 'ENOSPC' },
      { suffix: '.hrl', operation: 'open', error: 'ENOSPC' },
    ],
    false,
  ],
  [
    'the log disk fails now and then',
    [{ suffix: '.hrl', operation: 'write', error: 'EIO', afterCalls: 30 }],
    false,
  ],
  ['the log disk fails its syncs', [{ suffix: '.hrl', operation: 'sync', error: 'EIO' }], false],
  ['the replica is gone for hours', [], true],
  [
    'the replica is gone and the log disk is full',
    [{ suffix: '.hrl', operation: 'write', error: 'ENOSPC', afterBytes: 600 * KIB }],
    true,
  ],
]

describe('a guest feels nothing when', () => {
  it.each(troubles)('%s', async (_, rules, isGone) => {
    const machine = await replicating()
    const guest = new Guest(machine)
    isReplicaGone = isGone
    const armed = rules.map((rule) => day.files.fail({ path: day.place.folder, ...rule }))
    const codes = new Set<string>()
    for (let round = 0; round < ROUND_COUNT; round += 1) {
      const cycle = codeOf(machine.replicate())
      await Promise.all([guest.round(), clock.advance(HOUR_MS)])
      codes.add(await cycle)
    }
    expect(guest.failed).toEqual([])
    expect(guest.completed).toBe(requests)
    await guest.expectAllThere()
    // The trouble was real.
    expect(codes).not.toEqual(new Set(['none']))
    expect(isGone || armed.some(({ strikes }) => strikes > 0)).toBe(true)
    for (const rule of armed) rule.disarm()
    isReplicaGone = false
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
    await guest.expectAllThere()
  })
})
