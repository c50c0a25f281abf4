/**
 * Disks that become smaller while they are protected: refused, unless somebody names the very size; then the replica
 * follows with a cut, and every older point keeps its size and its bytes.
 */

import { readFileSync, statSync, truncateSync } from 'node:fs'
import {
  Engine,
  type EngineOptions,
  type ProtectedMachine,
  type Replica,
  SecondsiteError,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { client } from './clients.js'
import { refusal } from './bad-day.js'
import { DISKS, expectShows, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

const OLD_BYTES = 2 * MIB
/** In the middle of a chunk of the changed map, and not at a multiple of 4 KiB. */
const NEW_BYTES = MIB + 96 * KIB + 512
const POINTS = { recoveryPoints: 24, recoveryPointIntervalSeconds: 3600 }

let place: RecoveryPlace

beforeEach(() => {
  place = new RecoveryPlace()
})

afterEach(() => place.end())

const machine = (): ProtectedMachine => place.machine
const disk = (): ProtectedMachine['disks'][number] => machine().disks[0] as ProtectedMachine['disks'][number]
const resize = (sizeBytes: number, name = 'os.raw'): void => truncateSync(place.path(name), sizeBytes)
const imageBytes = (): number => statSync(place.path('replica/os.raw.raw')).size
const accept = (): Promise<void> => machine().acceptShrink({ 'os.raw': NEW_BYTES })

/** Opens the engine anew, after a close or a death. */
async function reopen(
  how: 'close' | 'abandon',
  options: Partial<EngineOptions> = {},
): Promise<ProtectedMachine> {
  await place.engine[how]()
  place.engine = await place.open({ clock: place.clock, ...options })
  place.machine = place.engine.machine('web01')
  return place.machine
}

/** Each point shows what was remembered of its time, whatever sizes the disks had. */
async function expectEveryPoint(replica: Replica): Promise<void> {
  for (const { number, cutTimeMs, sizeBytes } of await replica.points()) {
    const moment = place.momentAt(cutTimeMs)
    const bytes = [...moment.disks.values()].reduce((total, content) => total + content.length, 0)
    expect(sizeBytes).toBe(bytes)
    await using view = await replica.openView({ point: number })
    await expectShows(view, moment)
  }
}

/** What a guest writes over the end that the disk is about to have, and behind it. */
async function writeOverTheEnd(): Promise<void> {
  await disk().write(NEW_BYTES - 4096, place.random.bytes(64 * KIB))
  await disk().write(OLD_BYTES - 8192, place.random.bytes(8192))
}

describe('a disk that has shrunk', () => {
  it('stops its machine, is replicated on once its size is accepted, and nothing is compared', async () => {
    await place.begin(POINTS)
    await writeOverTheEnd()
    resize(NEW_BYTES)
    const refused = await refusal(machine().noticeGrowth())
    expect(refused.code).toBe('DISK_SIZE_DIFFERS')
    expect(refused.hint).toContain('acceptShrink')
    expect(imageBytes()).toBe(OLD_BYTES)
    await accept()
    expect(disk().sizeBytes).toBe(NEW_BYTES)
    expect((await machine().measure()).disks[0]).toMatchObject({ shrinkingFromBytes: OLD_BYTES })
    await expect(disk().write(NEW_BYTES, new Uint8Array(512))).rejects.toMatchObject({
      code: 'DISK_OUT_OF_RANGE',
    })
    await place.cycle(60)
    expect(imageBytes()).toBe(NEW_BYTES)
    place.expectEqual(DISKS)
    expect(await machine().measure()).toMatchObject({
      state: 'Replicating',
      resyncReason: null,
      disks: [{ shrinkingFromBytes: null, sizeBytes: NEW_BYTES }, {}],
    })
    expect(await machine().verify()).toMatchObject({ equal: true, comparedBytes: NEW_BYTES + MIB })
    expect((await place.engine.events()).map(({ id }) => id)).toContain(40_016)
  })

  it('keeps every older point at its old size, also when it grows again and shrinks once more', async () => {
    await place.begin(POINTS)
    await writeOverTheEnd()
    await place.cycle(60)
    await writeOverTheEnd()
    await place.cycle(60)
    resize(NEW_BYTES)
    await accept()
    await place.cycle(60)
    await expectEveryPoint(place.replica)
    resize(OLD_BYTES)
    await machine().noticeGrowth()
    await disk().write(OLD_BYTES - 4096, place.random.bytes(4096))
    await place.cycle(60)
    await expectEveryPoint(place.replica)
    resize(MIB)
    await machine().acceptShrink({ 'os.raw': MIB })
    await place.cycle(60)
    await expectEveryPoint(place.replica)
    place.expectEqual(DISKS)
  })

  it('is the one that a view of before goes on showing', async () => {
    await place.begin({})
    await writeOverTheEnd()
    const before = await place.cycle(60)
    await using view = await place.replica.openView()
    await expectShows(view, before)
    resize(NEW_BYTES)
    await accept()
    await place.cycle(60)
    await expectShows(view, before)
  })

  it('comes up with its old size in a failover to a point of before, which becomes the image at the commit', async () => {
    await place.begin(POINTS)
    await writeOverTheEnd()
    const before = await place.cycle(60)
    resize(NEW_BYTES)
    await accept()
    await place.cycle(60)
    await place.cycle(60)
    const failover = await place.replica.startFailover({
      fencePrimary: true,
      point: { timeMs: before.timeMs },
    })
    await expectShows(failover, before)
    const os = failover.disks.find(({ name }) => name === 'os.raw')
    await os?.write(OLD_BYTES - 512, new Uint8Array(512).fill(7))
    await place.replica.commitFailover()
    const image = readFileSync(place.path('replica/os.raw.raw'))
    const expected = Buffer.from(before.disks.get('os.raw') ?? [])
    expected.fill(7, OLD_BYTES - 512)
    expect(image.equals(expected)).toBe(true)
  })

  it('loses nothing that was written before, whatever waits in the queue, and shrinks with the cut that follows', async () => {
    await place.begin(POINTS)
    const lost = new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
    let isCut = true
    await reopen('close', {
      step: (name) => {
        if (name === 'ship.before-sending' && isCut) throw lost
      },
    })
    for (let cycle = 0; cycle < 2; cycle += 1) {
      await writeOverTheEnd()
      await expect(machine().replicate()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    }
    await writeOverTheEnd()
    resize(NEW_BYTES)
    await accept()
    await place.scribble(machine(), 4)
    await expect(machine().replicate()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    expect(imageBytes()).toBe(OLD_BYTES)
    isCut = false
    await place.cycle(60)
    expect(imageBytes()).toBe(NEW_BYTES)
    place.expectEqual(DISKS)
    expect(await machine().measure()).toMatchObject({ resyncReason: null })
  })

  it('shrinks its replica as well when the logs are given up, or brought together, before they were sent', async () => {
    for (const thresholdAction of ['strict', 'coalesce'] as const) {
      const other = new RecoveryPlace()
      await other.begin({ ...POINTS, thresholdAction, autoResynchronize: { enabled: false } })
      let isCut = true
      await other.engine.close()
      other.engine = await other.open({
        clock: other.clock,
        step: (name) => {
          if (name === 'ship.before-sending' && isCut)
            throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
        },
      })
      other.machine = other.engine.machine('web01')
      const content = other.random.bytes(256 * KIB)
      for (let write = 0; write < 3; write += 1) {
        await other.machine.disks[0]?.write(OLD_BYTES - content.length, content)
        await other.machine.replicate().catch(() => undefined)
      }
      truncateSync(other.path('os.raw'), NEW_BYTES)
      await other.machine.acceptShrink({ 'os.raw': NEW_BYTES })
      await other.machine.configure({ resyncThresholdPercent: 5 })
      await other.machine.replicate().catch(() => undefined)
      isCut = false
      if (other.machine.state === 'WaitingForStartResynchronize') await other.machine.resynchronize()
      await other.machine.configure({ resyncThresholdPercent: 50 })
      await other.cycle(60)
      expect(statSync(other.path('replica/os.raw.raw')).size).toBe(NEW_BYTES)
      other.expectEqual(DISKS)
      await other.end()
    }
  })

  it('is failed over to its newest state though the replica died when it had cut its image off', async () => {
    await place.begin(POINTS)
    let isArmed = true
    await reopen('close', {
      step: (name) => {
        if (isArmed && name === 'apply.before-watermark') throw new Error('died')
      },
    })
    await writeOverTheEnd()
    resize(NEW_BYTES)
    await accept()
    await place.scribble(machine(), 4)
    await expect(machine().replicate()).rejects.toThrow('died')
    const newest = place.remember()
    expect(imageBytes()).toBe(NEW_BYTES)
    isArmed = false
    await place.engine.abandon()
    const failover = await place.replica.startFailover()
    await expectShows(failover, newest)
    expect(failover.disks.find(({ name }) => name === 'os.raw')?.sizeBytes).toBe(NEW_BYTES)
  })

  it('in the middle of the first copy is copied to its new end', async () => {
    let isShrunk = false
    place.engine = await place.open({ clock: place.clock, batchBytes: 256 * KIB })
    place.machine = await place.enable(place.engine, [
      place.makeDisk('os.raw', OLD_BYTES, OLD_BYTES),
      place.makeDisk('data.raw', MIB),
    ])
    await reopen('close', {
      batchBytes: 256 * KIB,
      step: async (name) => {
        if (name !== 'initial.before-queueing' || isShrunk) return
        isShrunk = true
        throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
      },
    })
    await expect(machine().startInitialReplication()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    resize(NEW_BYTES)
    await accept()
    await machine().cancelInitialReplication()
    await machine().startInitialReplication()
    place.expectEqual(DISKS)
    expect(imageBytes()).toBe(NEW_BYTES)
  })

  it('in the middle of a resynchronization is compared to its new end', async () => {
    await place.begin(POINTS)
    let isCut = false
    await reopen('close', {
      windowBytes: 512 * KIB,
      step: (name) => {
        if (name !== 'resync.before-batch' || isCut) return
        isCut = true
        throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
      },
    })
    await writeOverTheEnd()
    await expect(machine().resynchronize()).rejects.toMatchObject({ code: 'TRANSPORT_LOST' })
    resize(NEW_BYTES)
    await accept()
    await machine().cancelResynchronize()
    await machine().resynchronize()
    place.expectEqual(DISKS)
    expect(imageBytes()).toBe(NEW_BYTES)
    const now = await place.cycle(60)
    await using view = await place.replica.openView()
    await expectShows(view, now)
  })

  it('that has another size than the one accepted, or a disk that is not there, is refused and changes nothing', async () => {
    await place.begin(POINTS)
    resize(NEW_BYTES - 512)
    expect(await refusal(accept())).toMatchObject({
      code: 'DISK_SIZE_DIFFERS',
      details: { foundBytes: NEW_BYTES - 512, acceptedBytes: NEW_BYTES },
    })
    expect(await refusal(machine().acceptShrink({ 'other.raw': NEW_BYTES }))).toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
    })
    expect(disk().sizeBytes).toBe(OLD_BYTES)
    expect((await machine().measure()).disks[0]).toMatchObject({ shrinkingFromBytes: null })
    resize(OLD_BYTES)
  })

  it('and was accepted before is accepted again without a change, and so is one that has not shrunk', async () => {
    await place.begin(POINTS)
    await machine().acceptShrink({ 'os.raw': NEW_BYTES, 'data.raw': MIB })
    expect(disk().sizeBytes).toBe(OLD_BYTES)
    resize(NEW_BYTES)
    await accept()
    await accept()
    await place.cycle(60)
    await accept()
    await place.cycle(60)
    const ids = (await place.engine.events()).map(({ id }) => id)
    expect(ids.filter((id) => id === 40_016)).toHaveLength(1)
    place.expectEqual(DISKS)
  })
})

describe('a disk that shrank while the engine was closed', () => {
  for (const how of ['close', 'abandon'] as const) {
    it(`by a ${how} is refused, also as a wrong disk of that size, and compared as a whole once it is accepted`, async () => {
      await place.begin({ ...POINTS, autoResynchronize: { enabled: false } })
      await writeOverTheEnd()
      await place.cycle(60)
      await writeOverTheEnd()
      await place.engine[how]()
      resize(NEW_BYTES)
      place.engine = await place.open({ clock: place.clock })
      place.machine = place.engine.machine('web01')
      expect(machine().state).toBe('Error')
      expect((await machine().measure()).lastError?.code).toBe('DISK_SIZE_DIFFERS')
      expect(await refusal(machine().resume())).toMatchObject({ code: 'DISK_SIZE_DIFFERS' })
      expect(imageBytes()).toBe(OLD_BYTES)
      await accept()
      expect(await machine().measure()).toMatchObject({
        state: 'WaitingForStartResynchronize',
        resyncReason: 'DISK_MODIFIED_OFFLINE',
      })
      await machine().resynchronize()
      await place.cycle(60)
      place.expectEqual(DISKS)
      expect(imageBytes()).toBe(NEW_BYTES)
    })
  }

  it('and grew again before its replica had followed is brought to the size it has', async () => {
    await place.begin(POINTS)
    await writeOverTheEnd()
    resize(NEW_BYTES)
    await accept()
    await place.engine.close()
    resize(OLD_BYTES - 512)
    place.engine = await place.open({ clock: place.clock })
    place.machine = place.engine.machine('web01')
    if (machine().state !== 'Replicating') await machine().resynchronize()
    await place.cycle(60)
    await machine().noticeGrowth()
    await disk().write(OLD_BYTES - 4096 - 512, place.random.bytes(4096))
    if (machine().state !== 'Replicating') await machine().resynchronize()
    await place.cycle(60)
    place.expectEqual(DISKS)
    expect(imageBytes()).toBe(OLD_BYTES - 512)
  })
})

describe('a replica', () => {
  it('does not shrink because a primary that forgot, or another one, says a smaller size', async () => {
    await place.begin(POINTS)
    await place.engine.close()
    truncateSync(place.path('os.raw'), NEW_BYTES)
    // Another machine under the same name, as after the loss of the state directory.
    await using other = await Engine.open({ stateDirectory: place.path('other-state') })
    const foreign = refusal(place.enable(other, [place.path('os.raw'), place.path('data.raw')]))
    expect((await foreign).code).toMatch(/STORE_FOREIGN|DISK_SIZE_DIFFERS|OPTION_OUT_OF_RANGE/)
    expect(imageBytes()).toBe(OLD_BYTES)
  })

  it('that is full when it has to save what is cut off keeps its size, and follows once there is room', async () => {
    const { FaultyFileSystem } = await import('@secondsite/engine/testing')
    using files = new FaultyFileSystem()
    await place.begin(POINTS)
    await writeOverTheEnd()
    const before = await place.cycle(60)
    resize(NEW_BYTES)
    await accept()
    const full = files.fail({ path: place.path('replica/undo'), operation: 'write', error: 'ENOSPC' })
    expect((await refusal(machine().replicate())).code).toMatch(
      /LOG_WRITE_FAILED|DISK_FULL|LOG_WRITER_FAILED/,
    )
    expect(imageBytes()).toBe(OLD_BYTES)
    full.disarm()
    await place.cycle(60)
    expect(imageBytes()).toBe(NEW_BYTES)
    await using view = await place.replica.openView({ timeMs: before.timeMs })
    await expectShows(view, before)
  })
})

describe('a client of a disk that shrinks', () => {
  it('gets errors behind the new end, and sees the size when it connects again', async () => {
    await place.begin({})
    await using nbd = await machine().exportNbd({ listen: `unix:${place.path('nbd.sock')}` })
    const uri = nbd.uri('os.raw')
    const size = async (): Promise<number> => Number((await client('nbdinfo', '--size', uri)).trim())
    expect(await size()).toBe(OLD_BYTES)
    resize(NEW_BYTES)
    await accept()
    expect(await size()).toBe(NEW_BYTES)
    await expect(client('qemu-io', '-f', 'raw', '-c', `write -P 5 ${NEW_BYTES} 512`, uri)).rejects.toThrow(
      /beyond|invalid|range|No space|ended/i,
    )
    await client('qemu-io', '-f', 'raw', '-c', `write -P 5 ${NEW_BYTES - 512} 512`, '-c', 'flush', uri)
    await place.cycle(60)
    place.expectEqual(DISKS)
    expect(statSync(place.path('os.raw')).size).toBe(NEW_BYTES)
  })
})
