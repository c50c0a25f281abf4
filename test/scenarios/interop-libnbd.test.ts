/**
 * Scripts over libnbd: every way to come to an export, every request that must be refused, and a backup by the context of
 * ours that tells what was written since the last acknowledged cut.
 */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Engine, NbdExport, ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { client, hasLibnbdPython, PYTHON, qemuIo } from './clients.js'
import { missingTool, skip } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

const missing = missingTool('nbdinfo', 'qemu-io')
const scripts = join(import.meta.dirname, 'libnbd')
const backupScript = join(import.meta.dirname, '../../examples/incremental-backup.py')
const DISK_BYTES = 64 * MIB
/** What `secondsite:dirty` counts in (docs/spec/nbd.md). */
const CHUNK_BYTES = 64 * KIB
/** Of a test; each takes some seconds where nothing else runs. */
const limit = { timeout: 300_000 }

let place: Workplace
let engine: Engine
let machine: ProtectedMachine
let nbd: NbdExport

beforeEach(async () => {
  place = new Workplace()
  engine = await place.open()
  machine = await place.enable(engine, [place.makeDisk('os.raw', DISK_BYTES, 8 * MIB)])
  nbd = await machine.exportNbd({ listen: `unix:${place.path('nbd.sock')}` })
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

/** What a script prints about the export. */
async function script(name: string, ...args: string[]): Promise<Record<string, Record<string, unknown>>> {
  return JSON.parse(await client(PYTHON, join(scripts, name), place.path('nbd.sock'), 'os.raw', ...args))
}

/** What libnbd must be told when it agreed on this. */
function fixed(contexts: readonly string[]): object {
  const told = { protocol: 'newstyle-fixed', isStructured: true, canDf: true, isSame: true, contexts }
  return { ...told, sizeBytes: DISK_BYTES }
}

/** What each request of errors.py is answered by docs/spec/nbd.md, but for what depends on the kind of replies. */
function refusals(differing: Record<string, string>): Record<string, string> {
  return {
    'read behind the end': 'EINVAL',
    'read across the end': 'EINVAL',
    'write behind the end': 'ENOSPC',
    'write far behind the end': 'ENOSPC',
    'zero behind the end': 'ENOSPC',
    'trim behind the end': 'EINVAL',
    'status behind the end': 'EINVAL',
    'read of nothing': 'EINVAL',
    'write of nothing': 'EINVAL',
    'trim of nothing': 'EINVAL',
    'read of a part of a sector': 'EINVAL',
    'write at a part of a sector': 'EINVAL',
    'read of too much': 'EINVAL',
    'read of the most': 'done',
    'read without fragments': 'EINVAL',
    'write with a foreign flag': 'EINVAL',
    'fast zero': 'ENOTSUP',
    'read after all of it': 'done',
    ...differing,
  }
}

/** A handshake without structured replies, hence without anything built on them. */
function plain(protocol: string): object {
  const told = { protocol, isStructured: false, canDf: false, isSame: true, contexts: [] }
  return { ...told, sizeBytes: DISK_BYTES }
}

interface Extent {
  readonly offset: number
  readonly length: number
  readonly type: number
}

/** The ranges that libnbd's own tool calls dirty. */
async function dirtyRanges(): Promise<{ offset: number; lengthBytes: number }[]> {
  const map = await client('nbdinfo', '--json', '--map=secondsite:dirty', nbd.uri('os.raw'))
  const dirty = (JSON.parse(map) as Extent[]).filter(({ type }) => type === 1)
  return dirty.map(({ offset, length }) => ({ offset, lengthBytes: length }))
}

describe('libnbd', limit, () => {
  it('comes by every handshake it knows, and in each writes, flushes and reads', async () => {
    if (!hasLibnbdPython('interop: handshakes of libnbd')) return
    const told = await script('handshakes.py')
    const both = ['base:allocation', 'secondsite:dirty']
    expect(told).toEqual({
      usual: fixed([]),
      old_style: plain('newstyle'),
      old_style_without_zeroes: plain('newstyle'),
      fixed_with_zeroes: fixed([]),
      simple_replies: plain('newstyle-fixed'),
      allocation: fixed(['base:allocation']),
      both_contexts: fixed(both),
      foreign_context: fixed([]),
      options_one_by_one: { ...fixed([]), listed: ['os.raw'], known: both },
    })
    expect(nbd.counters()).toMatchObject({ errorCount: 0, writtenBytes: 9 * 4 * KIB })
    const image = readFileSync(place.path('os.raw'))
    const firstBytes = Object.keys(told).map((_, index) => image[index * 4 * KIB])
    expect(firstBytes).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9])
  })

  it('is told the right errno for what is refused, and its connection goes on', async () => {
    if (!hasLibnbdPython('interop: errors told to libnbd')) return
    const disk = machine.disks[0]
    if (disk === undefined) throw new Error('no disk')
    const readOnly = place.path('read-only.sock')
    await disk.exportNbd({ listen: `unix:${readOnly}`, readOnly: true })
    const before = readFileSync(place.path('os.raw'))
    const told = await script('errors.py', readOnly)
    expect(told).toEqual({
      structured: refusals({ 'read of too much': 'EOVERFLOW', 'read without fragments': 'done' }),
      simple: refusals({}),
      readOnly: { write: 'EPERM', trim: 'EPERM', zero: 'EPERM', read: 'done' },
      'unknown name': 'ENOENT',
    })
    expect(readFileSync(place.path('os.raw')).equals(before)).toBe(true)
  })
})

