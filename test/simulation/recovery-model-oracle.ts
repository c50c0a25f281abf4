/**
 * What the model of recovery knows by itself: arrays of bytes by time, and which verbs each state takes.
 */

import type { Clock, RecoveryPoint, ReplicationState } from '@secondsite/engine'
import type { SeededRandom } from '@secondsite/engine/testing'
import { expect } from 'vitest'

/** Bytes of all disks, by name. */
export type Content = ReadonlyMap<string, Buffer>

const SECTOR_BYTES = 512
/** Longest change of a guest. */
const CHANGE_SECTORS_MAX = 32

/** Time of the model: the system's, where writes are addressed by it, or one that is moved by hand. Nothing is due by itself. */
export class ModelClock implements Clock {
  readonly isReal: boolean
  #nowMs = Date.UTC(2026, 10, 18, 12)

  constructor(isReal: boolean) {
    this.isReal = isReal
  }

  nowMs(): number {
    return this.isReal ? Date.now() : this.#nowMs
  }

  nowNs(): bigint {
    return BigInt(this.nowMs()) * 1_000_000n
  }

  async sleep(durationMs: number): Promise<void> {
    this.pass(durationMs)
  }

  setTimer(): () => void {
    return () => {}
  }

  /** Moves a clock that is moved by hand, and waits for the next millisecond of the other kind. */
  pass(durationMs: number): void {
    this.#nowMs += durationMs
    for (const since = Date.now(); this.isReal && Date.now() <= since; );
  }
}

/** What the disks of a primary held, at every time since its relationship began. */
export class History {
  readonly #clock: ModelClock
  readonly #moments: { readonly timeMs: number; readonly content: Content }[] = []
  /** What they hold now. */
  readonly now: Map<string, Buffer>

  constructor(clock: ModelClock, content: Content) {
    this.#clock = clock
    this.now = copyOf(content)
    this.remember()
  }

  /** The present content holds from here on. */
  remember(): void {
    this.#clock.pass(1)
    this.#moments.push({ timeMs: this.#clock.nowMs(), content: copyOf(this.now) })
    this.#clock.pass(1)
  }

  at(timeMs: number): Content {
    const moment = this.#moments.findLast((one) => one.timeMs <= timeMs)
    if (moment === undefined) throw new Error(`nothing is known of ${timeMs}`)
    return moment.content
  }

  /** Times that are remembered, ascending. */
  get timesMs(): readonly number[] {
    return this.#moments.map(({ timeMs }) => timeMs)
  }
}

export function copyOf(content: Content): Map<string, Buffer> {
  return new Map([...content].map(([name, bytes]) => [name, Buffer.from(bytes)]))
}

/** A disk that guests change. */
export interface Writable {
  readonly name: string
  readonly sizeBytes: number
  write(offset: number, data: Uint8Array): Promise<void>
  writeZeroes?(offset: number, lengthBytes: number): Promise<void>
  discard?(offset: number, lengthBytes: number): Promise<void>
}

/** A random change of a random disk, and the same of the arrays of bytes. @returns bytes that were changed */
export async function change(
  random: SeededRandom,
  disks: readonly Writable[],
  content: Content,
): Promise<number> {
  const disk = disks[random.below(disks.length)]
  const bytes = content.get(disk?.name ?? '')
  if (disk === undefined || bytes === undefined) throw new Error('no disk to write to')
  const sectorCount = disk.sizeBytes / SECTOR_BYTES
  const lengthSectors = 1 + random.below(Math.min(CHANGE_SECTORS_MAX, sectorCount))
  const offset = random.below(sectorCount - lengthSectors + 1) * SECTOR_BYTES
  const lengthBytes = lengthSectors * SECTOR_BYTES
  const kind = random.below(6)
  if (kind === 0 && disk.writeZeroes) await disk.writeZeroes(offset, lengthBytes)
  else if (kind === 1 && disk.discard) await disk.discard(offset, lengthBytes)
  else {
    const data = random.bytes(lengthBytes)
    await disk.write(offset, data)
    bytes.set(data, offset)
    return lengthBytes
  }
  bytes.fill(0, offset, offset + lengthBytes)
  return lengthBytes
}

