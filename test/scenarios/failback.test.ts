/**
 * The way home as one verb: nothing moves that nobody wrote, the active side runs on until the last step, and whatever dies in
 * the middle, the same call brings the machine home.
 */

import { copyFileSync, mkdirSync, readFileSync } from 'node:fs'
import {
  cancelFailback,
  Engine,
  explainFailback,
  failback,
  type FailbackPlace,
  type FailbackStep,
  openReplica,
  type ProtectedMachine,
  type Replica,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { DISKS, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

/** What frames, entries and metadata of the logs may add to what they carry. */
const OVERHEAD_BYTES = 64 * KIB

let place: RecoveryPlace
/** The engine of the second site. */
let away: Engine

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4 })
  away = await openAway()
})

afterEach(async () => {
  await away.close()
  await place.end()
})

function openAway(): Promise<Engine> {
  return Engine.open({ stateDirectory: place.path('away-state'), clock: place.clock })
}

const trip = (): FailbackPlace => ({
  replica: place.replica,
  away,
  home: place.engine,
  directory: place.path('home-store'),
})

async function homeReplica(): Promise<Replica> {
  return openReplica({ directory: place.path('home-store'), clock: place.clock })
}

async function homeState(): Promise<string> {
  await using replica = await homeReplica()
  return replica.state()
}

async function write(
  machine: Pick<ProtectedMachine, 'disks'>,
  name: string,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  const disk = machine.disks.find((one) => one.name === name)
  if (disk === undefined) throw new Error(`no disk ${name}`)
  await disk.write(offset, place.random.bytes(lengthBytes))
}

/** A failover with a write over there that is not committed. */
async function failOver(writtenBytes = 64 * KIB): Promise<void> {
  const failover = await place.replica.startFailover({ fencePrimary: true })
  if (writtenBytes > 0) await write(failover, 'os.raw', 128 * KIB, writtenBytes)
}

/** A failback whose process dies just before a step: both sides and the replica are opened anew. */
async function failbackDiesAt(step: string): Promise<void> {
  await place.replica.close()
  const dying = await place.openReplica((name) => {
    if (name === step) throw new Error('died')
  })
  try {
    await expect(failback({ ...trip(), replica: dying })).rejects.toThrow('died')
  } finally {
    await dying.close()
  }
  await away.abandon()
  await place.engine.abandon()
  place.engine = await place.open({ clock: place.clock })
  away = await openAway()
  place.replica = await place.openReplica()
}

/** Home and its replica are the same, to the last byte. */
function expectPairs(paths: (name: string) => string = (name) => place.path(name)): void {
  for (const name of DISKS) {
    const source = readFileSync(paths(name))
    expect(source.equals(readFileSync(place.path(`replica/${name}.raw`))), name).toBe(true)
  }
}

/** Home protects the machine, and cycles bring what is written there to its replica. */
async function expectHome(machine: ProtectedMachine | null): Promise<ProtectedMachine> {
  if (machine === null) throw new Error('it is not home')
  expect(machine.state).toBe('Replicating')
  expect(away.machines).toEqual([])
  await write(machine, 'data.raw', 64 * KIB, 8 * KIB)
  await machine.replicate()
  expect(await machine.verify()).toMatchObject({ equal: true })
  return machine
}

