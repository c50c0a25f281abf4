import { cpSync, existsSync, renameSync, rmSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type Engine, isSecondsiteError, type ProtectedMachine } from '@secondsite/engine'
import { MIB, Workplace } from './workplace.js'

let place: Workplace
let engine: Engine | undefined

beforeEach(() => {
  place = new Workplace()
})

afterEach(async () => {
  await engine?.close()
  engine = undefined
  place.remove()
})

async function refusal(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => 'nothing was refused',
    (error: unknown) => error,
  )
}

async function replicating(): Promise<ProtectedMachine> {
  engine = await place.open()
  const machine = await place.enable(engine, [place.makeDisk('os.raw', 2 * MIB)])
  await machine.startInitialReplication()
  return machine
}

async function reopen(): Promise<ProtectedMachine> {
  await engine?.close()
  engine = await place.open()
  return engine.machine('web01')
}

describe('an engine with several machines', () => {
  it('opens although the disk of one is gone, says so there, and takes it up when it is back', async () => {
    await replicating()
    const other = { name: 'db01', disks: [place.makeDisk('db.raw', MIB)] }
    await engine?.enable({ ...other, replica: { directory: place.path('replica-db') } })
    await engine?.close()
    renameSync(place.path('os.raw'), place.path('away.raw'))

    engine = await place.open()
    await engine.machine('db01').startInitialReplication()
    const machine = engine.machine('web01')
    expect(await machine.measure()).toMatchObject({
      state: 'Error',
      health: 'Critical',
      lastError: { code: 'DISK_NOT_FOUND' },
      disks: [],
    })
    expect(await refusal(machine.replicate())).toMatchObject({ code: 'DISK_NOT_FOUND' })
    expect(await refusal(machine.resume())).toMatchObject({ code: 'DISK_NOT_FOUND' })

    renameSync(place.path('away.raw'), place.path('os.raw'))
    await machine.resume()
    await place.scribble(machine, 5)
    await machine.replicate()
    place.expectEqual(['os.raw'])
    expect(await machine.measure()).toMatchObject({ state: 'Replicating', lastError: null })
  })

  it('a machine whose disk is gone for good can be disabled', async () => {
    await replicating()
    await engine?.close()
    rmSync(place.path('os.raw'))
    engine = await place.open()
    await engine.machine('web01').disable()
    expect(engine.machines).toEqual([])
  })
})

describe('a replica that is not where it was', () => {
  it('keeps nobody from tracking, is not made anew, and is caught up when it is back', async () => {
    await replicating()
    await engine?.close()
    renameSync(place.path('replica'), place.path('unmounted'))

    engine = await place.open()
    const machine = engine.machine('web01')
    await place.scribble(machine, 5)
    expect(await refusal(machine.replicate())).toMatchObject({ code: 'REPLICA_NOT_FOUND' })
    expect(existsSync(place.path('replica'))).toBe(false)
    expect(machine.state).toBe('Replicating')

    renameSync(place.path('unmounted'), place.path('replica'))
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })

  it('is missed while the engine runs, too', async () => {
    const machine = await replicating()
    renameSync(place.path('replica'), place.path('unmounted'))
    await place.scribble(machine, 5)
    expect(await refusal(machine.replicate())).toMatchObject({ code: 'REPLICA_NOT_FOUND' })
    renameSync(place.path('unmounted'), place.path('replica'))
    await machine.replicate()
    place.expectEqual(['os.raw'])
  })

  it.each(['before the first copy', 'after the first copy'])(
    'put back to a copy from %s is resynchronized',
    async (when) => {
      engine = await place.open()
      let machine = await place.enable(engine, [place.makeDisk('os.raw', 2 * MIB)], {
        autoResynchronize: { enabled: false },
      })
      if (when === 'after the first copy') await machine.startInitialReplication()
      machine = await reopen()
      cpSync(place.path('replica'), place.path('copy'), { recursive: true })
      if (when === 'before the first copy') await machine.startInitialReplication()
      await place.scribble(machine, 5)
      await machine.replicate()
      await engine.close()
      rmSync(place.path('replica'), { recursive: true })
      cpSync(place.path('copy'), place.path('replica'), { recursive: true })

      machine = await reopen()
      await place.scribble(machine, 5)
      const error = await refusal(machine.replicate())
      expect(isSecondsiteError(error) && error.code).toBe('REPLICA_BEHIND')
      expect(await machine.measure()).toMatchObject({
        state: 'WaitingForStartResynchronize',
        resyncReason: 'REPLICA_CHANGED',
        health: 'Critical',
      })
      await machine.resynchronize()
      place.expectEqual(['os.raw'])
      expect(await machine.verify()).toMatchObject({ equal: true })
    },
  )

  it('lost in the middle of the first copy is not taken for one that has its beginning', async () => {
    let batchCount = 0
    const step = (name: string): void => {
      if (name === 'initial.before-batch' && (batchCount += 1) === 3) throw new Error('stopped by the test')
    }
    engine = await place.open()
    const disks = [place.makeDisk('os.raw', 8 * MIB, 8 * MIB)]
    await place.enable(engine, disks, { autoResynchronize: { enabled: false } })
    await engine.close()
    engine = await place.open({ step })
    cpSync(place.path('replica'), place.path('copy'), { recursive: true })
    let machine = engine.machine('web01')
    expect(await refusal(machine.startInitialReplication())).toMatchObject({ message: 'stopped by the test' })
    await engine.close()
    rmSync(place.path('replica'), { recursive: true })
    cpSync(place.path('copy'), place.path('replica'), { recursive: true })

    machine = await reopen()
    if (machine.state === 'Error') await machine.resume()
    for (let look = 0; look < 100 && machine.state !== 'WaitingForStartResynchronize'; look += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    expect(machine.state).toBe('WaitingForStartResynchronize')
    await machine.resynchronize()
    place.expectEqual(['os.raw'])
  })
})
