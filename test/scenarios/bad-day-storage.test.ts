/**
 * Full disks and failing disks, on every side and in every phase. The guest's writes go on unless its own disk fails
 * them; nothing that was acknowledged is lost; once the storage works again both sides become equal, and only what is
 * uncertain is compared.
 */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import type { FaultRule } from '@secondsite/engine/testing'
import type { ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, codeOf, refusal } from './bad-day.js'
import { skip } from './tools.js'
import { KIB, MIB } from './workplace.js'

let day: BadDay

beforeEach(() => {
  day = new BadDay()
})

afterEach(() => day.end())

type Fault = Omit<FaultRule, 'path'> & { readonly on: string }

function arm({ on, ...rule }: Fault): ReturnType<BadDay['files']['fail']> {
  return day.files.fail({ path: day.place.path(on), ...rule })
}

/** The verb of a phase. */
const phases: Readonly<Record<string, (machine: ProtectedMachine) => Promise<unknown>>> = {
  initial: (machine) => machine.startInitialReplication(),
  cycle: (machine) => machine.replicate(),
  resync: (machine) => machine.resynchronize(),
  verify: (machine) => machine.verify(),
}

describe('the disk of the logs', () => {
  it.each([
    ['is full', { on: '', suffix: '.hrl', operation: 'write', error: 'ENOSPC' }, 'LOG_DISK_FULL'],
    [
      'becomes full within a write',
      { on: '', suffix: '.hrl', operation: 'write', error: 'ENOSPC', afterBytes: 70_000 },
      'LOG_DISK_FULL',
    ],
    ['fails', { on: '', suffix: '.hrl', operation: 'write', error: 'EIO' }, 'LOG_WRITE_FAILED'],
    ['fails the index', { on: '', suffix: '.hrx', operation: 'write', error: 'EIO' }, 'LOG_WRITE_FAILED'],
  ] as const)('%s: the map takes over, and only what was written is compared', async (_, fault, reason) => {
    const machine = await day.replicating(8 * MIB)
    await day.guestWrites(machine)
    await machine.replicate()
    const rule = arm(fault)
    for (let offset = 0; offset < 512 * KIB; offset += 64 * KIB) {
      await machine.disks[0]?.write(offset, day.place.random.bytes(64 * KIB))
    }
    expect(rule.strikes).toBeGreaterThan(0)
    expect(machine.disks[0]?.status()).toMatchObject({
      mode: 'map',
      resyncReason: reason,
      isWholeDiskUnknown: false,
    })
    await codeOf(machine.replicate())
    expect(await machine.measure()).toMatchObject({ resyncReason: reason, health: 'Critical' })
    rule.disarm()
    await machine.disks[0]?.write(4 * MIB, day.place.random.bytes(4096))
    const report = await machine.resynchronize()
    expect(report?.comparedBytes).toBeGreaterThanOrEqual(512 * KIB)
    expect(report?.comparedBytes).toBeLessThanOrEqual(1 * MIB)
    expect(machine.disks[0]?.status()).toMatchObject({ mode: 'logging', resyncReason: null })
    expect(await day.repaired(machine)).toEqual(['replicate'])
  })

  it('is full for the second of two disks alone: that is enough', async () => {
    day.engine = await day.place.open()
    const disks = ['os.raw', 'data.raw'].map((name) => day.place.makeDisk(name, 2 * MIB))
    const machine = await day.place.enable(day.engine, disks, { autoResynchronize: { enabled: false } })
    await machine.startInitialReplication()
    const path = day.place.path('data.raw')
    const rule = arm({ on: '', suffix: '.hrl', operation: 'write', error: 'ENOSPC' })
    await machine.disks[1]?.write(4096, day.place.random.bytes(4096))
    expect(rule.strikes).toBeGreaterThan(0)
    rule.disarm()
    expect(
      machine.disks.map((disk) => disk.status().resyncReason),
      path,
    ).toEqual([null, 'LOG_DISK_FULL'])
    expect(await codeOf(machine.replicate())).toBe('INVALID_STATE')
    expect(await machine.measure()).toMatchObject({
      state: 'WaitingForStartResynchronize',
      resyncReason: 'LOG_DISK_FULL',
    })
    await machine.resynchronize()
    await machine.replicate()
    day.place.expectEqual(['os.raw', 'data.raw'])
  })

  it('fails its sync: a flush still makes the guest`s data durable', async () => {
    const machine = await day.replicating()
    const rule = arm({ on: '', suffix: '.hrl', operation: 'sync', error: 'EIO' })
    await day.guestWrites(machine)
    await codeOf(machine.replicate())
    expect(rule.strikes).toBeGreaterThan(0)
    rule.disarm()
    await day.guestWrites(machine)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it('is a small file system that is really full, and then freed', async () => {
    const folder = day.place.path('small')
    mkdirSync(folder)
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]).status !== 0) {
      return skip('bad-day: full tmpfs', 'mounting needs root')
    }
    try {
      day.engine = await day.place.open()
      const disk = { path: day.place.makeDisk('os.raw', 8 * MIB), trackingDirectory: folder }
      const replica = { directory: day.place.path('replica') }
      const policy = { replicationFrequencySeconds: 86_400, autoResynchronize: { enabled: false } }
      const machine = await day.engine.enable({ name: 'web01', disks: [disk], replica, policy })
      // Batches of the first copy go where the logs go: it waits until there is room for one.
      const ballast = `${folder}/ballast`
      writeFileSync(ballast, new Uint8Array(512 * KIB))
      await day.guestWrites(machine, 60)
      expect(machine.disks[0]?.status().mode).toBe('map')
      expect(await refusal(machine.startInitialReplication())).toMatchObject({
        details: { path: expect.stringContaining('small') },
      })
      spawnSync('mount', ['-o', 'remount,size=64m', folder])
      rmSync(ballast)
      await day.guestWrites(machine)
      expect((await day.repaired(machine)).at(-1)).toBe('replicate')
    } finally {
      await day.engine?.close()
      day.engine = undefined
      spawnSync('umount', [folder])
    }
  })
})