describe('a failback', () => {
  it('moves no byte of a machine that nobody wrote to', async () => {
    await place.cycle(60)
    await failOver(0)
    const images = DISKS.map((name) => readFileSync(place.path(name)))
    expect(await explainFailback(trip())).toMatchObject({ next: 'reverse', copyBytes: 0 })
    const steps: string[] = []
    const report = await failback({ ...trip(), onStep: (step, at) => void steps.push(`${step} ${at}`) })
    expect(report).toMatchObject({ next: null, sentBytes: 0, provenBytes: 3 * MIB, lostLogs: [] })
    expect(steps).toEqual(
      ['reverse', 'synchronize', 'finalize', 'return'].flatMap((step) => [`${step} begun`, `${step} done`]),
    )
    for (const [index, name] of DISKS.entries()) {
      expect(readFileSync(place.path(name)).equals(images[index] ?? Buffer.alloc(0)), name).toBe(true)
    }
    await expectHome(report.protected)
    expectPairs()
  })

  it('says what it would copy, sends that while the active side runs, and then the rest', async () => {
    await place.cycle(60)
    await failOver(64 * KIB)
    const before = await explainFailback(trip())
    expect(before).toMatchObject({ next: 'reverse', copyBytes: 64 * KIB, activeState: null, homeState: null })
    expect(before.reverse?.disks.find(({ disk }) => disk === 'os.raw')).toMatchObject({
      method: 'delta',
      ranges: [{ offset: 128 * KIB, lengthBytes: 64 * KIB }],
      path: place.path('os.raw'),
    })
    expect(before.reverse).toMatchObject({ primary: { bytes: 0 }, replica: { bytes: 64 * KIB } })
    const copied = await failback({ ...trip(), until: 'synchronize' })
    expect(copied).toMatchObject({ done: ['reverse', 'synchronize'], next: 'finalize', protected: null })
    expect(copied.sentBytes).toBeGreaterThanOrEqual(64 * KIB)
    expect(copied.sentBytes).toBeLessThan(64 * KIB + OVERHEAD_BYTES)
    expect(await homeState()).toBe('FailbackInProgress')
    const [active] = away.machines
    expect(active?.state).toBe('Replicating')
    await write(active!, 'os.raw', MIB, 16 * KIB)
    await active?.replicate()
    await write(active!, 'data.raw', 0, 4 * KIB)
    expect(await explainFailback(trip())).toMatchObject({ next: 'finalize', copyBytes: 64 * KIB })
    const report = await failback(trip())
    expect(report).toMatchObject({ done: ['finalize', 'return'], next: null, provenBytes: 3 * MIB })
    expect(report.sentBytes).toBeLessThan(4 * KIB + OVERHEAD_BYTES)
    await expectHome(report.protected)
    expectPairs()
    expect((await failback(trip())).done).toEqual([])
  })

  it.each([
    [4, 1],
    [5, 2],
  ])(
    'compares %i chunks that lie far apart in %i steps of at most a window',
    async (chunkCount, stepCount) => {
      const steps: string[] = []
      await away.close()
      const stateDirectory = place.path('away-state')
      const step = (name: string): void => void steps.push(name)
      away = await Engine.open({ stateDirectory, clock: place.clock, windowBytes: 256 * KIB, step })
      const failover = await place.replica.startFailover({ fencePrimary: true })
      for (let chunk = 0; chunk < chunkCount; chunk += 1)
        await write(failover, 'os.raw', chunk * 384 * KIB, 4 * KIB)
      const report = await failback(trip())
      expect(steps.filter((name) => name === 'resync.before-queueing')).toHaveLength(stepCount)
      await expectHome(report.protected)
      expectPairs()
    },
  )

  it('is taken back before its last step, and home is what it was', async () => {
    await failOver()
    const { machine } = await failback({ ...trip(), until: 'finalize' })
    expect([machine, await homeState()]).toEqual(['web01', 'FailbackComplete'])
    const images = DISKS.map((name) => readFileSync(place.path(name)))
    {
      await using home = await homeReplica()
      const failover = await home.failover()
      await write(failover!, 'os.raw', 0, 64 * KIB)
    }
    await cancelFailback(trip())
    expect(await homeState()).toBe('Replicating')
    expect(away.machines[0]?.state).toBe('Replicating')
    for (const [index, name] of DISKS.entries()) {
      expect(readFileSync(place.path(name)).equals(images[index] ?? Buffer.alloc(0)), name).toBe(true)
    }
    await write(away.machines[0]!, 'os.raw', MIB, 4 * KIB)
    const report = await failback({ ...trip(), verify: false })
    expect(report.done).toEqual(['synchronize', 'finalize', 'return'])
    await expectHome(report.protected)
    expectPairs()
  })

  it('is taken back while data flows home', async () => {
    await failOver()
    await failback({ ...trip(), until: 'synchronize' })
    await cancelFailback(trip())
    expect(await homeState()).toBe('Replicating')
    await expect(cancelFailback(trip())).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect((await failback(trip())).done).toEqual(['synchronize', 'finalize', 'return'])
  })

  it('that dies while it is taken back is taken back by the next call, or goes on', async () => {
    await failOver()
    await failback({ ...trip(), until: 'finalize' })
    await place.replica.close()
    place.replica = await place.openReplica((name) => {
      if (name === 'failback.before-cancelling') throw new Error('died')
    })
    await expect(cancelFailback(trip())).rejects.toThrow('died')
    await place.replica.close()
    place.replica = await place.openReplica()
    expect([away.machines[0]?.state, await homeState()]).toEqual(['PreparedForFailover', 'Replicating'])
    const again = await failback({ ...trip(), until: 'finalize' })
    expect(again).toMatchObject({ done: ['synchronize', 'finalize'], sentBytes: 0 })
    await cancelFailback(trip())
    expect([away.machines[0]?.state, await homeState()]).toEqual(['Replicating', 'Replicating'])
    await write(away.machines[0]!, 'os.raw', MIB, 4 * KIB)
    await expectHome((await failback(trip())).protected)
    expectPairs()
  })

  it('gives locked points of the replica at home up only where asked to', async () => {
    await failOver()
    await failback({ ...trip(), until: 'synchronize' })
    {
      await using home = await homeReplica()
      const number = (await home.points()).at(-1)?.number ?? 0
      await home.lockPoint(number, place.clock.nowMs() + 3_600_000)
    }
    await expect(failback(trip())).rejects.toMatchObject({ code: 'POINT_LOCKED' })
    expect(await homeState()).toBe('FailbackComplete')
    await expectHome((await failback({ ...trip(), dropLocked: true })).protected)
    expectPairs()
  })

  it('takes no other failover at home, whose active side runs on', async () => {
    await failOver()
    await failback({ ...trip(), until: 'synchronize' })
    await using home = await homeReplica()
    const [point] = await home.points()
    const request = { point: { point: point?.number ?? 0 }, fencePrimary: true }
    await expect(home.startFailover(request)).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await expect(home.requireFailover(true)).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect(await home.state()).toBe('FailbackInProgress')
  })

  it('is refused where nothing was failed over, with nothing changed', async () => {
    await expect(failback(trip())).rejects.toMatchObject({ code: 'INVALID_STATE' })
    expect(await explainFailback(trip())).toMatchObject({ next: null, copyBytes: 0 })
    await place.cycle(60)
    expectPairs()
  })

  it('gives nothing up that was not named', async () => {
    await write(place.machine, 'os.raw', MIB, 8 * KIB)
    await failOver()
    const outlook = await explainFailback(trip())
    expect(outlook.reverse?.primary).toMatchObject({ bytes: 64 * KIB })
    await expect(failback(trip())).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
    expect(await place.replica.state()).toBe('FailedOverWaitingCompletion')
    const report = await failback({ ...trip(), loser: 'primary' })
    expect(report.lostLogs.length).toBeGreaterThan(0)
    await expectHome(report.protected)
    expectPairs()
  })

  it.each([
    ['new disks', false, 3 * MIB],
    ['old copies', true, 64 * KIB],
  ] as const)('to %s sends what differs from them', async (_, isSeeded, differentBytes) => {
    const disks = Object.fromEntries(DISKS.map((name) => [name, place.path(`new/${name}`)]))
    mkdirSync(place.path('new'))
    if (isSeeded) for (const name of DISKS) copyFileSync(place.path(name), place.path(`new/${name}`))
    await failOver()
    await place.engine.close()
    const other = await Engine.open({ stateDirectory: place.path('new-state'), clock: place.clock })
    try {
      const elsewhere = { ...trip(), home: other, former: { disks }, directory: place.path('new-store') }
      const { reverse } = await explainFailback(elsewhere)
      expect(new Set(reverse?.disks.map(({ method }) => method))).toEqual(
        new Set([isSeeded ? 'compare' : 'new']),
      )
      const report = await failback(elsewhere)
      expect(report.sentBytes).toBeLessThan(differentBytes + OVERHEAD_BYTES)
      expect(report.protected?.diskPaths.toSorted()).toEqual(Object.values(disks).toSorted())
      await expectHome(report.protected)
      expectPairs((name) => disks[name] ?? '')
    } finally {
      await other.close()
    }
  })

  const STEPS = [
    'commit.before-opening',
    'reverse.before-recording',
    'reverse.before-retiring',
    'reverse.before-adopting',
    'reverse.before-protecting',
    'reverse.before-ending',
    'failback.before-announcing',
    'failback.before-finalizing',
    'failover.before-moving',
    'failover.before-layers',
    'failover.before-started',
    'failback.before-returning',
  ] as const
  it.each(STEPS)('that dies at %s comes home by the next call', async (step) => {
    await place.cycle(60)
    await failOver()
    await failbackDiesAt(step)
    const report = await failback(trip())
    expect(report.next).toBeNull()
    await expectHome(report.protected)
    expectPairs()
  })

  /** The second reversal has the same steps as the first; these are those of its own. */
  const RETURN_STEPS: readonly (readonly [string, FailbackStep])[] = [
    ['commit.before-settling', 'finalize'],
    ['reverse.before-recording', 'finalize'],
    ['reverse.before-retiring', 'finalize'],
    ['reverse.before-adopting', 'finalize'],
    ['reverse.before-protecting', 'finalize'],
    ['reverse.before-ending', 'finalize'],
  ]
  it.each(RETURN_STEPS)('that dies at %s of its return comes home by the next call', async (step, until) => {
    await failOver()
    await failback({ ...trip(), until })
    await failbackDiesAt(step)
    const report = await failback(trip())
    expect(report.done).toEqual(['return'])
    await expectHome(report.protected)
    expectPairs()
  })
})
