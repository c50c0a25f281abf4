/**
 * The way home: the replica becomes the primary, the former primary its replica, and back, as deltas.
 */

import { existsSync, readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import {
  applyLogs,
  Engine,
  explainReverse,
  exportLog,
  isSecondsiteError,
  openReplica,
  type ProtectedMachine,
  type Replica,
  reverseReplication,
  SecondsiteError,
  showLog,
} from '@secondsite/engine'
import { FaultyFileSystem } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { DISKS, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

let place: RecoveryPlace
/** The engine of the second site. */
let away: Engine
let ends: (() => Promise<void>)[]

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4 })
  // What is due by itself is due on this side.
  away = await Engine.open({ stateDirectory: place.path('away-state') })
  ends = [() => away.close()]
})

afterEach(async () => {
  for (const end of ends) await end()
  await place.end()
})

const home = () => ({ engine: place.engine })
const reversal = () => ({ engine: away, former: home(), directory: place.path('home-store') })
const expectPairs = (): void => {
  for (const name of DISKS) {
    const source = readFileSync(place.path(name))
    expect(source.equals(readFileSync(place.path(`replica/${name}.raw`))), name).toBe(true)
  }
}

async function write(
  machine: ProtectedMachine,
  name: string,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  await machine.disks.find((disk) => disk.name === name)?.write(offset, place.random.bytes(lengthBytes))
}

async function settled(machine: ProtectedMachine): Promise<void> {
  for (let look = 0; machine.state !== 'Replicating'; look += 1) {
    if (look > 1000) throw new Error(`still ${machine.state}`)
    await new Promise((resolve) => {
      setTimeout(resolve, 10)
    })
  }
}

/** The replica, failed over as planned and made the primary. */
async function goAway(): Promise<ProtectedMachine> {
  await place.machine.prepareFailover()
  await place.replica.startFailover({ kind: 'Planned', fencePrimary: true })
  const { machine, candidateBytes } = await reverseReplication(place.replica, {
    engine: away,
    former: home(),
    directory: place.path('home-store'),
  })
  expect(candidateBytes).toBe(0)
  return machine
}

/** And home again. */
async function goHome(machine: ProtectedMachine): Promise<ProtectedMachine> {
  await machine.prepareFailover()
  const replica = await openReplica({ directory: place.path('home-store'), clock: place.clock })
  ends.unshift(() => replica.close())
  await replica.startFailover({ kind: 'Planned', fencePrimary: true })
  const report = await reverseReplication(replica, {
    engine: place.engine,
    former: { engine: away },
    directory: place.path('replica'),
  })
  expect(report.candidateBytes).toBe(0)
  return report.machine
}

/** What logs hold of a range of a disk: applied to zeros, each by itself, by the tools for logs. */
async function bytesIn(logs: readonly string[], offset: number, lengthBytes: number): Promise<Buffer> {
  const image = place.makeDisk('lost.raw', 2 * MIB, 0)
  for (const [index, path] of logs.entries()) {
    expect((await showLog(path)).damage).toEqual([])
    await exportLog(path, place.path(`strict-${index}.hrl`))
    await applyLogs([path], image)
  }
  return readFileSync(image).subarray(offset, offset + lengthBytes)
}

/** The resynchronization that is owed, as nothing is due by itself at home. */
async function resynchronized(machine: ProtectedMachine): Promise<void> {
  if (machine.state !== 'Resynchronizing') return
  await machine.suspend()
  await machine.resynchronize()
}

async function failOver(replica: Replica): Promise<void> {
  const failover = await replica.startFailover({ fencePrimary: true })
  await failover.disks.find(({ name }) => name === 'os.raw')?.write(128 * KIB, place.random.bytes(64 * KIB))
  await replica.commitFailover()
}

/** A failover that is committed, whose reversal dies just before a step; the replica is opened anew. */
async function reversalDiesAt(step: string, given: { readonly loser?: 'replica' } = {}): Promise<void> {
  await place.cycle(60)
  await place.replica.close()
  let isArmed = true
  place.replica = await place.openReplica((name) => {
    if (isArmed && name === step) throw new Error('died')
  })
  await failOver(place.replica)
  await expect(reverseReplication(place.replica, { ...reversal(), ...given })).rejects.toThrow('died')
  isArmed = false
  await place.replica.close()
  place.replica = await place.openReplica()
}

