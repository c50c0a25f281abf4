/**
 * Failover of a machine: tests beside replication, planned and unplanned ones, and their ends.
 */

import { existsSync, readFileSync } from 'node:fs'
import { isSecondsiteError, type Failover } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISKS, expectShows, MINUTE_MS, type Moment, RecoveryPlace } from './recovery-oracle.js'
import { KIB } from './workplace.js'

const HOURLY = { recoveryPoints: 24, recoveryPointIntervalSeconds: 3600 }

let place: RecoveryPlace
let moments: Moment[]

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin(HOURLY)
  moments = []
  for (let cycle = 0; cycle < 3; cycle += 1) moments.push(await place.cycle(60))
})

afterEach(() => place.end())

/** The disks of a failover with a write of the new primary in them. */
async function writeTo(failover: Failover): Promise<Moment> {
  const disks = new Map<string, Buffer>()
  for (const disk of failover.disks) {
    await disk.write(64 * KIB, place.random.bytes(12 * KIB))
    disks.set(disk.name, Buffer.from(await disk.read(0, disk.sizeBytes)))
  }
  return { timeMs: place.clock.nowMs(), disks }
}

function dieBeforeApplying(name: string): void {
  if (name === 'apply.before-marking') throw new Error('died')
}

describe('a test failover', () => {
  it('writes to disks of its own, beside others and beside replication', async () => {
    const first = await place.replica.startTestFailover()
    const second = await place.replica.startTestFailover({ point: { timeMs: moments[0]?.timeMs ?? 0 } })
    expect([first.name, second.name]).toEqual(['web01 - Test', 'web01 - Test 2'])
    await first.disks[0]?.write(0, new Uint8Array(4096).fill(7))
    await place.cycle(60)
    await expectShows(second, moments[0]!)
    expect((await first.disks[0]?.read(0, 4096))?.every((byte) => byte === 7)).toBe(true)
    place.expectEqual(DISKS)
    await place.replica.stopTestFailover(first.id)
    await second.stop()
    expect((await place.replica.testFailovers()).map(({ endedMs }) => endedMs !== null)).toEqual([true, true])
    expect(existsSync(place.path(`replica/tests/${first.id}`))).toBe(false)
    await expect(place.replica.stopTestFailover('nobody')).rejects.toMatchObject({
      code: 'TEST_FAILOVER_NOT_FOUND',
    })
  })
})

describe('a planned failover', () => {
  const planned = { kind: 'Planned', fencePrimary: true } as const

  it('is refused unless the newest state is the last one of a prepared primary', async () => {
    await expect(place.replica.startFailover(planned)).rejects.toMatchObject({
      code: 'NOT_PREPARED',
      details: { pointKind: 'crash-consistent' },
    })
    expect(await place.replica.state()).toBe('Replicating')
    await place.machine.prepareFailover()
    await place.replica.requirePrepared()
    // The primary goes on instead, and what it sends then is not its last state.
    await place.machine.cancelFailover()
    const later = await place.cycle(60)
    await expect(place.replica.requirePrepared()).rejects.toMatchObject({ code: 'NOT_PREPARED' })
    await expect(place.replica.startFailover(planned)).rejects.toMatchObject({ code: 'NOT_PREPARED' })
    await place.machine.prepareFailover({ verify: false })
    await expectShows(await place.replica.startFailover(planned), later)
  })
})

