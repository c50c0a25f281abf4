/**
 * Disks that are none, that are two names of one, that have changed their size, and stores that are not ours: refused
 * with a code, a path and a hint, and nothing of them is changed.
 */

import { spawnSync } from 'node:child_process'
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { Engine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, refusal } from './bad-day.js'
import { skip } from './tools.js'
import { KIB, MIB } from './workplace.js'

let day: BadDay

beforeEach(() => {
  day = new BadDay()
})

afterEach(() => day.end())

describe('enable refuses, and leaves nothing behind,', () => {
  const cases: [string, string, (path: string) => void][] = [
    ['a disk that is not there', 'DISK_NOT_FOUND', () => {}],
    ['a folder', 'DISK_NOT_A_DISK', (path) => mkdirSync(path)],
    ['a pipe', 'DISK_NOT_A_DISK', (path) => spawnSync('mkfifo', [path])],
    ['an empty file', 'DISK_EMPTY', (path) => writeFileSync(path, '')],
    [
      'a size that is no multiple of 512',
      'DISK_SIZE_UNALIGNED',
      (path) => writeFileSync(path, 'x'.repeat(513)),
    ],
  ]
  it.each(cases)('%s: %s', async (_, code, make) => {
    const path = day.place.path('os.raw')
    make(path)
    const before = readdirSync(day.place.folder)
    day.engine = await day.place.open()
    const error = await refusal(day.place.enable(day.engine, [path]))
    expect(error).toMatchObject({ code, details: { path } })
    expect(day.engine.machines).toEqual([])
    expect(
      readdirSync(day.place.folder)
        .filter((name) => name !== 'state')
        .sort(),
    ).toEqual(before.sort())
  })

  it('a disk that cannot be opened, or read from', async () => {
    const path = day.place.makeDisk('os.raw', MIB)
    day.engine = await day.place.open()
    const broken = day.files.fail({ path, operation: 'open', error: 'EIO' })
    expect(await refusal(day.place.enable(day.engine, [path]))).toMatchObject({ code: 'DISK_READ_FAILED' })
    broken.disarm()
    expect((await day.place.enable(day.engine, [path])).state).toBe('ReadyForInitialReplication')
  })

  it('a file and a loop device over it', async () => {
    const path = day.place.makeDisk('os.raw', MIB)
    const { status, stdout } = spawnSync('losetup', ['--find', '--show', path], { encoding: 'utf8' })
    if (status !== 0) return skip('bad-input: loop device', 'losetup needs root and loop devices')
    const device = stdout.trim()
    try {
      day.engine = await day.place.open()
      expect(await refusal(day.place.enable(day.engine, [path, device]))).toMatchObject({ code: 'DISK_SAME' })
    } finally {
      spawnSync('losetup', ['--detach', device])
    }
  })

  it('a source that stands where its replica would', async () => {
    const path = day.place.makeDisk('os.raw', MIB)
    mkdirSync(day.place.path('replica'))
    linkSync(path, day.place.path('replica/os.raw.raw'))
    const before = readFileSync(path)
    day.engine = await day.place.open()
    const error = await refusal(day.place.enable(day.engine, [path]))
    expect(error).toMatchObject({
      code: 'DISK_IN_USE',
      details: { path: day.place.path('replica/os.raw.raw') },
    })
    expect(readFileSync(path).equals(before)).toBe(true)
  })

  it('a disk whose name leaves no room for the names of its logs', async () => {
    const name = `${'x'.repeat(201)}.raw`
    const path = day.place.makeDisk(name, MIB)
    day.engine = await day.place.open()
    const error = await refusal(day.place.enable(day.engine, [path]))
    expect(error).toMatchObject({ code: 'OPTION_OUT_OF_RANGE', details: { problems: [{ path: 'disks' }] } })
    expect(error.message).toContain('200')
    const longest = day.place.makeDisk('x'.repeat(200), MIB)
    const machine = await day.place.enable(day.engine, [longest])
    await machine.startInitialReplication()
    await day.guestWrites(machine)
    await machine.replicate()
    day.place.expectEqual(['x'.repeat(200)])
  })

  it('a disk that another engine tracks, and a replica that another engine serves', async () => {
    const machine = await day.replicating()
    const other = await Engine.open({ stateDirectory: day.place.path('state-2') })
    try {
      const replica = { directory: day.place.path('replica-2') }
      const twice = other.enable({ name: 'twice', disks: [day.place.path('os.raw')], replica })
      expect(await refusal(twice)).toMatchObject({ code: 'DISK_IN_USE' })
      const disks = [day.place.makeDisk('other.raw', MIB)]
      const foreign = other.enable({ name: 'db01', disks, replica: { directory: day.place.path('replica') } })
      const { code } = await refusal(foreign)
      expect(['STORE_IN_USE', 'STORE_FOREIGN']).toContain(code)
      expect(other.machines).toEqual([])
    } finally {
      await other.close()
    }
    await day.guestWrites(machine)
    expect(await day.repaired(machine)).toEqual(['replicate'])
  })
})

