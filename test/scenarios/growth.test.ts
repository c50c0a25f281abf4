import { appendFileSync, statSync, truncateSync } from 'node:fs'
import type { Engine, ProtectedMachine } from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MIB, Workplace } from './workplace.js'

let place: Workplace
let engine: Engine
let machine: ProtectedMachine

beforeEach(async () => {
  place = new Workplace()
  engine = await place.open()
  machine = await place.enable(engine, [
    place.makeDisk('os.raw', 4 * MIB),
    place.makeDisk('data.raw', 2 * MIB),
  ])
})

afterEach(async () => {
  await engine.close()
  place.remove()
})

const disk = (): ProtectedMachine['disks'][number] => machine.disks[0] as ProtectedMachine['disks'][number]
const grow = (sizeBytes: number): void => truncateSync(place.path('os.raw'), sizeBytes)

describe('a disk that grows while it is protected', () => {
  it('is written to behind its old end, and the replica follows at the next cut, without a resynchronization', async () => {
    await machine.startInitialReplication()
    await expect(disk().write(6 * MIB, new Uint8Array(4096))).rejects.toMatchObject({
      code: 'DISK_OUT_OF_RANGE',
    })
    grow(8 * MIB)
    await machine.noticeGrowth()
    expect(disk().sizeBytes).toBe(8 * MIB)
    await disk().write(6 * MIB, new SeededRandom(2).bytes(64 * 1024))
    await place.scribble(machine, 10)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    expect(statSync(place.path('replica/os.raw.raw')).size).toBe(8 * MIB)
    expect(await machine.measure()).toMatchObject({ state: 'Replicating', resyncReason: null })
    expect((await engine.events()).map(({ id }) => id)).toContain(40015)
  })

  it('in the middle of the first copy is copied to its new end', async () => {
    let isGrown = false
    await engine.close()
    engine = await place.open({
      step: async (name) => {
        if (name !== 'initial.before-queueing' || isGrown) return
        isGrown = true
        grow(8 * MIB)
        await machine.noticeGrowth()
        await disk().write(7 * MIB, new SeededRandom(3).bytes(4096))
      },
    })
    machine = engine.machine('web01')
    await machine.startInitialReplication()
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    expect(await machine.verify()).toMatchObject({ equal: true })
  })

  it('by data of somebody else owes a comparison of that range alone', async () => {
    await machine.startInitialReplication()
    appendFileSync(place.path('os.raw'), new SeededRandom(4).bytes(2 * MIB))
    await machine.noticeGrowth()
    await expect(machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
    const report = await machine.resynchronize()
    expect(report?.comparedBytes).toBe(2 * MIB)
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('and the death of the process just after leave both sides right', async () => {
    await machine.startInitialReplication()
    grow(8 * MIB)
    await machine.noticeGrowth()
    await disk().write(5 * MIB, new SeededRandom(5).bytes(4096))
    await engine.abandon()
    engine = await place.open()
    machine = engine.machine('web01')
    expect(disk().sizeBytes).toBe(8 * MIB)
    await machine.replicate()
    place.expectEqual(['os.raw', 'data.raw'])
    expect(await machine.measure()).toMatchObject({ resyncReason: null })
  })

  it('but one that shrinks is refused, and keeps its size here', async () => {
    await machine.startInitialReplication()
    grow(2 * MIB)
    await expect(machine.noticeGrowth()).rejects.toMatchObject({ code: 'DISK_SIZE_DIFFERS' })
    expect(disk().sizeBytes).toBe(4 * MIB)
    grow(4 * MIB)
  })
})
