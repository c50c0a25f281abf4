/**
 * What a user gets wrong is told by code, with what was wrong where, and nothing is changed by it.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, linkSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Engine, isSecondsiteError } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { hasTool } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace

beforeEach(() => {
  place = new Workplace()
})

afterEach(() => place.remove())

/** The error that a promise must end with; every one has a hint and details. */
async function refusal(promise: Promise<unknown>): Promise<{ code: string; details: object; hint: string }> {
  const error = await promise.then(
    () => new Error('it was not refused'),
    (thrown: unknown) => thrown,
  )
  if (!isSecondsiteError(error)) throw error
  expect(error.hint).not.toBe('')
  return error
}

describe('enable refuses', () => {
  let engine: Engine

  beforeEach(async () => {
    engine = await place.open()
  })

  afterEach(() => engine.close())

  it('a disk twice, by name, hard link or symbolic link', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    linkSync(disk, place.path('hard.raw'))
    symlinkSync(disk, place.path('soft.raw'))
    for (const other of ['os.raw', 'hard.raw', 'soft.raw']) {
      expect(await refusal(place.enable(engine, [disk, place.path(other)]))).toMatchObject({
        code: 'DISK_SAME',
      })
    }
    expect(engine.machines).toEqual([])
  })

  it('settings out of range, all of them at once', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    const policy = { resyncThresholdPercent: 0, chunkBytes: 5000 }
    const error = await refusal(place.enable(engine, [disk], policy))
    expect(error).toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    expect(JSON.stringify(error.details)).toContain('resyncThresholdPercent')
    expect(JSON.stringify(error.details)).toContain('chunkBytes')
  })

  it('a name that is no name, and one that is taken', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    const replica = { directory: place.path('replica') }
    const named = (name: string) => engine.enable({ name, disks: [disk], replica })
    expect(await refusal(named('../etc'))).toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    await named('web01')
    expect(await refusal(named('web01'))).toMatchObject({ code: 'MACHINE_EXISTS' })
  })

  it('a replica folder that holds another machine, and leaves it as it is', async () => {
    await place.enable(engine, [place.makeDisk('os.raw', MIB)])
    const other = place.makeDisk('other.raw', MIB)
    const request = { name: 'db01', disks: [other], replica: { directory: place.path('replica') } }
    expect(await refusal(engine.enable(request))).toMatchObject({ code: 'STORE_FOREIGN' })
    expect(existsSync(place.path('replica/other.raw.raw'))).toBe(false)
    expect(engine.machines.map((machine) => machine.name)).toEqual(['web01'])
    const elsewhere = await engine.enable({ ...request, replica: { directory: place.path('replica-2') } })
    expect(elsewhere.state).toBe('ReadyForInitialReplication')
  })

  it('a disk that QEMU has open, and QEMU a disk that is tracked', async () => {
    if (!hasTool('qemu-io', 'bad-input: QEMU image locks')) return
    const disk = place.makeDisk('os.raw', MIB)
    const holder = spawn('qemu-io', ['-f', 'raw', disk], { stdio: ['pipe', 'pipe', 'inherit'] })
    holder.stdin.write('read 0 512\n')
    await once(holder.stdout, 'data')
    expect(await refusal(place.enable(engine, [disk]))).toMatchObject({
      code: 'DISK_IN_USE',
      details: { path: disk },
    })
    holder.stdin.end('quit\n')
    await once(holder, 'exit')
    await place.enable(engine, [disk])
    const refused = spawn('qemu-io', ['-f', 'raw', '-c', 'write 0 512', disk], { stdio: 'pipe' })
    const [exitCode] = await once(refused, 'exit')
    expect(exitCode).not.toBe(0)
  })
})

describe('a state directory', () => {
  it('is opened by one engine at a time', async () => {
    const first = await place.open()
    expect(await refusal(place.open())).toMatchObject({
      code: 'STATE_IN_USE',
      details: { path: place.path('state'), processId: process.pid },
    })
    await first.close()
    await (await place.open()).close()
  })

  it('of a machine whose disk has shrunk is refused, and the replica keeps its bytes', async () => {
    const disk = place.makeDisk('os.raw', MIB, MIB)
    const engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    await engine.close()
    const before = readFileSync(join(place.path('replica'), 'os.raw.raw'))
    truncateSync(disk, 512 * KIB)
    await using again = await place.open()
    const taken = again.machine('web01')
    expect(await taken.measure()).toMatchObject({ state: 'Error', lastError: { code: 'DISK_SIZE_DIFFERS' } })
    expect(await refusal(taken.resume())).toMatchObject({ code: 'DISK_SIZE_DIFFERS' })
    expect(readFileSync(join(place.path('replica'), 'os.raw.raw')).equals(before)).toBe(true)
  })
})

describe('a disk that was changed while nobody tracked it', () => {
  it('is resynchronized, with that reason', async () => {
    const disk = place.makeDisk('os.raw', MIB, MIB)
    const engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    await engine.close()
    const content = readFileSync(disk)
    content.fill(9, 4096, 8192)
    writeFileSync(disk, content)
    await using again = await place.open()
    const taken = again.machine('web01')
    expect(taken.state).toBe('WaitingForStartResynchronize')
    expect(await taken.measure()).toMatchObject({ health: 'Critical', resyncReason: 'DISK_MODIFIED_OFFLINE' })
    const report = await taken.resynchronize()
    expect(report).toMatchObject({ comparedBytes: MIB, differentBytes: 64 * KIB })
    place.expectEqual(['os.raw'])
  })
})