describe('the ranges that are dirty', limit, () => {
  if (missing !== undefined) {
    it('cannot be asked for here', () => skip('interop: dirty ranges', missing))
    return
  }

  it('are those written since the last acknowledged cut, and none after the next one', async () => {
    await machine.startInitialReplication()
    await machine.replicate()
    expect(await dirtyRanges()).toEqual([])
    await qemuIo(
      nbd.uri('os.raw'),
      'write -P 1 1M 64k',
      'write -P 2 5000k 4k',
      'write -z 32M 2M',
      'discard 48M 64k',
    )
    const written = [
      { offset: MIB, lengthBytes: CHUNK_BYTES },
      { offset: 78 * CHUNK_BYTES, lengthBytes: CHUNK_BYTES },
      { offset: 32 * MIB, lengthBytes: 2 * MIB },
      { offset: 48 * MIB, lengthBytes: CHUNK_BYTES },
    ]
    expect(await dirtyRanges()).toEqual(written)
    await machine.replicate()
    expect(await dirtyRanges()).toEqual([])
    await qemuIo(nbd.uri('os.raw'), 'write -P 3 0 512')
    expect(await dirtyRanges()).toEqual([{ offset: 0, lengthBytes: CHUNK_BYTES }])
  })

  it('copied onto the image of the replica give the disk, with nothing else read', async () => {
    if (!hasLibnbdPython('interop: a backup of the dirty ranges')) return
    await machine.startInitialReplication()
    await place.scribble(machine, 50)
    await machine.replicate()
    for (let round = 0; round < 3; round += 1) {
      await place.scribble(machine, 20)
      await qemuIo(nbd.uri('os.raw'), `write -z ${16 + round}M 512k`)
      const dirtyBytes = (await dirtyRanges()).reduce((total, { lengthBytes }) => total + lengthBytes, 0)
      const readBefore = nbd.counters().readBytes
      const base = join(place.path('replica'), 'os.raw.raw')
      const told = await client(PYTHON, backupScript, nbd.uri('os.raw'), base, place.path('backup.raw'))
      expect(told).toBe(`copied ${dirtyBytes} of ${DISK_BYTES} bytes\n`)
      expect(nbd.counters().readBytes - readBefore).toBe(dirtyBytes)
      expect(dirtyBytes).toBeLessThan(DISK_BYTES / 4)
      expect(readFileSync(place.path('backup.raw')).equals(readFileSync(place.path('os.raw')))).toBe(true)
      expect(readFileSync(base).equals(readFileSync(place.path('os.raw')))).toBe(false)
      await machine.replicate()
    }
  })
})
