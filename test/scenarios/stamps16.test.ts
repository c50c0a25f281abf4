/**
 * Sixteen disks of one machine behind one export, and a client that writes a stamp after the other across all of them, each
 * when the one before is answered. Whatever the replica shows after a cycle, if it has a stamp it must have all earlier ones:
 * that is what one cut over all disks means.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import type { Engine, ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { hasLibnbdPython, PYTHON } from './clients.js'
import { MIB, Workplace } from './workplace.js'

const writer = join(import.meta.dirname, 'libnbd/stamps.py')
const DISK_COUNT = 16
/** Sectors of a disk that are written in turn; so a replica shows the newest 16 times as many stamps. */
const SLOT_COUNT = 1024
const SECTOR_BYTES = 512
const CYCLE_COUNT = process.env['SECONDSITE_SLOW'] ? 100 : 8
const names = Array.from({ length: DISK_COUNT }, (_, index) => `disk${index}.raw`)

let place: Workplace
let engine: Engine
let machine: ProtectedMachine
let stamps: StampWriter

/** The client, and the newest stamp that it says was answered. */
class StampWriter {
  answered = 0
  last: number | undefined
  readonly #child: ChildProcess
  readonly #ended: Promise<unknown>

  constructor(socket: string) {
    this.#child = spawn(PYTHON, [writer, socket, `${SLOT_COUNT}`, ...names], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    this.#ended = once(this.#child, 'close')
    createInterface({ input: this.#child.stdout as Readable }).on('line', (line) => this.#take(line))
  }

  #take(line: string): void {
    if (line.startsWith('last ')) this.last = Number(line.slice(5))
    else this.answered = Number(line)
  }

  /** Waits until more is answered than is now. */
  async advance(): Promise<number> {
    await expect.poll(() => this.answered, { timeout: 60_000 }).toBeGreaterThan(this.answered)
    return this.answered
  }

  async stop(): Promise<number> {
    ;(this.#child.stdin as Writable).end()
    await this.#ended
    if (this.last === undefined) throw new Error(`the client ended with ${this.#child.exitCode}`)
    return this.last
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended
  }
}

/** What every slot must hold when `newest` is the newest stamp of all; 0 where none was written. */
function expectedStamps(newest: number): number[][] {
  const disks = names.map(() => Array.from({ length: SLOT_COUNT }, () => 0))
  for (let stamp = Math.max(1, newest - DISK_COUNT * SLOT_COUNT); stamp <= newest; stamp += 1) {
    const line = Math.floor(stamp / DISK_COUNT)
    const slots = disks[(5 * stamp + line) % DISK_COUNT]
    if (slots) slots[line % SLOT_COUNT] = stamp
  }
  return disks
}

/** The stamp of every slot of the replica's images. */
function shownStamps(): number[][] {
  return names.map((name) => {
    const sectors = readStart(join(place.path('replica'), `${name}.raw`), SLOT_COUNT * SECTOR_BYTES)
    return Array.from({ length: SLOT_COUNT }, (_, slot) =>
      Number(sectors.readBigUInt64LE(slot * SECTOR_BYTES)),
    )
  })
}

function readStart(path: string, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes)
  const file = openSync(path, 'r')
  expect(readSync(file, bytes)).toBe(lengthBytes)
  closeSync(file)
  return bytes
}

/** Returns the newest stamp of the replica, which has all before it. */
function expectOneInstant(): number {
  const shown = shownStamps()
  const newest = Math.max(...shown.flat())
  expect(shown).toEqual(expectedStamps(newest))
  return newest
}

async function reportHolds(): Promise<void> {
  const holds = (await machine.measure()).disks.map(({ holdNsMax }) => holdNsMax)
  const longestMs = Math.max(...holds) / 1e6
  process.stderr.write(`writes to ${DISK_COUNT} disks were held for at most ${longestMs.toFixed(3)} ms\n`)
}

beforeEach(async () => {
  place = new Workplace()
  engine = await place.open()
  const disks = names.map((name) => place.makeDisk(name, 32 * MIB, 0))
  machine = await place.enable(engine, disks)
})

afterEach(async () => {
  await stamps?.kill()
  await engine.close()
  place.remove()
})

describe('sixteen disks behind one export', () => {
  it('never show a stamp on the replica without all that were answered before it', async () => {
    if (!hasLibnbdPython('scenario: stamps across sixteen disks')) return
    const socket = place.path('nbd.sock')
    await machine.exportNbd({ listen: `unix:${socket}` })
    stamps = new StampWriter(socket)
    await stamps.advance()
    await machine.startInitialReplication()
    for (let cycle = 0; cycle < CYCLE_COUNT; cycle += 1) {
      const answered = await stamps.advance()
      await machine.replicate()
      expect(expectOneInstant()).toBeGreaterThanOrEqual(answered)
    }
    const last = await stamps.stop()
    await machine.replicate()
    expect(expectOneInstant()).toBe(last)
    place.expectEqual(names)
    await reportHolds()
  }, 600_000)
})