/** Unix milliseconds so many days from now. */
function days(count: number): number {
  return Date.now() + count * 86_400_000
}

describe('options out of range', () => {
  it.each([
    ['policy', { replicationFrequencySeconds: 0 }],
    ['policy', { replicationFrequencySeconds: Number.NaN }],
    ['policy', { resyncThresholdPercent: 101 }],
    ['policy', { chunkBytes: 1000 }],
    ['policy', { flushMode: 'never' }],
    ['policy', { unheardOf: 1 }],
  ])('of the %s are refused: %j', async (_, policy) => {
    const path = day.place.makeDisk('os.raw', MIB)
    day.engine = await day.place.open()
    const error = await refusal(day.place.enable(day.engine, [path], policy as object))
    expect(error.code).toBe('OPTION_OUT_OF_RANGE')
    expect(error.message).toContain(Object.keys(policy)[0])
    expect(existsSync(day.place.path('os.raw.hrt'))).toBe(false)
  })

  it('of a guest are refused before the disk is touched', async () => {
    const machine = await day.enabled()
    const [disk] = machine.disks
    if (!disk) throw new Error('no disk')
    const before = readFileSync(disk.path)
    const bytes = new Uint8Array(512)
    expect(await refusal(disk.write(disk.sizeBytes, bytes))).toMatchObject({ code: 'DISK_OUT_OF_RANGE' })
    expect(await refusal(disk.write(512, new Uint8Array(100)))).toMatchObject({ code: 'DISK_OUT_OF_RANGE' })
    expect(await refusal(disk.read(disk.sizeBytes - 512, 1024))).toMatchObject({ code: 'DISK_OUT_OF_RANGE' })
    await expect(disk.write(100, bytes)).rejects.toThrow(TypeError)
    await expect(disk.write(-512, bytes)).rejects.toThrow(TypeError)
    expect(readFileSync(disk.path).equals(before)).toBe(true)
  })

  it('of a start time are refused', async () => {
    const machine = await day.replicating()
    for (const startTimeMs of [days(-1), days(8)]) {
      expect(await refusal(machine.resynchronize({ startTimeMs }))).toMatchObject({ code: 'WINDOW_TOO_FAR' })
    }
    expect(machine.state).toBe('Replicating')
  })
})

describe('since it was protected', () => {
  it('a disk that has grown meanwhile is compared, as its file was changed, and the replica grows with it', async () => {
    const machine = await day.replicating()
    await day.guestWrites(machine)
    await day.engine?.close()
    truncateSync(day.place.path('os.raw'), 4 * MIB)
    const again = await day.reopen()
    expect(again.disks[0]?.sizeBytes).toBe(4 * MIB)
    expect(await again.measure()).toMatchObject({ resyncReason: 'DISK_MODIFIED_OFFLINE' })
    expect(await day.repaired(again)).toContain('resynchronize')
  })

  it('a disk that shrinks under the guest fails reads and copies, never with zeros for what is gone', async () => {
    const machine = await day.enabled()
    truncateSync(day.place.path('os.raw'), 512 * KIB)
    const [disk] = machine.disks
    expect(await refusal(disk?.read(MIB, 4096) ?? Promise.resolve())).toMatchObject({
      code: 'DISK_READ_FAILED',
    })
    expect(await refusal(machine.startInitialReplication())).toMatchObject({ code: 'DISK_READ_FAILED' })
  })
})

describe('a store', () => {
  it.each([
    ['state/state.db', 'the state directory'],
    ['replica/store.db', 'the replica'],
  ])('%s of a newer version is left as it is', async (file) => {
    await day.replicating()
    await day.engine?.close()
    day.engine = undefined
    const path = day.place.path(file)
    const bytes = readFileSync(path)
    bytes.writeUInt32BE(999, 60) // user_version in the header of an SQLite database
    writeFileSync(path, bytes)
    const opened = day.place.open()
    const failing = file.startsWith('state')
      ? opened
      : opened.then(async (engine) => {
          day.engine = engine
          await engine.machine('web01').replicate()
        })
    expect(await refusal(failing)).toMatchObject({ code: 'STORE_VERSION_NEWER', details: { version: 999 } })
    expect(readFileSync(path).readUInt32BE(60)).toBe(999)
  })

  it('that is no database is refused, not overwritten', async () => {
    mkdirSync(day.place.path('state'))
    writeFileSync(day.place.path('state/state.db'), 'this is somebody else`s file '.repeat(40))
    expect(await refusal(day.place.open())).toMatchObject({ code: 'STORE_CORRUPT' })
    expect(readFileSync(day.place.path('state/state.db'), 'utf8')).toMatch(/^this is somebody/)
  })
})
