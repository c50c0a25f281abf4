import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs'
import { FaultyTransport, ManualClock, SeededRandom } from '@secondsite/engine/testing'
import { type Progress, type ProtectedMachine, SecondsiteError } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { relayTo } from './relay.js'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace

beforeEach(() => {
  place = new Workplace()
})

afterEach(() => place.remove())

describe('replication of a machine', () => {
  it('copies two disks while they are written to, and equals them after a cycle', async () => {
    const disks = [place.makeDisk('os.raw', 8 * MIB), place.makeDisk('data.raw', 4 * MIB)]
    await using engine = await place.open()
    const machine = await place.enable(engine, disks)
    expect(machine.state).toBe('ReadyForInitialReplication')
    const seen: Progress[] = []
    const copying = machine.startInitialReplication({ onProgress: (progress) => seen.push(progress) })
    await place.scribble(machine, 50)
    await copying
    expect(machine.state).toBe('Replicating')
    expect(seen.at(-1)).toMatchObject({
      phase: 'initial-replication',
      totalBytes: 12 * MIB,
      doneBytes: 12 * MIB,
    })
    await place.scribble(machine, 50)
    const report = await machine.replicate()
    expect(report.sentBytes).toBeGreaterThan(0)
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('replicates zeroed and discarded ranges as zeros', async () => {
    const disk = place.makeDisk('os.raw', 4 * MIB, 4 * MIB)
    await using engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    await machine.disks[0]?.discard(MIB, MIB)
    await machine.disks[0]?.writeZeroes(64 * KIB, 64 * KIB)
    await machine.disks[0]?.write(MIB + 4096, new Uint8Array(4096).fill(7))
    await machine.replicate()
    place.expectEqual(['os.raw'])
    const image = readFileSync(place.path('replica/os.raw.raw'))
    expect(image.subarray(MIB, MIB + 4096).every((byte) => byte === 0)).toBe(true)
    expect(image.subarray(MIB + 4096, MIB + 8192).every((byte) => byte === 7)).toBe(true)
  })

  it('needs no resynchronization after the death of the process, and loses no byte', async () => {
    const disk = place.makeDisk('os.raw', 4 * MIB)
    const first = await place.open()
    const machine = await place.enable(first, [disk])
    await machine.startInitialReplication()
    await place.scribble(machine, 20)
    await first.abandon()
    await using second = await place.open()
    const again = second.machine('web01')
    expect(again.disks[0]?.recovery.kind).toBe('process-death')
    expect(again.state).toBe('Replicating')
    await again.replicate()
    place.expectEqual(['os.raw'])
  })

  it('sends what is missing after the transport was cut in the middle of a cycle', async () => {
    const disk = place.makeDisk('os.raw', 8 * MIB)
    let transport: FaultyTransport | undefined
    await using engine = await place.open({
      wrapTransport: (inner) => {
        transport = new FaultyTransport({ serve: relayTo(inner), random: new SeededRandom(3) })
        return transport
      },
    })
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    await place.scribble(machine, 80)
    if (transport) transport.faults = { cutAfterMessages: 12 }
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    if (transport) transport.faults = {}
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })
})

describe('a machine that is disabled', () => {
  it('leaves disk and replica, no other file, and can be enabled again', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    await using engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    await place.scribble(machine, 5)
    await machine.disable()
    expect(engine.machines).toEqual([])
    expect(readdirSync(place.folder).sort()).toEqual(['os.raw', 'replica', 'state'])
    const replica = { directory: place.path('replica-2') }
    const again = await engine.enable({ name: 'web01', disks: [disk], replica })
    await again.startInitialReplication()
    const copied = readFileSync(place.path('replica-2/os.raw.raw'))
    expect(copied.equals(readFileSync(disk))).toBe(true)
  })
})

/** Writes to a stretch of the first disk, 64 KiB at a time. */
async function writeMany(machine: ProtectedMachine, from: number, lengthBytes: number): Promise<void> {
  for (let offset = from; offset < from + lengthBytes; offset += 64 * KIB)
    await machine.disks[0]?.write(offset, place.random.bytes(64 * KIB))
}

describe('the threshold', () => {
  it('is noticed between cycles, by the clock, while replication is paused', async () => {
    const clock = new ManualClock(Date.UTC(2026, 10, 21))
    const disk = place.makeDisk('os.raw', 8 * MIB)
    await using engine = await place.open({ clock })
    const policy = { resyncThresholdPercent: 5, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [disk], policy)
    await machine.startInitialReplication()
    await machine.suspend()
    for (let offset = 0; offset < MIB; offset += 64 * KIB) {
      await machine.disks[0]?.write(offset, place.random.bytes(64 * KIB))
    }
    expect(machine.state).toBe('Suspended')
    await clock.advance(5000)
    await vi.waitFor(() => expect(machine.state).toBe('WaitingForStartResynchronize'), { timeout: 20_000 })
    expect(await machine.resynchronize()).toMatchObject({ reason: 'LOG_THRESHOLD', comparedBytes: MIB })
    place.expectEqual(['os.raw'])
  })

  it('needs no log before the first copy, and no resynchronization after it', async () => {
    const clock = new ManualClock(Date.UTC(2026, 10, 21))
    const disk = place.makeDisk('os.raw', 8 * MIB)
    await using engine = await place.open({ clock })
    const policy = { resyncThresholdPercent: 5, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [disk], policy)
    await writeMany(machine, 0, MIB)
    await clock.advance(5000)
    const status = () => machine.disks[0]?.status()
    await vi.waitFor(() => expect(status()?.mode).toBe('map'), { timeout: 20_000 })
    expect(status()?.unreleasedLogBytes).toBe(0)
    expect(machine.state).toBe('ReadyForInitialReplication')
    await writeMany(machine, 2 * MIB, MIB)
    await machine.startInitialReplication()
    expect(machine.state).toBe('Replicating')
    await place.scribble(machine, 5)
    await machine.replicate()
    expect(await machine.measure()).toMatchObject({ resyncReason: null })
    place.expectEqual(['os.raw'])
  })

  it('holds while a copy waits for its retry, and takes no batch of it along', async () => {
    const clock = new ManualClock(Date.UTC(2026, 10, 21))
    let isDown = false
    let batchCount = 0
    const disk = place.makeDisk('os.raw', 8 * MIB, 8 * MIB)
    await using engine = await place.open({
      clock,
      step: (name) => {
        if (name === 'initial.before-queueing') batchCount += 1
        if (name === 'ship.before-sending' && batchCount === 3) isDown = true
        if (isDown && name === 'ship.before-sending')
          throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
      },
    })
    const policy = { resyncThresholdPercent: 5, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [disk], policy)
    await expect(machine.startInitialReplication()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    await writeMany(machine, 0, MIB)
    await clock.advance(5000)
    await vi.waitFor(() => expect(machine.disks[0]?.status().mode).toBe('map'), { timeout: 20_000 })
    expect(machine.state).toBe('InitialReplicationInProgress')
    isDown = false
    batchCount = 4
    await clock.advance(60_000)
    await vi.waitFor(() => expect(machine.state).toBe('WaitingForStartResynchronize'), { timeout: 20_000 })
    expect(await machine.resynchronize()).toMatchObject({ reason: 'LOG_THRESHOLD', comparedBytes: MIB })
    place.expectEqual(['os.raw'])
  })

  it('holds while a resynchronization is paused, which then begins anew', async () => {
    const clock = new ManualClock(Date.UTC(2026, 10, 21))
    const stop = new AbortController()
    const disk = place.makeDisk('os.raw', 8 * MIB, 8 * MIB)
    await using engine = await place.open({
      clock,
      windowBytes: MIB,
      step: (name) => {
        if (name === 'resync.before-batch') stop.abort()
      },
    })
    const policy = { resyncThresholdPercent: 5, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [disk], policy)
    await machine.startInitialReplication()
    const image = openSync(place.path('replica/os.raw.raw'), 'r+')
    writeSync(image, Buffer.from([1, 2, 3]), 0, 3, 5 * MIB)
    closeSync(image)
    await expect(machine.resynchronize({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' })
    await machine.suspend()
    expect(machine.state).toBe('ResynchronizeSuspended')
    await writeMany(machine, 0, MIB)
    await clock.advance(5000)
    await vi.waitFor(() => expect(machine.disks[0]?.status().mode).toBe('map'), { timeout: 20_000 })
    expect(machine.state).toBe('ResynchronizeSuspended')
    await machine.resynchronize()
    expect(machine.state).toBe('Replicating')
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })

  it('passed while the first copy runs costs a resynchronization of what changed, and no byte', async () => {
    const disk = place.makeDisk('os.raw', 8 * MIB)
    await using engine = await place.open()
    const policy = { resyncThresholdPercent: 5, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [disk], policy)
    for (let offset = 0; offset < MIB; offset += 64 * KIB) {
      await machine.disks[0]?.write(offset, place.random.bytes(64 * KIB))
    }
    await machine.startInitialReplication()
    expect(machine.state).toBe('WaitingForStartResynchronize')
    expect(await machine.resynchronize()).toMatchObject({ reason: 'LOG_THRESHOLD', comparedBytes: MIB })
    place.expectEqual(['os.raw'])
  })

  it('coalesces first, then marks for resynchronization, which sends the changed ranges alone', async () => {
    const disk = place.makeDisk('os.raw', 8 * MIB)
    await using engine = await place.open({ windowBytes: 2 * MIB })
    const machine = await place.enable(engine, [disk], { resyncThresholdPercent: 10 })
    await machine.startInitialReplication()
    for (let offset = 0; offset < 2 * MIB; offset += 64 * KIB) {
      await machine.disks[0]?.write(offset, place.random.bytes(64 * KIB))
    }
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect(machine.state).toBe('WaitingForStartResynchronize')
    const before = await machine.measure()
    expect(before).toMatchObject({ health: 'Critical', resyncReason: 'LOG_THRESHOLD' })
    await machine.disks[0]?.write(5 * MIB, place.random.bytes(4096))
    const report = await machine.resynchronize()
    expect(report).toMatchObject({ reason: 'LOG_THRESHOLD', comparedBytes: 2 * MIB + 64 * KIB })
    expect(machine.state).toBe('Replicating')
    place.expectEqual(['os.raw'])
  })
})

describe('a resynchronization at work', () => {
  it('is not stopped by the call for another one, which is refused', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    let second: Promise<unknown> | undefined
    await using engine = await place.open({
      step: (name) => {
        if (name !== 'resync.before-begin') return
        second = machine.resynchronize().catch((error: unknown) => error)
      },
    })
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    expect(await machine.resynchronize()).toMatchObject({ reason: 'ASKED_FOR', comparedBytes: MIB })
    expect(await second).toMatchObject({ code: 'INVALID_STATE', details: { state: 'Resynchronizing' } })
    expect(machine.state).toBe('Replicating')
  })
})

describe('verify', () => {
  it('finds a byte that changed on the replica and repairs it when asked', async () => {
    const disk = place.makeDisk('os.raw', 4 * MIB)
    await using engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await machine.startInitialReplication()
    expect(await machine.verify()).toMatchObject({ equal: true, differentBytes: 0 })
    const image = openSync(place.path('replica/os.raw.raw'), 'r+')
    writeSync(image, Buffer.from([1, 2, 3]), 0, 3, 3 * MIB + 17)
    closeSync(image)
    const found = await machine.verify()
    expect(found).toMatchObject({ equal: false, differentBytes: 64 * KIB })
    expect(found.digests[0]?.differences).toEqual([{ offset: 3 * MIB, lengthBytes: 64 * KIB }])
    expect(await machine.verify({ repair: true })).toMatchObject({ equal: true })
    place.expectEqual(['os.raw'])
  })
})

describe('verbs', () => {
  it('refuse what the state does not take, with the verbs it takes', async () => {
    const disk = place.makeDisk('os.raw', MIB)
    await using engine = await place.open()
    const machine = await place.enable(engine, [disk])
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await expect(machine.suspend()).rejects.toMatchObject({
      code: 'INVALID_STATE',
      details: { state: 'ReadyForInitialReplication', allowedVerbs: ['startInitialReplication', 'disable'] },
    })
    await machine.startInitialReplication()
    await machine.suspend()
    expect(machine.state).toBe('Suspended')
    await place.scribble(machine, 5)
    await machine.resume()
    expect(machine.state).toBe('Replicating')
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })

  it('can be aborted, and go on where they stopped', async () => {
    const disk = place.makeDisk('os.raw', 16 * MIB, 16 * MIB)
    await using engine = await place.open()
    const machine = await place.enable(engine, [disk])
    const controller = new AbortController()
    let reached = 0
    const copying = machine.startInitialReplication({
      signal: controller.signal,
      onProgress: ({ doneBytes }) => {
        reached = doneBytes
        if (doneBytes >= 4 * MIB) controller.abort()
      },
    })
    await expect(copying).rejects.toMatchObject({ code: 'ABORTED' })
    expect(machine.state).toBe('InitialReplicationInProgress')
    await machine.cancelInitialReplication()
    const seen: Progress[] = []
    await machine.startInitialReplication({ onProgress: (progress) => seen.push(progress) })
    expect(seen[0]?.doneBytes).toBe(reached)
    place.expectEqual(['os.raw'])
  })
})
