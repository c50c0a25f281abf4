/**
 * Logs that are damaged while they wait to be shipped, in each way a log can be: found before anything of it reaches an
 * image, told with its reason, and mended by a resynchronization, while the guest writes on.
 */

import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import type { ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, codeOf } from './bad-day.js'
import { MIB } from './workplace.js'

let day: BadDay

beforeEach(() => {
  day = new BadDay()
})

afterEach(() => day.end())

const HEADER_BYTES = 4096
const CHECKSUM_AT = 40
const END_OF_LOG_AT = 44
const FIRST_DATA_AT = 8192

/** The checksum of the public format: the complement of the sum of all bytes but its own. */
function byteSum(bytes: Buffer, at: number): number {
  let sum = 0
  for (const [index, byte] of bytes.entries()) if (index < at || index >= at + 4) sum += byte
  return ~sum >>> 0
}

function changeHeader(bytes: Buffer, change: (header: Buffer) => void): void {
  const header = bytes.subarray(0, HEADER_BYTES)
  change(header)
  header.writeUInt32LE(byteSum(header, CHECKSUM_AT), CHECKSUM_AT)
}

/** The last metadata block: its header, then entries of 32 bytes each. */
function lastBlock(bytes: Buffer): Buffer {
  const end = Number(bytes.readBigUInt64LE(END_OF_LOG_AT))
  return bytes.subarray(end - HEADER_BYTES, end)
}

function changeSlot(block: Buffer, slot: number, checksumAt: number, change: (slot: Buffer) => void): void {
  const bytes = block.subarray(32 * slot, 32 * slot + 32)
  change(bytes)
  bytes.writeUInt32LE(byteSum(bytes, checksumAt), checksumAt)
}

function isSealed(path: string): boolean {
  return readFileSync(path).readBigUInt64LE(END_OF_LOG_AT) > 0n
}

/** Sealed logs of the disk, oldest first. */
function waitingLogs(): string[] {
  const names = readdirSync(day.place.folder).filter((name) => /^os\.raw\.\d{10}\.hrl$/.test(name))
  return names
    .sort()
    .map((name) => day.place.path(name))
    .filter(isSealed)
}

/** A machine with sealed logs that could not be sent, as the replica's spool took nothing. */
async function waiting(cycleCount = 1): Promise<ProtectedMachine> {
  const machine = await day.replicating()
  const refused = day.files.fail({ path: day.place.path('replica/spool'), operation: 'open', error: 'EIO' })
  for (let cycle = 0; cycle < cycleCount; cycle += 1) {
    await day.guestWrites(machine, 5)
    expect(await codeOf(machine.replicate())).toBe('IO_FAILED')
  }
  refused.disarm()
  expect(waitingLogs().length).toBeGreaterThanOrEqual(cycleCount)
  return machine
}

/** Whether a file is a batch of a resynchronization. */
const isBatch = (name: string): boolean => /^os\.raw\.resync-.*\.hrl$/.test(name)

type Change = (bytes: Buffer) => Buffer | undefined | void

const damages: [string, Change][] = [
  ['its magic is another', (bytes) => changeHeader(bytes, (header) => void header.write('whatever'))],
  [
    'its version is unknown',
    (bytes) => changeHeader(bytes, (header) => void header.writeUInt32LE(0x30000, 8)),
  ],
  ['its header has one bit more', (bytes) => void bytes.writeUInt8(bytes.readUInt8(2000) ^ 1, 2000)],
  ['its header is gone', (bytes) => bytes.subarray(HEADER_BYTES)],
  [
    'a byte of its data has changed',
    (bytes) => void bytes.writeUInt8(bytes.readUInt8(FIRST_DATA_AT) ^ 0x80, FIRST_DATA_AT),
  ],
  [
    'two bytes of its data are swapped, which no byte sum sees',
    (bytes) => {
      const at = bytes.findIndex((byte, index) => index >= FIRST_DATA_AT && byte !== bytes[index + 1])
      bytes.subarray(at, at + 2).reverse()
    },
  ],
  [
    'an entry has a wrong checksum',
    (bytes) => {
      const block = lastBlock(bytes)
      block.writeUInt8(block.readUInt8(40) ^ 1, 40)
    },
  ],
  [
    'an entry lies behind the end of the disk',
    (bytes) =>
      changeSlot(lastBlock(bytes), 1, 8, (slot) => void slot.writeBigUInt64LE(BigInt(1024 * MIB), 0)),
  ],
  [
    'an entry claims more data than there is',
    (bytes) => changeSlot(lastBlock(bytes), 1, 8, (slot) => void slot.writeUInt32LE(0x7fff_fe00, 12)),
  ],
  [
    'its blocks overlap',
    (bytes) => changeSlot(lastBlock(bytes), 0, 12, (slot) => void slot.writeBigUInt64LE(512n, 0)),
  ],
  [
    'a block claims more entries than it holds',
    (bytes) => changeSlot(lastBlock(bytes), 0, 12, (slot) => void slot.writeUInt32LE(60_000, 8)),
  ],
  [
    'its end lies behind the end of the file',
    (bytes) =>
      changeHeader(bytes, (header) => void header.writeBigUInt64LE(BigInt(1024 * MIB), END_OF_LOG_AT)),
  ],
  [
    'it says it was not closed',
    (bytes) => changeHeader(bytes, (header) => void header.writeBigUInt64LE(0n, END_OF_LOG_AT)),
  ],
]