describe('an unplanned failover', () => {
  it('shows the newest state, takes writes, and the primary is refused until it is cancelled', async () => {
    const failover = await place.replica.startFailover({ fencePrimary: true })
    await expectShows(failover, moments[2]!)
    await writeTo(failover)
    await place.scribble(place.machine, 4)
    await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'REPLICA_FAILED_OVER' })
    expect(place.machine.state).toBe('Error')
    await place.replica.cancelFailover()
    expect(await place.replica.state()).toBe('Replicating')
    await place.machine.resume()
    await place.cycle(60)
    place.expectEqual(DISKS)
    expect(existsSync(place.path('replica/failover'))).toBe(false)
  })

  it('is refused while the primary replicates, unless that is to be fenced', async () => {
    await expect(place.replica.startFailover()).rejects.toMatchObject({ code: 'PRIMARY_ALIVE' })
    await place.engine.close()
    const failover = await place.replica.startFailover()
    await expectShows(failover, moments[2]!)
  })

  it('goes to another point until it is committed, and keeps nothing of what was written', async () => {
    let failover = await place.replica.startFailover({
      fencePrimary: true,
      point: { timeMs: moments[1]!.timeMs },
    })
    await writeTo(failover)
    failover = await place.replica.changeRecoveryPoint({ timeMs: moments[0]!.timeMs })
    await expectShows(failover, moments[0]!)
    failover = await place.replica.changeRecoveryPoint('LatestProcessed')
    await expectShows(failover, moments[2]!)
  })

  it('committed is what the images hold; points are gone, and the primary is refused for good', async () => {
    const failover = await place.replica.startFailover({
      fencePrimary: true,
      point: { timeMs: moments[0]!.timeMs },
    })
    const written = await writeTo(failover)
    await place.replica.commitFailover()
    await place.replica.commitFailover()
    await expectShows(failover, written)
    for (const [name, bytes] of written.disks) {
      expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), name).toBe(true)
    }
    expect(await place.replica.state()).toBe('FailedOver')
    expect(await place.replica.points()).toEqual([])
    await expect(place.replica.cancelFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect(await place.replica.failover()).toBe(failover)
    await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'REPLICA_FAILED_OVER' })
    await expect(place.replica.changeRecoveryPoint('LatestProcessed')).rejects.toMatchObject({
      code: 'INVALID_STATE',
    })
  })

  it('that its holder has closed is opened again by whatever verb comes next', async () => {
    const failover = await place.replica.startFailover({ fencePrimary: true })
    const written = await writeTo(failover)
    await failover.close()
    const again = await place.replica.failover()
    expect(again).not.toBe(failover)
    await expectShows(again!, written)
    await again?.close()
    await place.replica.commitFailover()
    for (const [name, bytes] of written.disks)
      expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), name).toBe(true)
    await again?.close()
    await place.replica.close()
  })

  it('whose commit is stopped is committed, and carried through by the next call, which tells how far it is', async () => {
    const stop = new AbortController()
    const replica = await place.openReplica((name) => {
      if (name === 'commit.before-settling') stop.abort()
    })
    try {
      const written = await writeTo(await replica.startFailover({ fencePrimary: true }))
      await expect(replica.commitFailover({ signal: stop.signal })).rejects.toMatchObject({ code: 'ABORTED' })
      expect(await replica.state()).toBe('FailedOver')
      const told: { disk: string; doneBytes: number; totalBytes: number }[] = []
      await replica.commitFailover({ onProgress: (progress) => told.push(progress) })
      expect(new Set(told.map(({ disk }) => disk))).toEqual(new Set(DISKS))
      for (const { doneBytes, totalBytes } of told)
        expect([doneBytes, totalBytes]).toEqual([12 * KIB, 12 * KIB])
      for (const [name, bytes] of written.disks)
        expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), name).toBe(true)
    } finally {
      await replica.close()
    }
  })

  it('is not committed while somebody else reads its own point', async () => {
    const point = { timeMs: moments[0]!.timeMs }
    const failover = await place.replica.startFailover({ fencePrimary: true, point })
    const view = await place.replica.openView(point)
    await expect(place.replica.commitFailover()).rejects.toMatchObject({ code: 'POINT_IN_USE' })
    expect(await place.replica.state()).toBe('FailedOverWaitingCompletion')
    await view.close()
    const written = await writeTo(failover)
    await place.replica.commitFailover()
    await expectShows(failover, written)
  })

  it('keeps its point while nobody has it open, whatever is deleted and whatever the rules let go of', async () => {
    const other = new RecoveryPlace()
    await other.begin({ keepEveryWrite: { hours: 3 }, recoveryPointIntervalSeconds: 3600 })
    for (let cycle = 0; cycle < 4; cycle += 1) await other.cycle(60)
    const [own, next] = await other.replica.points()
    await other.engine.close()
    await other.replica.startFailover({ point: { point: own?.number ?? 0 } })
    await other.replica.close()
    // By now the rules want none but the newest of the points.
    other.clock.advance(24 * 60 * MINUTE_MS)
    other.replica = await other.openReplica()
    await expect(other.replica.deletePoint(own?.number ?? 0)).rejects.toMatchObject({ code: 'POINT_IN_USE' })
    await other.replica.deletePoint(next?.number ?? 0)
    expect((await other.replica.points()).map(({ number }) => number)).not.toContain(next?.number)
    await expectShows((await other.replica.failover())!, other.momentAt(own?.cutTimeMs ?? 0))
    await other.end()
  })

  it('to the newest applied state does not wait for what was only received', async () => {
    await place.engine.close()
    place.engine = await place.open({ clock: place.clock, step: dieBeforeApplying })
    place.machine = place.engine.machine('web01')
    await expect(place.cycle(60)).rejects.toThrow('died')
    const newest = place.remember()
    await place.engine.abandon()
    await expectShows(await place.replica.startFailover({ point: 'LatestProcessed' }), moments[2]!)
    await place.replica.cancelFailover()
    await expectShows(await place.replica.startFailover({ point: 'Latest' }), newest)
  })

  it('says before it begins what would be lost', async () => {
    place.clock.advance(30 * MINUTE_MS)
    const outlook = await place.replica.explainFailover({ timeMs: moments[0]!.timeMs })
    expect(outlook).toMatchObject({ state: 'Replicating', lossMs: 150 * MINUTE_MS, receivedBytes: 0 })
    expect(outlook.undoneBytes).toBeGreaterThan(0)
  })

  it('is taken up by another process where this one left it', async () => {
    const failover = await place.replica.startFailover({ fencePrimary: true })
    const written = await writeTo(failover)
    await place.replica.close()
    place.replica = await place.openReplica()
    const again = await place.replica.failover()
    await expectShows(again!, written)
  })

  const STEPS = ['failover.before-moving', 'failover.before-layers', 'failover.before-started']
  it.each(STEPS)('that dies at %s goes on, or has never been', async (step) => {
    await place.replica.close()
    place.replica = await place.openReplica((name) => {
      if (name === step) throw new Error('died')
    })
    await expect(place.replica.startFailover({ fencePrimary: true })).rejects.toThrow('died')
    await place.replica.close()
    place.replica = await place.openReplica()
    const failover = await place.replica.failover()
    if (step === 'failover.before-moving') expect(failover).toBeUndefined()
    else await expectShows(failover!, moments[2]!)
    if (failover) await place.replica.cancelFailover()
    expect(await place.replica.state()).toBe('Replicating')
  })

  const ENDS = [
    'commit.before-opening',
    'commit.before-settling',
    'commit.before-dropping',
    'commit.before-settled',
  ]
  it.each(ENDS)('whose commit dies at %s is committed by the next opening', async (step) => {
    let isArmed = true
    await place.replica.close()
    place.replica = await place.openReplica((name) => {
      if (isArmed && name === step) throw new Error('died')
    })
    const failover = await place.replica.startFailover({
      fencePrimary: true,
      point: { timeMs: moments[1]!.timeMs },
    })
    const written = await writeTo(failover)
    await expect(place.replica.commitFailover()).rejects.toThrow('died')
    isArmed = false
    await place.replica.close()
    place.replica = await place.openReplica()
    await expectShows((await place.replica.failover())!, written)
    await place.replica.commitFailover()
    for (const [name, bytes] of written.disks) {
      expect(readFileSync(place.path(`replica/${name}.raw`)).equals(bytes), name).toBe(true)
    }
  })

  it('refuses every verb that its state does not take, and names those that it does', async () => {
    await expect(place.replica.commitFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await expect(place.replica.cancelFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await place.replica.startFailover({ fencePrimary: true })
    await expect(place.replica.startTestFailover()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    const again = await place.replica.startFailover({ fencePrimary: true }).catch((error: unknown) => error)
    if (!isSecondsiteError(again, 'INVALID_STATE')) throw again
    expect(again.details['allowedVerbs']).toEqual([
      'changeRecoveryPoint',
      'cancelFailover',
      'commitFailover',
      'reverseReplication',
      'disable',
    ])
  })
})