describe('the disk of the guest', () => {
  const reads: [string, string][] = [
    ['initial', 'DISK_READ_FAILED'],
    ['resync', 'DISK_READ_FAILED'],
    ['verify', 'DISK_READ_FAILED'],
  ]
  it.each(reads)(
    'has a sector that cannot be read: %s says so with its place, and goes on when it can',
    async (phase, code) => {
      const machine = phase === 'initial' ? await day.enabled() : await day.replicating()
      const range = { offset: 700 * KIB, lengthBytes: 512 }
      const bad = arm({ on: 'os.raw', operation: 'read', error: 'EIO', range })
      const error = await refusal((phases[phase] as (machine: ProtectedMachine) => Promise<unknown>)(machine))
      expect(error).toMatchObject({ code, details: { path: day.place.path('os.raw') } })
      expect(bad.strikes).toBeGreaterThan(0)
      await day.place.scribble(machine, 10)
      bad.disarm()
      expect((await day.repaired(machine)).at(-1)).toBe('replicate')
    },
  )

  it('fails a write: the guest gets the error, and the replica what the disk really holds', async () => {
    const machine = await day.replicating()
    const [disk] = machine.disks
    if (!disk) throw new Error('no disk')
    const bad = arm({ on: 'os.raw', operation: 'write', error: 'EIO', afterBytes: 8192, times: 1 })
    expect(await refusal(disk.write(MIB, day.place.random.bytes(64 * KIB)))).toMatchObject({
      code: 'DISK_WRITE_FAILED',
    })
    expect(bad.strikes).toBe(1)
    await day.guestWrites(machine)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it('is full: the guest gets that error, and goes on elsewhere', async () => {
    const machine = await day.replicating()
    const [disk] = machine.disks
    const full = arm({
      on: 'os.raw',
      operation: 'write',
      error: 'ENOSPC',
      range: { offset: MIB, lengthBytes: MIB },
    })
    expect(await codeOf(disk?.write(MIB + 4096, new Uint8Array(4096)) ?? Promise.resolve())).toBe('DISK_FULL')
    expect(await codeOf(disk?.write(4096, new Uint8Array(4096)) ?? Promise.resolve())).toBe('none')
    full.disarm()
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it('fails a flush: no flush is believed until the disk was opened again, and nothing is lost', async () => {
    const machine = await day.replicating()
    const once = arm({ on: 'os.raw', operation: 'sync', error: 'EIO', times: 1 })
    await day.place.scribble(machine, 5)
    expect(await codeOf(machine.disks[0]?.flush() ?? Promise.resolve())).toBe('DISK_SYNC_FAILED')
    once.disarm()
    expect(await codeOf(machine.disks[0]?.flush() ?? Promise.resolve())).toBe('DISK_SYNC_FAILED')
    const again = await day.reopen('abandon')
    await day.guestWrites(again)
    expect((await day.repaired(again)).at(-1)).toBe('replicate')
  })
})

describe('the storage of the replica', () => {
  const faults: [string, string, Fault][] = [
    [
      'full spool',
      'REPLICA_DISK_FULL',
      { on: 'replica/spool', operation: 'write', error: 'ENOSPC', afterBytes: 20_000 },
    ],
    [
      'full image',
      'DISK_FULL',
      { on: 'replica/os.raw.raw', operation: 'write', error: 'ENOSPC', afterBytes: 30_000 },
    ],
    ['failing image', 'DISK_WRITE_FAILED', { on: 'replica/os.raw.raw', operation: 'write', error: 'EIO' }],
    ['full database', 'REPLICA_DISK_FULL', { on: 'replica/store.db', operation: 'write', error: 'ENOSPC' }],
    ['failing database', 'IO_FAILED', { on: 'replica/store.db', operation: 'write', error: 'EIO' }],
  ]
  const cases = faults.flatMap((fault) =>
    ['initial', 'cycle', 'resync'].map((phase) => [phase, ...fault] as const),
  )
  it.each(cases)(
    '%s on a %s: %s, the guest goes on, and so does replication after it',
    async (phase, _, code, fault) => {
      const machine = phase === 'initial' ? await day.enabled() : await day.replicating()
      await day.guestWrites(machine, 20)
      const rule = arm(fault)
      expect(await codeOf((phases[phase] as (machine: ProtectedMachine) => Promise<unknown>)(machine))).toBe(
        code,
      )
      expect(rule.strikes).toBeGreaterThan(0)
      await day.guestWrites(machine)
      const measured = await machine.measure()
      expect(measured.lastError).toMatchObject({ code })
      rule.disarm()
      expect((await day.repaired(machine)).at(-1)).toBe('replicate')
    },
  )

  it('cannot read its image: verify says which file, and changes nothing', async () => {
    const machine = await day.replicating()
    const image = day.place.path('replica/os.raw.raw')
    const before = readFileSync(image)
    const bad = arm({ on: 'replica/os.raw.raw', operation: 'read', error: 'EIO' })
    expect(await refusal(machine.verify())).toMatchObject({
      code: 'DISK_READ_FAILED',
      details: { path: image },
    })
    bad.disarm()
    expect(readFileSync(image).equals(before)).toBe(true)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })
})

describe('the state database', () => {
  it.each(['initial', 'cycle', 'resync'])(
    'is full during %s: nothing is half done, and it goes on after it',
    async (phase) => {
      for (const afterBytes of [0, 1, 2, 3, 5, 8, 13, 21]) {
        const machine = phase === 'initial' ? await day.enabled() : await day.replicating()
        await day.guestWrites(machine)
        const rule = arm({ on: 'state', suffix: '.db', operation: 'write', error: 'ENOSPC', afterBytes })
        const code = await codeOf((phases[phase] as (machine: ProtectedMachine) => Promise<unknown>)(machine))
        if (rule.strikes > 0) expect(code).toBe('STATE_DISK_FULL')
        await day.guestWrites(machine)
        rule.disarm()
        expect((await day.repaired(machine)).at(-1), `after ${afterBytes} statements`).toBe('replicate')
        await day.end()
        day = new BadDay()
      }
    },
  )

  it('is full when the engine is closed: the next one goes on from what is there', async () => {
    const machine = await day.replicating()
    await day.guestWrites(machine)
    const rule = arm({ on: 'state', suffix: '.db', operation: 'write', error: 'ENOSPC' })
    await codeOf(machine.replicate())
    await codeOf(day.engine?.close() ?? Promise.resolve())
    rule.disarm()
    const again = await day.reopen('abandon')
    await day.guestWrites(again)
    expect((await day.repaired(again)).at(-1)).toBe('replicate')
    expect(existsSync(day.place.path('state/state.db'))).toBe(true)
  })
})
