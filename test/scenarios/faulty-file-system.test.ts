/**
 * The testing export as an embedder uses it: a disk in memory and files that fail on command, in the core and in
 * TypeScript, in every thread.
 */

import { Engine, isSecondsiteError } from '@secondsite/engine'
import { FaultyFileSystem, MemoryDisk } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace
let files: FaultyFileSystem

beforeEach(() => {
  place = new Workplace()
  files = new FaultyFileSystem()
})

afterEach(() => {
  files.heal()
  place.remove()
})

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error === undefined) return 'no failure'
  if (!isSecondsiteError(error)) throw error
  return error.code
}

describe('a memory disk under the engine', () => {
  it('is replicated like any other, byte for byte', async () => {
    await using disk = await MemoryDisk.create({ sizeBytes: 4 * MIB })
    await disk.fillRandom({ seed: 3, lengthBytes: MIB })
    await using engine = await Engine.open({ stateDirectory: place.path('state') })
    const replica = { directory: place.path('replica') }
    const machine = await engine.enable({ name: 'web01', disks: [disk.path], replica })
    await machine.startInitialReplication()
    await machine.disks[0]?.write(2 * MIB, place.random.bytes(64 * KIB))
    await machine.replicate()
    expect(await disk.firstDifference(place.path('replica/disk.raw.raw'))).toBe(-1)
  })
})

describe('a rule', () => {
  it('fails a write of a disk in the core, where it says and as often as it says', async () => {
    await using engine = await place.open()
    const machine = await place.enable(engine, [place.makeDisk('os.raw', MIB)])
    const [disk] = machine.disks
    if (!disk) throw new Error('no disk')
    const range = { offset: 8192, lengthBytes: 512 }
    const bad = files.fail({ path: disk.path, operation: 'write', error: 'EIO', range, times: 1 })
    expect(await codeOf(disk.write(4096, new Uint8Array(4096)))).toBe('no failure')
    expect(await codeOf(disk.write(8192, new Uint8Array(4096)))).toBe('DISK_WRITE_FAILED')
    expect(await codeOf(disk.write(8192, new Uint8Array(4096)))).toBe('no failure')
    expect(bad.strikes).toBe(1)
  })

  it.each([
    ['spool', 'write', 'ENOSPC', 'REPLICA_DISK_FULL'],
    ['spool', 'sync', 'EIO', 'IO_FAILED'],
    ['spool', 'open', 'ENOSPC', 'REPLICA_DISK_FULL'],
    ['store.db', 'write', 'ENOSPC', 'REPLICA_DISK_FULL'],
    ['os.raw.raw', 'write', 'ENOSPC', 'DISK_FULL'],
    ['os.raw.raw', 'sync', 'EIO', 'DISK_SYNC_FAILED'],
  ] as const)('fails the %s of the replica: %s, %s', async (name, operation, error, code) => {
    await using engine = await place.open()
    const machine = await place.enable(engine, [place.makeDisk('os.raw', MIB)])
    await machine.startInitialReplication()
    await place.scribble(machine, 5)
    const rule = files.fail({ path: place.path(`replica/${name}`), operation, error })
    expect(await codeOf(machine.replicate())).toBe(code)
    expect(rule.strikes).toBeGreaterThan(0)
    files.heal()
    if (machine.state === 'Error') await machine.resume()
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })

  it('fails the state database, as a full disk does', async () => {
    await using engine = await place.open()
    const machine = await place.enable(engine, [place.makeDisk('os.raw', MIB)])
    await machine.startInitialReplication()
    const full = files.fail({ path: place.path('state'), suffix: '.db', operation: 'write', error: 'ENOSPC' })
    expect(await codeOf(machine.suspend())).toBe('STATE_DISK_FULL')
    expect(machine.state).toBe('Replicating')
    full.disarm()
    await machine.suspend()
    expect(machine.state).toBe('Suspended')
  })

  it('ends with its file system, and says how often it struck', async () => {
    const path = place.makeDisk('os.raw', MIB)
    await using engine = await place.open()
    let struck
    {
      using mine = new FaultyFileSystem()
      struck = mine.fail({ path, operation: 'open', error: 'EIO' })
      expect(await codeOf(place.enable(engine, [path]))).toBe('DISK_READ_FAILED')
    }
    expect(struck.strikes).toBe(1)
    expect((await place.enable(engine, [path])).state).toBe('ReadyForInitialReplication')
  })

  it('that makes no sense is refused', () => {
    const rule = { path: place.folder, operation: 'write', error: 'EIO' } as const
    expect(() => files.fail({ ...rule, path: '' })).toThrow(TypeError)
    expect(() => files.fail({ ...rule, afterBytes: -1 })).toThrow(TypeError)
    expect(() => files.fail({ ...rule, times: 1.5 })).toThrow(TypeError)
    expect(() => files.fail({ ...rule, error: 'ENOENT' as 'EIO' })).toThrow(/error/)
  })
})