describe('a planned failover', () => {
  it('loses nothing, proven by digests, and is reversed without moving a byte', async () => {
    await place.scribble(place.machine, 8)
    const report = await place.machine.prepareFailover()
    expect(report.provenBytes).toBe(3 * MIB)
    expect(place.machine.state).toBe('PreparedForFailover')
    await expect(place.machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await place.machine.cancelFailover()
    await place.scribble(place.machine, 4)
    const machine = await goAway()
    expect(machine.state).toBe('Replicating')
    expect(place.engine.machines).toEqual([])
    await write(machine, 'os.raw', 64 * KIB, 8 * KIB)
    await machine.replicate()
    expectPairs()
    expect(await machine.verify()).toMatchObject({ equal: true })
  })

  it.each([true, false])(
    'has the planned cut as its newest point, which is what was proven: %s',
    async (verify) => {
      await place.scribble(place.machine, 8)
      const report = await place.machine.prepareFailover({ verify })
      const newest = (await place.replica.points()).at(-1)
      expect(newest).toMatchObject({ kind: 'planned', cutTimeMs: report.cutTimeMs, isLatest: true })
      expectPairs()
      await place.replica.startFailover({ kind: 'Planned', fencePrimary: true })
      expect((await place.replica.failoverInfo())?.pointNumber).toBe(newest?.number)
    },
  )

  it('goes there and home again, and replicates outwards as at first', async () => {
    const there = await goAway()
    await write(there, 'data.raw', 0, 4 * KIB)
    await there.replicate()
    const machine = await goHome(there)
    expect(machine.disks.map(({ path }) => path)).toEqual(
      expect.arrayContaining(DISKS.map((name) => place.path(name))),
    )
    await write(machine, 'os.raw', MIB, 4 * KIB)
    await machine.replicate()
    expectPairs()
    expect(away.machines).toEqual([])
  })
})

describe('an unplanned failover', () => {
  it('is reversed as a delta of what either side has', async () => {
    await place.cycle(60)
    await failOver(place.replica)
    const report = await reverseReplication(place.replica, {
      engine: away,
      former: home(),
      directory: place.path('home-store'),
    })
    expect(report.candidateBytes).toBe(64 * KIB)
    await settled(report.machine)
    await report.machine.replicate()
    expectPairs()
    expect(await report.machine.verify()).toMatchObject({ equal: true })
  })

  it('to an older point sends what that took back', async () => {
    const [first] = await place.replica.points()
    await place.cycle(60)
    await place.cycle(60)
    await place.replica.startFailover({ fencePrimary: true, point: { point: first?.number ?? 0 } })
    const { machine } = await reverseReplication(place.replica, {
      engine: away,
      former: home(),
      directory: place.path('home-store'),
    })
    await settled(machine)
    await machine.replicate()
    expectPairs()
    expect(readFileSync(place.path('os.raw')).equals(place.moments[0]!.disks.get('os.raw')!)).toBe(true)
  })

  it('with writes on both sides is refused with what each has, and keeps what the primary loses', async () => {
    await place.cycle(60)
    const startMs = Date.now()
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    const failover = await place.replica.startFailover({ fencePrimary: true })
    await write(failover, 'os.raw', 128 * KIB, 64 * KIB)
    const endMs = Date.now()
    const request = reversal()
    const refused = await reverseReplication(place.replica, request).catch((error: unknown) => error)
    if (!isSecondsiteError(refused, 'SPLIT_BRAIN')) throw refused
    const { primary, replica } = refused.details as Record<string, { firstMs: number; lastMs: number }>
    expect(primary).toMatchObject({
      bytes: 64 * KIB,
      rangeCount: 1,
      ranges: { 'os.raw': [{ offset: MIB, lengthBytes: 64 * KIB }] },
    })
    expect(replica).toMatchObject({
      bytes: 64 * KIB,
      ranges: { 'os.raw': [{ offset: 128 * KIB, lengthBytes: 64 * KIB }] },
    })
    for (const side of [primary, replica]) {
      expect(side?.firstMs).toBeGreaterThanOrEqual(startMs)
      expect(side?.lastMs).toBeLessThanOrEqual(endMs)
    }
    expect(await place.replica.state()).toBe('FailedOverWaitingCompletion')
    const lostBytes = readFileSync(place.path('os.raw')).subarray(MIB, MIB + 8 * KIB)
    const { machine, lostLogs } = await reverseReplication(place.replica, { ...request, loser: 'primary' })
    expect(await bytesIn(lostLogs, MIB, 8 * KIB)).toEqual(lostBytes)
    await settled(machine)
    await machine.replicate()
    expectPairs()
  })

  it('gives nothing up that could not be kept durably', async () => {
    await place.cycle(60)
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    const lostBytes = readFileSync(place.path('os.raw')).subarray(MIB, MIB + 8 * KIB)
    await failOver(place.replica)
    const request = reversal()
    const files = new FaultyFileSystem()
    for (const [operation, suffix, error, code] of [
      ['write', '.hrl', 'ENOSPC', 'DISK_FULL'],
      ['sync', '.hrl', 'EIO', 'IO_FAILED'],
      ['sync', '/lost', 'EIO', 'IO_FAILED'],
      ['sync', '/home-store', 'EIO', 'IO_FAILED'],
    ] as const) {
      files.fail({ path: place.path('home-store'), suffix, operation, error })
      await expect(reverseReplication(place.replica, { ...request, loser: 'primary' })).rejects.toMatchObject(
        { code },
      )
      files.heal()
      const still = readFileSync(place.path('os.raw')).subarray(MIB, MIB + 8 * KIB)
      expect(still.equals(lostBytes)).toBe(true)
      expect(place.machine.state).not.toBe('Disabled')
    }
    const { lostLogs } = await reverseReplication(place.replica, { ...request, loser: 'primary' })
    expect(await bytesIn(lostLogs, MIB, 8 * KIB)).toEqual(lostBytes)
  })

  it('keeps by its content what no log of the primary holds any more', async () => {
    await place.cycle(60)
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    const lostBytes = readFileSync(place.path('os.raw')).subarray(MIB, MIB + 8 * KIB)
    for (const disk of place.machine.disks) await disk.foldLogs('LOG_THRESHOLD')
    await failOver(place.replica)
    const request = reversal()
    await expect(reverseReplication(place.replica, request)).rejects.toMatchObject({
      code: 'SPLIT_BRAIN',
      details: { primary: { bytes: 64 * KIB, firstMs: null, lastMs: null } },
    })
    const { machine, lostLogs } = await reverseReplication(place.replica, { ...request, loser: 'primary' })
    expect(await bytesIn(lostLogs, MIB, 8 * KIB)).toEqual(lostBytes)
    await settled(machine)
    await machine.replicate()
    expectPairs()
  })

  it.each([
    ['before it is committed', false],
    ['after it was committed', true],
  ])(
    'that is given up %s leaves the primary the primary, and what is lost as a log',
    async (_, isCommitted) => {
      await place.cycle(60)
      await write(place.machine, 'os.raw', MIB, 8 * KIB)
      const kept = readFileSync(place.path('os.raw'))
      const [first] = await place.replica.points()
      const failover = await place.replica.startFailover({
        fencePrimary: true,
        point: { point: first?.number ?? -1 },
      })
      const lostBytes = Buffer.from(place.random.bytes(64 * KIB))
      await failover.disks.find(({ name }) => name === 'os.raw')?.write(128 * KIB, lostBytes)
      if (isCommitted) await place.replica.commitFailover()
      const request = reversal()
      const report = await reverseReplication(place.replica, { ...request, loser: 'replica' })
      expect(await bytesIn(report.lostLogs, 128 * KIB, 64 * KIB)).toEqual(lostBytes)
      expect(report.candidateBytes > 0).toBe(isCommitted)
      expect([report.machine, ...away.machines]).toEqual([...place.engine.machines])
      await resynchronized(report.machine)
      await report.machine.replicate()
      expectPairs()
      expect(readFileSync(place.path('os.raw')).equals(kept)).toBe(true)
      expect(await report.machine.verify()).toMatchObject({ equal: true })
      // Both can change their parts again.
      await place.replica.startFailover({ fencePrimary: true })
      await place.replica.cancelFailover()
    },
  )

  const GIVE_UP_STEPS = [
    'keep-primary.before-recording',
    'reverse.before-retiring',
    'keep-primary.before-tracking',
    'keep-primary.before-adopting',
  ]
  it.each(GIVE_UP_STEPS)('whose giving up dies at %s is given up by the next call', async (step) => {
    const loser = 'replica'
    await reversalDiesAt(step, { loser })
    const { machine } = await reverseReplication(place.replica, { ...reversal(), loser })
    await resynchronized(machine)
    await machine.replicate()
    expectPairs()
    expect(await machine.verify()).toMatchObject({ equal: true })
  })

  it('sends what a client wrote until its export ended', async () => {
    await place.cycle(60)
    const failover = await place.replica.startFailover({ fencePrimary: true })
    const { endExports } = failover
    vi.spyOn(failover, 'endExports').mockImplementationOnce(async () => {
      await write(failover, 'os.raw', 512 * KIB, 4 * KIB)
      await endExports.call(failover)
    })
    const request = reversal()
    const { machine, candidateBytes } = await reverseReplication(place.replica, request)
    expect(candidateBytes).toBe(64 * KIB)
    await settled(machine)
    await machine.replicate()
    expectPairs()
  })

  it('is not reversed while a client has a disk of the former primary open', async () => {
    await place.cycle(60)
    await place.replica.startFailover({ fencePrimary: true })
    const running = new SecondsiteError('MACHINE_RUNNING', { message: 'a client is connected' })
    vi.spyOn(place.machine.disks[0]!, 'endExports').mockRejectedValueOnce(running)
    const request = reversal()
    await expect(reverseReplication(place.replica, request)).rejects.toBe(running)
    expect(await place.replica.state()).toBe('FailedOverWaitingCompletion')
    expect(place.engine.machines).toEqual([place.machine])
  })

  it('needs the engine of a primary that is to go on', async () => {
    await failOver(place.replica)
    const former = { disks: { 'os.raw': place.path('os.raw'), 'data.raw': place.path('data.raw') } }
    const request = { engine: away, former, directory: place.path('home-store'), loser: 'replica' } as const
    await expect(reverseReplication(place.replica, request)).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    expect(await place.replica.state()).toBe('FailedOver')
  })

  it('is not reversed while a disk of the former primary cannot be opened', async () => {
    await place.cycle(60)
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    await place.engine.close()
    await failOver(place.replica)
    renameSync(place.path('os.raw'), place.path('elsewhere.raw'))
    place.engine = await place.open({ clock: place.clock })
    const request = reversal()
    await expect(reverseReplication(place.replica, request)).rejects.toMatchObject({ code: 'DISK_NOT_FOUND' })
    expect(existsSync(place.path('os.raw'))).toBe(false)
    renameSync(place.path('elsewhere.raw'), place.path('os.raw'))
    await expect(reverseReplication(place.replica, request)).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
  })

  it('is reversed to new disks where the former primary is gone', async () => {
    await place.cycle(60)
    await failOver(place.replica)
    const disks = Object.fromEntries(DISKS.map((name) => [name, place.path(`new/${name}`)]))
    const { machine, candidateBytes } = await reverseReplication(place.replica, {
      engine: away,
      former: { disks },
      directory: place.path('new/store'),
    })
    expect(candidateBytes).toBe(3 * MIB)
    await settled(machine)
    await machine.replicate()
    for (const name of DISKS) {
      const source = readFileSync(place.path(`replica/${name}.raw`))
      expect(source.equals(readFileSync(join(place.path('new'), name))), name).toBe(true)
    }
  })

  const STEPS = [
    'reverse.before-recording',
    'reverse.before-retiring',
    'reverse.before-adopting',
    'reverse.before-protecting',
    'reverse.before-ending',
  ]
  it('is not taken up again once its way home has begun: what was written then would be missing there', async () => {
    await reversalDiesAt('reverse.before-retiring')
    await expect(place.replica.failover()).rejects.toMatchObject({
      code: 'INVALID_STATE',
      details: { state: 'FailedOver', allowedVerbs: ['reverseReplication'] },
    })
    const planned = await explainReverse(place.replica, reversal())
    const { machine, candidateBytes } = await reverseReplication(place.replica, reversal())
    expect([planned.candidateBytes, candidateBytes]).toEqual([64 * KIB, 64 * KIB])
    await settled(machine)
    await machine.replicate()
    expectPairs()
  })

  it.each(STEPS)('whose reversal dies at %s is carried through by the next call', async (step) => {
    await reversalDiesAt(step)
    const { machine } = await reverseReplication(place.replica, reversal())
    await settled(machine)
    await machine.replicate()
    expectPairs()
    expect(await machine.verify()).toMatchObject({ equal: true })
  })
})
