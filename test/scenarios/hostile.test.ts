/**
 * Files changed behind the engine's back: tracking files removed by hand, a state directory put back to an older copy,
 * a replica folder emptied, a machine enabled beside another engine's. Whatever is done, no byte may be missing from a
 * replica that is said to be whole.
 */

import { cpSync, readdirSync, rmSync } from 'node:fs'
import { type Engine, type ProtectedMachine, systemClock } from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { KIB, MIB, Workplace } from './workplace.js'

const DISK = 'os.raw'

let place: Workplace

beforeEach(() => {
  place = new Workplace()
})

afterEach(() => {
  place.remove()
})

/** Everything that tracking left beside the disk. */
function trackingFiles(): string[] {
  return readdirSync(place.folder).filter((name) => name.startsWith(`${DISK}.`))
}

function removeTracking(): void {
  for (const name of trackingFiles()) rmSync(place.path(name))
}

async function protect(engine: Engine): Promise<ProtectedMachine> {
  return place.enable(engine, [place.makeDisk(DISK, 4 * MIB)])
}

/** Ends what is under way in the background, then makes both sides equal. */
async function resynchronize(machine: ProtectedMachine): Promise<void> {
  while (machine.state !== 'WaitingForStartResynchronize') await systemClock.sleep(10)
  await machine.resynchronize()
  await machine.replicate()
}

/** Cycles that the replica has and the state directory does not know of. */
async function putBack(cycleCount: number): Promise<void> {
  const engine = await place.open()
  await (await protect(engine)).startInitialReplication()
  await engine.close()
  cpSync(place.path('state'), place.path('state.old'), { recursive: true })
  const later = await place.open()
  for (let cycle = 0; cycle < cycleCount; cycle += 1) {
    await place.scribble(later.machine('web01'), 3)
    await later.machine('web01').replicate()
  }
  await later.close()
  rmSync(place.path('state'), { recursive: true })
  cpSync(place.path('state.old'), place.path('state'), { recursive: true })
}

describe('tracking files removed by hand while the engine is closed', () => {
  it('of a disk that was never written to: what changed since is found', async () => {
    const engine = await place.open()
    await (await protect(engine)).startInitialReplication()
    await engine.close()
    removeTracking()
    await using again = await place.open()
    const machine = again.machine('web01')
    expect(machine.state).toBe('WaitingForStartResynchronize')
    expect((await machine.measure()).resyncReason).toBe('LOG_DAMAGED')
    await resynchronize(machine)
    place.expectEqual([DISK])
  })

  it('in the middle of the first copy: what was written to the part that is copied is found', async () => {
    const engine = await place.open()
    const machine = await protect(engine)
    const stop = new AbortController()
    const onProgress = ({ doneBytes }: { doneBytes: number }): void => {
      if (doneBytes >= 2 * MIB) stop.abort()
    }
    const copy = machine.startInitialReplication({ signal: stop.signal, onProgress })
    await expect(copy).rejects.toMatchObject({ code: 'ABORTED' })
    await machine.disks[0]?.write(0, place.random.bytes(64 * KIB))
    await engine.close()
    removeTracking()
    await using again = await place.open()
    await resynchronize(again.machine('web01'))
    place.expectEqual([DISK])
  })

  it('in the middle of a resynchronization: what was written to the part that is compared is found', async () => {
    const engine = await place.open({ windowBytes: MIB })
    const machine = await protect(engine)
    await machine.startInitialReplication()
    const stop = new AbortController()
    const onProgress = ({ doneBytes }: { doneBytes: number }): void => {
      if (doneBytes >= 2 * MIB) stop.abort()
    }
    const pass = machine.resynchronize({ signal: stop.signal, onProgress })
    await expect(pass).rejects.toMatchObject({ code: 'ABORTED' })
    await machine.suspend()
    await machine.disks[0]?.write(0, place.random.bytes(64 * KIB))
    await engine.close()
    removeTracking()
    await using again = await place.open({ windowBytes: MIB })
    const resumed = again.machine('web01')
    await resumed.resume()
    // The pass begins anew, with the whole disk.
    while (resumed.state !== 'Replicating') await systemClock.sleep(10)
    await resumed.replicate()
    expect(await resumed.measure()).toMatchObject({ resyncReason: null })
    place.expectEqual([DISK])
  })
})

describe('a state directory put back to an older copy', () => {
  it('counts nothing as applied that was never sent, and is mended by a resynchronization', async () => {
    await putBack(4)
    await using engine = await place.open()
    const machine = engine.machine('web01')
    await place.scribble(machine, 3)
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'STATE_BEHIND' })
    await resynchronize(machine)
    place.expectEqual([DISK])
  })

  it('is noticed, too, when as many shipments wait meanwhile as the replica has', async () => {
    await putBack(2)
    let isCut = true
    const wrapTransport: NonNullable<Parameters<Workplace['open']>[0]>['wrapTransport'] = (transport) => ({
      connect: (signal) => (isCut ? Promise.reject(new Error('no route')) : transport.connect(signal)),
    })
    await using engine = await place.open({ wrapTransport })
    const machine = engine.machine('web01')
    for (let cycle = 0; cycle < 4; cycle += 1) {
      await place.scribble(machine, 3)
      await expect(machine.replicate()).rejects.toMatchObject({ code: 'TRANSPORT_FAILED' })
    }
    isCut = false
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'STATE_BEHIND' })
    await resynchronize(machine)
    place.expectEqual([DISK])
  })
})

describe('a resynchronization that the policy leaves to somebody', () => {
  it('is not begun by the cycle that was due before it was owed', async () => {
    const clock = new ManualClock(Date.UTC(2026, 0, 1))
    await using engine = await place.open({ clock })
    const policy = { replicationFrequencySeconds: 30, autoResynchronize: { enabled: false } }
    const machine = await place.enable(engine, [place.makeDisk(DISK, MIB)], policy)
    await machine.startInitialReplication()
    await machine.disks[0]?.requireResync('LOG_DAMAGED', true)
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect(machine.state).toBe('WaitingForStartResynchronize')
    await clock.advance(31_000)
    await systemClock.sleep(100)
    expect(machine.state).toBe('WaitingForStartResynchronize')
  })
})

describe('a machine that is enabled', () => {
  it('again after its old replica was thrown away, in the same engine', async () => {
    await using engine = await place.open()
    const machine = await protect(engine)
    await machine.startInitialReplication()
    await machine.disable()
    await expect(place.enable(engine, [place.path(DISK)])).rejects.toMatchObject({ code: 'STORE_FOREIGN' })
    rmSync(place.path('replica'), { recursive: true })
    const again = await place.enable(engine, [place.path(DISK)])
    await again.startInitialReplication()
    place.expectEqual([DISK])
  })

  it('in vain leaves the tracking files of a disk that another engine tracks', async () => {
    await using engine = await place.open()
    await protect(engine)
    const before = trackingFiles()
    const first = { path: place.makeDisk('data.raw', MIB), trackingDirectory: place.path('missing') }
    await using other = await place.open({ stateDirectory: place.path('state-2') })
    const disks = [first, place.path(DISK)]
    const replica = { directory: place.path('replica-2') }
    await expect(other.enable({ name: 'db01', disks, replica })).rejects.toMatchObject({
      code: 'LOG_WRITE_FAILED',
    })
    expect(trackingFiles()).toEqual(before)
  })
})