describe('a log that waits', () => {
  it.each(damages)('%s: resynchronized with that reason, no byte lost', async (_, damage) => {
    const machine = await waiting()
    const path = waitingLogs()[0] as string
    const bytes = readFileSync(path)
    writeFileSync(path, damage(bytes) ?? bytes)
    const image = readFileSync(day.place.path('replica/os.raw.raw'))
    const code = await codeOf(machine.replicate())
    expect(code).toMatch(/^LOG_|^IO_FAILED$/)
    expect(readFileSync(day.place.path('replica/os.raw.raw')).equals(image), 'the image is as it was').toBe(
      true,
    )
    await day.guestWrites(machine)
    expect(await machine.measure()).toMatchObject({
      state: 'WaitingForStartResynchronize',
      resyncReason: 'LOG_DAMAGED',
      health: 'Critical',
    })
    expect(await day.repaired(machine)).toEqual(['resynchronize', 'replicate'])
  })

  it('is all that is compared when it is damaged, with what else was not released', async () => {
    const machine = await day.replicating(32 * MIB)
    const refused = day.files.fail({ path: day.place.path('replica/spool'), operation: 'open', error: 'EIO' })
    const chunk = 64 * 1024
    const offsets = [3, 100, 400]
    for (const number of offsets) {
      await machine.disks[0]?.write(number * chunk + 512, new Uint8Array(1024).fill(number))
      expect(await codeOf(machine.replicate())).toBe('IO_FAILED')
    }
    refused.disarm()
    const path = waitingLogs()[1] as string
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(FIRST_DATA_AT) ^ 1, FIRST_DATA_AT)
    writeFileSync(path, bytes)
    expect(await codeOf(machine.replicate())).toMatch(/^LOG_/)
    expect((await machine.measure()).disks[0]?.changedBytes, 'nothing is given up yet').toBe(0)
    await machine.disks[0]?.write(7 * chunk, new Uint8Array(512).fill(7))
    const report = await machine.resynchronize()
    // The first one was applied before the damage was met.
    expect(report).toMatchObject({ reason: 'LOG_DAMAGED', comparedBytes: 3 * chunk })
    expect(await day.repaired(machine)).toEqual(['replicate'])
  })

  it('of a resynchronization: the pass begins anew and comes to its end', async () => {
    let machine = await day.replicating()
    await day.guestWrites(machine)
    await machine.disks[0]?.requireResync('ASKED_FOR', true)
    const image = day.place.path('replica/os.raw.raw')
    const rotten = readFileSync(image)
    rotten.fill(0xee, MIB, MIB + 4096)
    writeFileSync(image, rotten)
    const refused = day.files.fail({ path: day.place.path('replica/spool'), operation: 'open', error: 'EIO' })
    expect(await codeOf(machine.resynchronize())).toBe('IO_FAILED')
    refused.disarm()
    const batch = readdirSync(day.place.folder).find(isBatch)
    const path = day.place.path(batch ?? 'no batch')
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(FIRST_DATA_AT) ^ 1, FIRST_DATA_AT)
    writeFileSync(path, bytes)
    machine = await day.reopen()
    if (machine.state === 'Resynchronizing') await machine.cancelResynchronize()
    if (machine.state === 'WaitingForStartResynchronize')
      expect(await codeOf(machine.resynchronize())).toMatch(/^LOG_/)
    await day.guestWrites(machine)
    expect(await day.repaired(machine)).toEqual(['resynchronize', 'replicate'])
    expect(readdirSync(day.place.folder).filter(isBatch)).toEqual([])
  })

  it('is cut short: the end is missed, and the disk resynchronized', async () => {
    const machine = await waiting()
    const path = waitingLogs()[0] as string
    truncateSync(path, 10_000)
    expect(await codeOf(machine.replicate())).toMatch(/^LOG_|^IO_FAILED$/)
    await day.guestWrites(machine)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it('is gone: so is what it held, and the disk is resynchronized', async () => {
    const machine = await waiting(2)
    rmSync(waitingLogs()[0] as string)
    expect(await codeOf(machine.replicate())).not.toBe('none')
    await day.guestWrites(machine)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it('is damaged while the engine is closed: found when it is opened, without the guest', async () => {
    await waiting()
    const path = waitingLogs()[0] as string
    await day.engine?.abandon()
    day.engine = undefined
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(FIRST_DATA_AT) ^ 1, FIRST_DATA_AT)
    writeFileSync(path, bytes)
    const machine = await day.reopen()
    await day.guestWrites(machine)
    if (machine.state === 'Replicating') expect(await codeOf(machine.replicate())).toMatch(/^LOG_/)
    expect(await machine.measure()).toMatchObject({ resyncReason: 'LOG_DAMAGED' })
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })
})

describe('a log on the replica', () => {
  it('that was damaged between its receipt and the apply is not applied', async () => {
    const machine = await day.replicating()
    await day.guestWrites(machine)
    const image = day.place.path('replica/os.raw.raw')
    const before = readFileSync(image)
    const full = day.files.fail({ path: image, operation: 'write', error: 'ENOSPC' })
    expect(await codeOf(machine.replicate())).toBe('DISK_FULL')
    full.disarm()
    const spool = day.place.path('replica/spool')
    const spooled = readdirSync(spool).filter((name) => name.endsWith('.hrl'))
    expect(spooled).toHaveLength(1)
    const path = `${spool}/${spooled[0]}`
    const bytes = readFileSync(path)
    bytes.writeUInt8(bytes.readUInt8(FIRST_DATA_AT) ^ 1, FIRST_DATA_AT)
    writeFileSync(path, bytes)
    expect(await codeOf(machine.replicate())).toMatch(/^LOG_/)
    expect(readFileSync(image).equals(before)).toBe(true)
    await day.guestWrites(machine)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })
})