/** Anything that disks can be read from. */
export interface Shown {
  readonly disks: readonly {
    readonly name: string
    readonly sizeBytes: number
    read(offset: number, lengthBytes: number): Promise<Uint8Array>
  }[]
}

/** Every byte of every disk is as expected. */
export async function expectShows(shown: Shown, content: Content, what: string): Promise<void> {
  expect(shown.disks.map(({ name }) => name).toSorted(), what).toEqual([...content.keys()].toSorted())
  for (const disk of shown.disks)
    expectBytes(await disk.read(0, disk.sizeBytes), content.get(disk.name), `${what}: ${disk.name}`)
}

export function expectBytes(found: Uint8Array, expected: Buffer | undefined, what: string): void {
  const right = expected ?? Buffer.alloc(0)
  const at = Buffer.compare(found, right) === 0 ? -1 : right.findIndex((byte, index) => byte !== found[index])
  expect({ differsAt: at, sizeBytes: found.length }, what).toEqual({ differsAt: -1, sizeBytes: right.length })
}

/** Sectors in which two contents of a disk differ, as byte offsets. */
export function differingSectors(left: Buffer, right: Buffer): number[] {
  const offsets = Array.from({ length: left.length / SECTOR_BYTES }, (_, index) => index * SECTOR_BYTES)
  return offsets.filter((at) => left.compare(right, at, at + SECTOR_BYTES, at, at + SECTOR_BYTES) !== 0)
}

export const REPLICA_VERBS = [
  'startFailover',
  'startTestFailover',
  'changeRecoveryPoint',
  'cancelFailover',
  'commitFailover',
  'reverseReplication',
  'failback',
  'finalizeFailback',
] as const
export type ReplicaVerb = (typeof REPLICA_VERBS)[number]

/** Of those verbs the ones that a state of the replica takes: the model's table of transitions, replica side. */
const REPLICA_TAKES: Partial<Record<ReplicationState, readonly ReplicaVerb[]>> = {
  Replicating: ['startFailover', 'startTestFailover', 'failback'],
  FailbackInProgress: ['finalizeFailback', 'cancelFailover'],
  FailbackComplete: ['cancelFailover', 'commitFailover'],
  Error: ['startFailover', 'startTestFailover'],
  WaitingForStartResynchronize: ['startFailover', 'startTestFailover'],
  FailedOverWaitingCompletion: [
    'changeRecoveryPoint',
    'cancelFailover',
    'commitFailover',
    'reverseReplication',
  ],
  // A commit that is repeated does nothing.
  FailedOver: ['commitFailover', 'reverseReplication'],
}

export function refusedByReplica(state: ReplicationState): readonly ReplicaVerb[] {
  return REPLICA_VERBS.filter((verb) => !(REPLICA_TAKES[state] ?? []).includes(verb))
}

export const PRIMARY_VERBS = [
  'startInitialReplication',
  'cancelInitialReplication',
  'suspend',
  'resume',
  'resynchronize',
  'cancelResynchronize',
  'prepareFailover',
  'cancelFailover',
  'replicate',
] as const
export type PrimaryVerb = (typeof PRIMARY_VERBS)[number]

const PRIMARY_TAKES: Partial<Record<ReplicationState, readonly PrimaryVerb[]>> = {
  Replicating: ['suspend', 'resynchronize', 'prepareFailover', 'replicate'],
  Suspended: ['resume', 'resynchronize'],
  Error: ['suspend', 'resume', 'resynchronize'],
  PreparedForFailover: ['cancelFailover'],
}

export function refusedByPrimary(state: ReplicationState): readonly PrimaryVerb[] {
  const takes = PRIMARY_TAKES[state]
  return takes === undefined ? [] : PRIMARY_VERBS.filter((verb) => !takes.includes(verb))
}

/** Points that rules and locks must have kept, and none of which is told twice or out of order. */
export function expectOrder(points: readonly RecoveryPoint[]): void {
  const numbers = points.map(({ number }) => number)
  expect(numbers, 'the order of points').toEqual([...new Set(numbers)].toSorted((a, b) => a - b))
  expect(
    points.slice(0, -1).every(({ isLatest }) => !isLatest),
    'one latest point',
  ).toBe(true)
  expect(points.map(({ damage }) => damage).filter(Boolean), 'no point is damaged').toEqual([])
}
