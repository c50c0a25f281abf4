/**
 * Images of a replica that somebody has deleted or cut short while its store stayed: told, and made anew only when that is
 * asked for, under a resynchronization of the whole disk. Nothing shows an image that is made anew before it is whole.
 */

import { existsSync, readFileSync, renameSync, rmSync, statSync, truncateSync } from 'node:fs'
import { type EngineOptions, type ProtectedMachine, SecondsiteError } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { codeOf, refusal } from './bad-day.js'
import { runHere } from './cli-command.js'
import { DISKS, expectShows, RecoveryPlace } from './recovery-oracle.js'
import { MIB } from './workplace.js'

const POLICY = {
  recoveryPoints: 24,
  recoveryPointIntervalSeconds: 3600,
  autoResynchronize: { enabled: false },
}

let place: RecoveryPlace

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin(POLICY)
  for (let cycle = 0; cycle < 2; cycle += 1) await place.cycle(60)
})

afterEach(() => place.end())

const machine = (): ProtectedMachine => place.machine
const image = (name = 'os.raw'): string => place.path(`replica/${name}.raw`)

async function reopen(how: 'close' | 'abandon', options: Partial<EngineOptions> = {}): Promise<void> {
  await place.engine[how]()
  place.engine = await place.open({ clock: place.clock, ...options })
  place.machine = place.engine.machine('web01')
}

describe.each([
  ['deleted', () => rmSync(image())],
  ['cut short', () => truncateSync(image(), MIB)],
])('an image that was %s', (_, damage) => {
  it('stops the machine with its path and a hint, and is never made anew by itself', async () => {
    damage()
    const sizeBytes = existsSync(image()) ? statSync(image()).size : null
    await place.scribble(machine(), 4)
    const lost = await refusal(machine().replicate())
    expect(lost).toMatchObject({ code: 'REPLICA_IMAGE_LOST', details: { path: image() } })
    expect(lost.hint).toContain('recreateImages')
    const measured = await machine().measure()
    expect(measured).toMatchObject({ state: 'Error', health: 'Critical' })
    expect(measured.lastError?.message).toContain(image())
    expect(measured.healthDetails.map(({ code }) => code)).toContain('REPLICATION_ERROR')
    await machine().resume()
    expect(await codeOf(machine().replicate())).toBe('REPLICA_IMAGE_LOST')
    expect(await codeOf(machine().resynchronize())).toBe('REPLICA_IMAGE_LOST')
    await reopen('close')
    await machine().resume()
    expect(await codeOf(machine().replicate())).not.toBe('none')
    expect(existsSync(image()) ? statSync(image()).size : null).toBe(sizeBytes)
  })

  it('is what every point says of itself, and no failover begins over what is left', async () => {
    damage()
    const points = await place.replica.points()
    expect(points.map((point) => point.damage?.path)).toEqual(points.map(() => image()))
    const lost = { code: 'REPLICA_IMAGE_LOST', details: { images: [{ disk: 'os.raw', path: image() }] } }
    for (const kind of ['Latest', 'LatestProcessed', { point: points[0]?.number ?? 0 }] as const) {
      const failover = place.replica.startFailover({ point: kind, fencePrimary: true })
      await expect(failover).rejects.toMatchObject(lost)
    }
    await expect(place.replica.startTestFailover()).rejects.toMatchObject(lost)
    await expect(place.replica.openView()).rejects.toMatchObject(lost)
    expect(await place.replica.state()).toBe('Replicating')
    expect((await runHere(['points', place.path('replica')])).exitCode).toBe(1)
  })

  it('is made anew on request: its disk is compared as a whole, points show the other disk, and new ones both', async () => {
    damage()
    expect(await codeOf(machine().replicate())).toBe('REPLICA_IMAGE_LOST')
    const report = await machine().resynchronize({ recreateImages: true })
    expect(report).toMatchObject({ reason: 'REPLICA_CHANGED' })
    expect(report?.comparedBytes).toBeGreaterThanOrEqual(2 * MIB)
    expect(report?.comparedBytes, 'the other disk is not compared as a whole').toBeLessThan(3 * MIB)
    expect(machine().state).toBe('Replicating')
    const now = await place.cycle(60)
    place.expectEqual(DISKS)
    const points = await place.replica.points()
    expect(points.length).toBeGreaterThan(2)
    const [oldest] = points
    const then = place.momentAt(oldest?.cutTimeMs ?? 0)
    expect(oldest?.withoutDisks).toEqual(['os.raw'])
    expect(points.at(-1)?.withoutDisks).toEqual([])
    const outlook = await runHere([
      'failover',
      'start',
      place.path('replica'),
      '--point',
      String(oldest?.number),
      '--nbd',
      'unix:/none',
    ])
    expect(outlook.said.join('\n')).toMatch(/disk that is not there then +os\.raw/)
    await using view = await place.replica.openView({ point: oldest?.number ?? 0 })
    const others = new Map([...then.disks].filter(([name]) => name !== 'os.raw'))
    await expectShows(view, { timeMs: then.timeMs, disks: others })
    await using latest = await place.replica.openView()
    await expectShows(latest, now)
    expect((await place.engine.events()).map(({ id }) => id)).toContain(40_017)
  })
})

