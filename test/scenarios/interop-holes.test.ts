/**
 * Ranges that clients overwrite, zero and trim, and whole images that they copy in: the replica becomes equal and takes no
 * more room than its disk.
 */

import { execFileSync } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Engine, NbdExport, ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { client, qemuIo } from './clients.js'
import { missingTool, skip } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

const missing = missingTool('qemu-io', 'qemu-img', 'nbdinfo', 'nbdcopy')
const SEED = 20_261_121
const DISK_BYTES = 32 * MIB
/** What file systems give room in; ranges are multiples of it, so that trimming one frees all of it. */
const BLOCK_BYTES = 4 * KIB
const REQUESTS_PER_CYCLE = 60
const CYCLE_COUNT = process.env['SECONDSITE_SLOW'] ? 40 : 4
/** A file system counts its own blocks, which say where those of a file are, as the file's: 16 of them for a file of 32 MiB at most. */
const MAPPING_BYTES_MAX = 16 * BLOCK_BYTES
/** Of a test; each takes some seconds where nothing else runs. */
const limit = { timeout: 600_000 }

let place: Workplace
let engine: Engine
let machine: ProtectedMachine
let nbd: NbdExport

beforeEach(async () => {
  place = new Workplace(SEED)
  engine = await place.open()
  machine = await place.enable(engine, [place.makeDisk('os.raw', DISK_BYTES, DISK_BYTES / 2)])
  nbd = await machine.exportNbd({ listen: `unix:${place.path('nbd.sock')}` })
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

const replicaPath = (): string => join(place.path('replica'), 'os.raw.raw')

function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512
}

/** The replica equals its disk, and has no block that the disk has not. */
function expectEqualAndAsSparse(): void {
  place.expectEqual(['os.raw'])
  const boundBytes = allocatedBytes(place.path('os.raw')) + MAPPING_BYTES_MAX
  expect(allocatedBytes(replicaPath())).toBeLessThanOrEqual(boundBytes)
}

/** Requests as qemu-io has them, many of them over what others wrote just before. */
function randomRequests(count: number): string[] {
  const verbs = [
    'write -P 0x',
    'write -P 0x',
    'write -z ',
    'write -z -u ',
    'discard ',
    'write -P 0 ',
  ] as const
  return Array.from({ length: count }, () => {
    const lengthBytes = BLOCK_BYTES * (1 + place.random.below(64))
    const offset = BLOCK_BYTES * place.random.below((DISK_BYTES / 4 - lengthBytes) / BLOCK_BYTES)
    const verb = verbs[place.random.below(verbs.length)] as string
    const pattern = verb.endsWith('x') ? `${(1 + place.random.below(255)).toString(16)} ` : ''
    return `${verb}${pattern}${offset} ${lengthBytes}`
  })
}

/** What qemu-img says about where an image has data. */
function hasData(path: string): boolean {
  const map = execFileSync('qemu-img', ['map', '--output=json', '-f', 'raw', path], { encoding: 'utf8' })
  return (JSON.parse(map) as { data: boolean }[]).some(({ data }) => data)
}

describe('a disk that clients overwrite, zero, trim and copy to', limit, () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('interop: zeroes, trims and copies', missing))
    return
  }

  it('converges, and the replica takes no more room', async () => {
    await machine.startInitialReplication()
    expectEqualAndAsSparse()
    for (let cycle = 0; cycle < CYCLE_COUNT; cycle += 1) {
      await qemuIo(nbd.uri('os.raw'), ...randomRequests(REQUESTS_PER_CYCLE), 'flush')
      await machine.replicate()
      expectEqualAndAsSparse()
    }
  })

  it('reads back as zeros, and a disk trimmed whole is one hole on both sides', async () => {
    await machine.startInitialReplication()
    expect(allocatedBytes(replicaPath())).toBeGreaterThanOrEqual(DISK_BYTES / 2)
    await qemuIo(
      nbd.uri('os.raw'),
      'write -P 9 20M 1M',
      `discard 0 ${DISK_BYTES}`,
      `read -P 0 0 ${DISK_BYTES}`,
    )
    await machine.replicate()
    expectEqualAndAsSparse()
    expect(readFileSync(replicaPath()).equals(Buffer.alloc(DISK_BYTES))).toBe(true)
    expect(hasData(replicaPath())).toBe(false)
    const map = await client('nbdinfo', '--json', '--map', nbd.uri('os.raw'))
    expect(JSON.parse(map)).toMatchObject([{ offset: 0, length: DISK_BYTES, type: 3 }])
    expect(allocatedBytes(place.path('os.raw'))).toBeLessThanOrEqual(MAPPING_BYTES_MAX)
  })

  it('is resynchronized with its holes', async () => {
    await machine.startInitialReplication()
    await qemuIo(nbd.uri('os.raw'), 'discard 0 8M', 'write -P 3 8M 1M', 'write -z -u 9M 3M')
    await machine.resynchronize()
    expectEqualAndAsSparse()
    expect(
      readFileSync(replicaPath())
        .subarray(0, 8 * MIB)
        .every((byte) => byte === 0),
    ).toBe(true)
  })

  it('takes an image from qcow2 by qemu-img and another from a file by nbdcopy, holes and all', async () => {
    const raw = place.makeDisk('new.raw', DISK_BYTES, MIB)
    execFileSync('qemu-img', ['convert', '-O', 'qcow2', raw, place.path('new.qcow2')])
    await machine.startInitialReplication()
    const uri = nbd.uri('os.raw')
    await client('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', place.path('new.qcow2'), uri)
    await machine.replicate()
    await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, uri)
    await client('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, replicaPath())
    expectEqualAndAsSparse()

    writeFileSync(raw, place.random.bytes(2 * MIB), { flag: 'r+' })
    await client('nbdcopy', '--connections=4', '--flush', '--destination-is-zero', raw, uri)
    await machine.replicate()
    await client('nbdcopy', uri, place.path('out.raw'))
    expect(readFileSync(place.path('out.raw')).equals(readFileSync(raw))).toBe(true)
    expectEqualAndAsSparse()
  })
})
