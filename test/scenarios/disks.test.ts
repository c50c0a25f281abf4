import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { type Engine, type ProtectedMachine, SecondsiteError } from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { codeOf, refusal } from './bad-day.js'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace
let engine: Engine

beforeEach(() => {
  place = new Workplace()
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

const policy = { autoResynchronize: { enabled: false } }

async function replicating(options: Parameters<Workplace['open']>[0] = {}): Promise<ProtectedMachine> {
  engine = await place.open(options)
  const machine = await place.enable(engine, [place.makeDisk('os.raw', 2 * MIB)], policy)
  await machine.startInitialReplication()
  return machine
}

/** Waits until a disk that was added is copied to its end, then closes it with a cycle. */
async function joined(machine: ProtectedMachine): Promise<void> {
  const isAllCopied = async (): Promise<boolean> =>
    (await machine.measure()).disks.every((disk) => disk.copyState === 'copied')
  await vi.waitFor(
    async () => {
      await machine.replicate()
      expect(await isAllCopied()).toBe(true)
    },
    { timeout: 50_000 },
  )
}

/** A clock on which time passes without a timer being due: what takes long. */
class LateClock extends ManualClock {
  lateMs = 0

  override nowMs(): number {
    return super.nowMs() + this.lateMs
  }
}

const ids = async (): Promise<number[]> => (await engine.events()).map(({ id }) => id)

describe('a disk that joins a machine', () => {
  it('is copied while all disks are written to, and then held by the cuts of the machine', async () => {
    const machine = await replicating()
    const data = await machine.addDisk(place.makeDisk('data.raw', 8 * MIB))
    expect(machine.disks.map(({ name }) => name)).toEqual(['os.raw', 'data.raw'])
    expect(await machine.measure()).toMatchObject({ health: 'Warning', resyncReason: null })
    await place.scribble(machine, 30)
    await joined(machine)
    await place.scribble(machine, 30)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    const verified = await machine.verify()
    expect(verified).toMatchObject({ equal: true, comparedBytes: 10 * MIB })
    expect(await machine.measure()).toMatchObject({ state: 'Replicating', health: 'Normal' })
    expect(data.status().resyncReason).toBeNull()
    expect(await ids()).toEqual(expect.arrayContaining([40_020, 40_021]))
  })

  it('keeps no cycle of the others waiting for longer than one batch', async () => {
    const clock = new LateClock(Date.UTC(2026, 10, 21))
    const steps: string[] = []
    const machine = await replicating({
      clock,
      step: (name) => {
        if (name === 'initial.before-batch' || name === 'cycle.before-cut') steps.push(name)
        // Each batch takes a third of the interval of the cycles.
        if (name === 'initial.before-queueing') clock.lateMs += 100_000
      },
    })
    steps.length = 0
    await machine.addDisk(place.makeDisk('data.raw', 12 * MIB, 12 * MIB))
    await vi.waitFor(
      async () => {
        await clock.advance(1000)
        expect((await machine.measure()).disks.every((disk) => disk.copyState === 'copied')).toBe(true)
      },
      { timeout: 50_000, interval: 20 },
    )
    const batchesBetween = steps
      .join(' ')
      .split('cycle.before-cut')
      .map((run) => run.split('initial').length - 1)
    expect(batchesBetween.length).toBeGreaterThan(3)
    expect(Math.max(...batchesBetween)).toBeLessThanOrEqual(4)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('before, in the middle of, and behind the first copy of the machine is copied with it or after it', async () => {
    let isAdded = false
    engine = await place.open({
      step: async (name) => {
        if (name !== 'initial.before-queueing' || isAdded) return
        isAdded = true
        await engine.machine('web01').addDisk(place.makeDisk('middle.raw', MIB))
      },
    })
    const machine = await place.enable(engine, [place.makeDisk('os.raw', 2 * MIB)], policy)
    await machine.addDisk(place.makeDisk('before.raw', MIB))
    await machine.startInitialReplication()
    expect(isAdded).toBe(true)
    await machine.addDisk(place.makeDisk('behind.raw', MIB))
    await joined(machine)
    place.expectEqual(['os.raw', 'before.raw', 'middle.raw', 'behind.raw'])
    expect(await machine.verify()).toMatchObject({ equal: true, comparedBytes: 5 * MIB })
  })

  it('is the business of a resynchronization that comes before its copy is done', async () => {
    const machine = await replicating()
    await machine.suspend()
    await machine.addDisk(place.makeDisk('data.raw', 4 * MIB, 4 * MIB))
    await place.scribble(machine, 10)
    expect(await machine.resynchronize()).toMatchObject({ comparedBytes: 6 * MIB })
    expect((await machine.measure()).disks.map((disk) => disk.copyState)).toEqual(['copied', 'copied'])
    await place.scribble(machine, 10)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('loses nothing when logs that pass the threshold are given up in the middle of its copy', async () => {
    let batchCount = 0
    let isCut = false
    const machine = await replicating({
      step: (name) => {
        if (name === 'initial.before-queueing') batchCount += 1
        // Recorded, counted as copied, and never sent.
        if (name !== 'ship.before-sending' || batchCount !== 5 || isCut) return
        isCut = true
        throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
      },
    })
    await machine.configure({ resyncThresholdPercent: 5 })
    await machine.addDisk(place.makeDisk('data.raw', 8 * MIB, 8 * MIB))
    await vi.waitFor(() => expect(isCut).toBe(true), { timeout: 50_000 })
    await place.scribble(machine, 60)
    await codeOf(machine.replicate())
    expect(machine.state).toBe('WaitingForStartResynchronize')
    await machine.resynchronize()
    await joined(machine)
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('goes on being copied after the death of the process', async () => {
    let machine = await replicating()
    await machine.suspend()
    await machine.addDisk(place.makeDisk('data.raw', 4 * MIB))
    await place.scribble(machine, 10)
    await engine.abandon()
    engine = await place.open()
    machine = engine.machine('web01')
    expect(machine.disks.map(({ name }) => name)).toEqual(['os.raw', 'data.raw'])
    await machine.resume()
    await joined(machine)
    place.expectEqual(['os.raw', 'data.raw'])
    expect(await machine.measure()).toMatchObject({ resyncReason: null })
  })

  it('is refused when it is protected, or not there, and leaves nothing behind', async () => {
    const machine = await replicating()
    const other = { name: 'db01', disks: [place.makeDisk('db.raw', MIB)] }
    await engine.enable({ ...other, replica: { directory: place.path('replica-db') } })
    const before = readdirSync(place.folder).sort()
    const refused = async (path: string): Promise<string> =>
      (await refusal(machine.addDisk(place.path(path)))).code
    expect(await refused('os.raw')).toBe('DISK_SAME')
    expect(await refused('db.raw')).toBe('MACHINE_EXISTS')
    expect(await refused('nowhere.raw')).toBe('DISK_NOT_FOUND')
    expect(readdirSync(place.folder).sort()).toEqual(before)
    expect(machine.disks).toHaveLength(1)
    await machine.replicate()
  })
})

describe('a disk that leaves a machine', () => {
  it('is not tracked any more, keeps its replica, and may come back', async () => {
    const machine = await replicating()
    const path = place.makeDisk('data.raw', 2 * MIB)
    await machine.addDisk(path)
    await joined(machine)
    const image = readFileSync(place.path('replica/data.raw.raw'))
    await place.scribble(machine, 20)
    await machine.removeDisk('data.raw')
    expect(readdirSync(place.folder).filter((file) => file.startsWith('data.raw'))).toEqual(['data.raw'])
    expect(machine.diskPaths).toEqual([place.path('os.raw')])
    await machine.replicate()
    place.expectEqual(['os.raw'])
    expect(readFileSync(place.path('replica/data.raw.raw')).equals(image)).toBe(true)
    rmSync(place.path('replica/data.raw.raw'))
    await machine.replicate()
    const again = await machine.addDisk(path)
    await joined(machine)
    const copy = readFileSync(place.path(`replica/data.raw-${again.diskId.slice(0, 8)}.raw`))
    expect(copy.equals(readFileSync(path))).toBe(true)
    expect(await ids()).toContain(40_022)
  })

  it('in the middle of its copy, or with logs that wait, holds nobody up', async () => {
    const machine = await replicating()
    await machine.suspend()
    await machine.addDisk(place.makeDisk('data.raw', 8 * MIB, 8 * MIB))
    await machine.resume()
    await place.scribble(machine, 30, 16 * KIB)
    await machine.removeDisk('data.raw')
    await machine.replicate()
    place.expectEqual(['os.raw'])
    expect(existsSync(place.path('data.raw.hrt'))).toBe(false)
    expect(await machine.measure()).toMatchObject({ state: 'Replicating', resyncReason: null })
  })

  it('is refused when there is no such disk, or no other', async () => {
    const machine = await replicating()
    expect(await refusal(machine.removeDisk('data.raw'))).toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    expect(await refusal(machine.removeDisk('os.raw'))).toMatchObject({ code: 'OPTION_OUT_OF_RANGE' })
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })
})
