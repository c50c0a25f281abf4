/** Failover settings: given at the primary, there with the replica when the primary is gone, and changed there. */

import { writeFileSync } from 'node:fs'
import { openReplica, type Replica } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { runHere } from './cli-command.js'
import { RecoveryPlace } from './recovery-oracle.js'

let place: RecoveryPlace

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ failoverSettings: { name: 'shop', memoryMiB: 512 } })
})

afterEach(() => place.end())

/** The replica alone: everything of the primary is gone. */
async function alone(): Promise<Replica> {
  await place.replica.close()
  await place.engine.close()
  place.replica = await openReplica({ directory: place.path('replica'), clock: place.clock })
  return place.replica
}

const settings = (...args: string[]) => runHere(['failover', 'settings', ...args])

describe('failover settings', () => {
  it('are there with the folder of the replica alone', async () => {
    const { settings, source } = await (await alone()).failoverSettings()
    expect([settings.name, settings.memoryMiB, source]).toEqual(['shop', 512, 'primary'])
  })

  it('follow the primary’s policy with the next cycle, unless they were set at the replica', async () => {
    await place.machine.configure({ failoverSettings: { memoryMiB: 1024 } })
    await place.cycle(1)
    expect((await place.replica.failoverSettings()).settings).toMatchObject({ memoryMiB: 1024 })
    await place.replica.setFailoverSettings({ memoryMiB: 2048 })
    await place.machine.configure({ failoverSettings: { memoryMiB: 4096 } })
    await place.cycle(1)
    const held = await place.replica.failoverSettings()
    expect([held.settings.memoryMiB, held.primary?.memoryMiB, held.source]).toEqual([2048, 4096, 'replica'])
    const back = await place.replica.setFailoverSettings(null)
    expect([back.settings.memoryMiB, back.source]).toEqual([4096, 'primary'])
    await place.machine.configure({ failoverSettings: null })
    await place.cycle(1)
    expect(await place.replica.failoverSettings()).toMatchObject({ source: 'default', primary: null })
  })

  it('that are wrong are refused at both ends, and change nothing', async () => {
    const wrong = { memoryMiB: 1 }
    await expect(place.machine.configure({ failoverSettings: wrong })).rejects.toMatchObject({
      code: 'OPTION_OUT_OF_RANGE',
      details: { problems: [{ path: 'failoverSettings.memoryMiB', value: 1 }] },
    })
    await expect(place.replica.setFailoverSettings(wrong)).rejects.toMatchObject({
      code: 'FAILOVER_SETTINGS_INVALID',
      details: { problems: [{ path: 'memoryMiB', value: 1 }] },
    })
    expect((await place.replica.failoverSettings()).settings.memoryMiB).toBe(512)
  })

  it('are shown and set on the command line, with every mistake named', async () => {
    await alone()
    await place.replica.close()
    const folder = place.path('replica')
    const shown = (await settings('show', folder)).said.join('\n')
    expect(shown).toMatch(/said by the primary[^]*name: shop[^]*memoryMiB: 512/)
    writeFileSync(place.path('good.yaml'), shown.replace('memoryMiB: 512', 'memoryMiB: 300'))
    const set = await settings('set', folder, place.path('good.yaml'), '--json')
    expect(set.objects[0]).toMatchObject({ source: 'replica', settings: { name: 'shop', memoryMiB: 300 } })
    writeFileSync(place.path('bad.yaml'), 'memoryMiB: 1\nwho: me\n')
    const bad = await settings('set', folder, place.path('bad.yaml'))
    expect([bad.exitCode, bad.failures[0]]).toMatchObject([
      3,
      { code: 'FAILOVER_SETTINGS_INVALID', message: expect.stringMatching(/memoryMiB is 1.*who/) },
    ])
    expect((await settings('set', folder)).exitCode).toBe(2)
    const back = await settings('set', folder, '--from-primary', '--json')
    expect(back.objects[0]).toMatchObject({ source: 'primary', settings: { memoryMiB: 512 } })
  })

  it('survive a failover there and home again', async () => {
    await place.replica.setFailoverSettings({ memoryMiB: 2048 })
    await place.replica.startFailover({ fencePrimary: true })
    await place.replica.commitFailover()
    expect((await place.replica.failoverSettings()).settings.memoryMiB).toBe(2048)
  })
})
