/**
 * Closing an engine of which something cannot be closed in order: everything else is, and nothing stays open or locked.
 */

import { Engine, type ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, refusal } from './bad-day.js'
import { MIB } from './workplace.js'

const NAMES = ['web01', 'web02', 'web03'] as const

let day: BadDay

beforeEach(() => {
  day = new BadDay()
})

afterEach(() => day.end())

async function protectThree(): Promise<Engine> {
  const engine = await day.place.open()
  for (const name of NAMES) {
    const disks = [day.place.makeDisk(`${name}.raw`, MIB)]
    const machine = await engine.enable({
      name,
      disks,
      replica: { directory: day.place.path(`replica-${name}`) },
    })
    await machine.startInitialReplication()
    await machine.disks[0]?.write(0, new Uint8Array(4096).fill(5))
  }
  return engine
}

/** Everything can be opened again, and goes on with what was written. */
async function expectAllFree(): Promise<void> {
  day.engine = await day.place.open()
  for (const machine of day.engine.machines as readonly ProtectedMachine[]) {
    expect(machine.disks, machine.name).toHaveLength(1)
    if (machine.state === 'WaitingForStartResynchronize') await machine.resynchronize()
    await machine.replicate()
    expect(await machine.verify(), machine.name).toMatchObject({ equal: true })
  }
}

describe('an engine that closes', () => {
  it('leaves nothing open behind the first machine that cannot be closed, and says why', async () => {
    const engine = await protectThree()
    const failing = day.files.fail({ path: day.place.path('web01.raw'), operation: 'sync', error: 'EIO' })
    expect(await refusal(engine.close())).toMatchObject({ code: 'DISK_SYNC_FAILED' })
    failing.disarm()
    await engine.close()
    await expectAllFree()
  })

  it('tells all failures when several things cannot be closed', async () => {
    const engine = await protectThree()
    for (const name of ['web01', 'web03'])
      day.files.fail({ path: day.place.path(`${name}.raw`), operation: 'sync', error: 'EIO' })
    const failed = await refusal(engine.close())
    expect(failed).toMatchObject({ code: 'CLOSE_FAILED' })
    expect(failed.details['failures']).toMatchObject([
      { code: 'DISK_SYNC_FAILED', details: { path: day.place.path('web01.raw') } },
      { code: 'DISK_SYNC_FAILED', details: { path: day.place.path('web03.raw') } },
    ])
    day.files.heal()
    await expectAllFree()
  })
})