/** Before these steps the replica does not know that it may forget the image. */
const EARLY = ['image.before-owing', 'image.before-telling', 'image.before-forgetting']
const LATER = ['image.before-creating', 'resync.before-begin', 'resync.before-closing']

it.each([...EARLY, ...LATER])(
  'a death before %s loses nothing, and nothing shows half an image',
  async (fatal) => {
    let hasDied = false
    await reopen('close', {
      step: (name) => {
        if (hasDied || name !== fatal) return
        hasDied = true
        throw new SecondsiteError('TRANSPORT_LOST', { message: `died before ${fatal}` })
      },
    })
    rmSync(image())
    expect(await codeOf(machine().replicate())).toBe('REPLICA_IMAGE_LOST')
    expect(await codeOf(machine().resynchronize({ recreateImages: true }))).toBe('TRANSPORT_LOST')
    expect(hasDied).toBe(true)
    const shown = place.replica.openView()
    if (EARLY.includes(fatal)) await expect(shown).rejects.toMatchObject({ code: 'REPLICA_IMAGE_LOST' })
    else expect((await shown).disks.map(({ name }) => name)).toEqual(['data.raw'])
    await reopen('abandon')
    await machine().resynchronize({ recreateImages: true })
    await place.cycle(60)
    place.expectEqual(DISKS)
    expect(await machine().verify()).toMatchObject({ equal: true })
  },
)

describe('lost images', () => {
  it('are all named at once, and with none left nothing can be gone back to', async () => {
    for (const name of DISKS) rmSync(image(name))
    const lost = await refusal(machine().replicate())
    expect(lost.details['images']).toMatchObject([{ disk: 'data.raw' }, { disk: 'os.raw' }])
    await machine().resynchronize({ recreateImages: true })
    const now = await place.cycle(60)
    place.expectEqual(DISKS)
    const points = await place.replica.points()
    expect(points.every(({ cutTimeMs }) => cutTimeMs >= now.timeMs - 60 * 60_000)).toBe(true)
  })

  it('that are put back are replicated into as before, with their points', async () => {
    renameSync(image(), place.path('kept'))
    expect(await codeOf(machine().replicate())).toBe('REPLICA_IMAGE_LOST')
    renameSync(place.path('kept'), image())
    await machine().resume()
    await place.cycle(60)
    place.expectEqual(DISKS)
    for (const { number, cutTimeMs } of await place.replica.points()) {
      await using view = await place.replica.openView({ point: number })
      await expectShows(view, place.momentAt(cutTimeMs))
    }
  })

  it('are not made anew where none is lost: an image that is there stays', async () => {
    const before = readFileSync(image())
    const inode = statSync(image()).ino
    await machine().resynchronize({ recreateImages: true })
    expect(statSync(image()).ino).toBe(inode)
    expect(readFileSync(image()).equals(before)).toBe(true)
    expect((await place.engine.events()).map(({ id }) => id)).not.toContain(40_017)
  })
})
