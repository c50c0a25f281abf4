/**
 * How much was changed and how well it compresses, cut by cut; and files that are encrypted in place, on a real ext4, told
 * from all else that a guest does.
 */

import { execFileSync } from 'node:child_process'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import {
  type Engine,
  type EngineOptions,
  openReplica,
  type ProtectedMachine,
  type Replica,
  SecondsiteError,
} from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { runHere } from './cli-command.js'
import { Ext4Image } from './ext4-image.js'
import { RecoveryPlace } from './recovery-oracle.js'
import { hasTool } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

const MINUTE_MS = 60_000

/** Text that nobody has written: words of a small dictionary. */
function text(place: Workplace, lengthBytes: number): Uint8Array {
  const words = 'replica cut point shipment the a of brings log before behind disk, guest. '.split(' ')
  let content = ''
  while (content.length < lengthBytes) content += `${words[place.random.below(words.length)]} `
  return Buffer.from(content).subarray(0, lengthBytes)
}

/** A place where the replica fails before a step. */
class Failing extends RecoveryPlace {
  failsBefore: string | undefined

  override open(options: Partial<EngineOptions> = {}): Promise<Engine> {
    return super.open({
      ...options,
      step: (name) => {
        if (name !== this.failsBefore) return
        throw new SecondsiteError('REPLICA_DISK_FULL', { message: `no room before ${name}` })
      },
    })
  }
}

describe('churn', () => {
  let place: Failing

  beforeEach(() => {
    place = new Failing()
  })

  afterEach(() => place.end())

  it('is measured cut by cut, and stands with the points: data, zeros apart, and how much of it is noise', async () => {
    await place.begin({ recoveryPoints: 8, recoveryPointIntervalSeconds: 3600 })
    const [os, data] = place.machine.disks
    await os?.write(0, place.random.bytes(256 * KIB))
    await data?.write(512 * KIB, text(place, 64 * KIB))
    await os?.discard(1024 * KIB, 128 * KIB)
    await place.cycle(60, 0)
    await os?.write(64 * KIB, text(place, 64 * KIB))
    await place.cycle(60, 0)
    await place.cycle(60, 0)
    const cuts = await place.replica.churn()
    expect(
      cuts.map(({ writeCount, writeBytes, zeroBytes, noiseBytes }) => [
        writeCount,
        writeBytes,
        zeroBytes,
        noiseBytes,
      ]),
    ).toEqual([
      [2, 320 * KIB, 128 * KIB, 256 * KIB],
      [1, 64 * KIB, 0, 0],
      [0, 0, 0, 0],
    ])
    // Text has 4 to 5 bits a byte.
    expect(cuts[1]?.entropyBytes).toBeGreaterThan(24 * KIB)
    expect(cuts[1]?.entropyBytes).toBeLessThan(40 * KIB)
    const points = await place.replica.points()
    expect(points.map(({ churn }) => churn?.writeBytes ?? null)).toEqual([null, 320 * KIB, 64 * KIB, 0])
    expect(points.map(({ churn }) => churn && churn.toMs - churn.fromMs)).toEqual([
      null,
      ...Array(3).fill(60 * MINUTE_MS),
    ])
    expect(points.every(({ suspicion }) => suspicion === null)).toBe(true)
  })

  it('is not measured where nobody asks for points', async () => {
    await place.begin({})
    await place.cycle(60)
    expect(await place.replica.churn()).toEqual([])
  })

  it('is measured once, although its apply died and was done again', async () => {
    await place.begin({ recoveryPoints: 8, recoveryPointIntervalSeconds: 3600 })
    await place.machine.disks[0]?.write(0, text(place, 64 * KIB))
    await place.cycle(60, 0)
    await place.machine.disks[0]?.write(0, place.random.bytes(64 * KIB))
    place.failsBefore = 'apply.before-watermark'
    await expect(place.cycle(60, 0)).rejects.toMatchObject({ code: 'REPLICA_DISK_FULL' })
    place.failsBefore = undefined
    await place.cycle(1, 0)
    // Measured again it would have found noise in the place of noise.
    const measured = (await place.replica.churn()).filter(({ writeBytes }) => writeBytes > 0)
    expect(measured.map(({ noiseBytes, turnedBytes }) => [noiseBytes, turnedBytes])).toEqual([
      [0, 0],
      [64 * KIB, 64 * KIB],
    ])
    place.expectEqual(['os.raw', 'data.raw'])
  })

  it('is drawn: bars for a terminal, a page and a picture that need nothing else', async () => {
    await place.begin({ recoveryPoints: 8, recoveryPointIntervalSeconds: 3600 })
    for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
    const folder = place.path('replica')
    const [svg, html] = [place.path('churn.svg'), place.path('churn.html')]
    const { exitCode, said } = await runHere(['points', folder, '--svg', svg, '--html', html])
    const stdout = said.join('\n')
    expect(exitCode).toBe(0)
    expect(stdout).toMatch(/^written \|.*█.*\| at most .*\/s$/m)
    expect(stdout).toMatch(/^density \|.*\| full: does not compress$/m)
    for (const file of [svg, html]) {
      const content = readFileSync(file, 'utf8')
      expect(content.match(/<title>point \d+<\/title>/g)).toHaveLength(4)
      expect(content).not.toMatch(/<script|href=|src=|@import|url\(/)
    }
  })
})

describe('encryption in place', () => {
  let place: Workplace
  let engine: Engine
  let machine: ProtectedMachine
  let replica: Replica
  let image: Ext4Image
  let clock: ManualClock
  const notes = 'notes.txt'

  beforeEach(async () => {
    place = new Workplace(7)
    clock = new ManualClock(Date.UTC(2026, 10, 18, 12))
  })

  afterEach(async () => {
    await replica?.close()
    await engine?.close()
    place.remove()
  })

  async function begin(): Promise<void> {
    const files = new Map([
      [notes, text(place, 8 * MIB)],
      ['table.db', text(place, 6 * MIB)],
      ['photo.jpg', place.random.bytes(4 * MIB)],
    ])
    image = new Ext4Image(place.folder, 64 * MIB, files)
    engine = await place.open({ clock })
    const policy = { recoveryPoints: 24, recoveryPointIntervalSeconds: 60 }
    machine = await place.enable(engine, [image.path], policy)
    await machine.startInitialReplication()
    replica = await openReplica({ directory: place.path('replica'), clock })
  }

  async function cut(): Promise<void> {
    clock.advance(5 * MINUTE_MS)
    await machine.replicate()
    await engine.settled()
  }

  const disk = () => machine.disks[0]!
  const suspected = async () => (await engine.events()).filter(({ id }) => id === 40060)

  it('is told, with the last point before it; nothing else that is usual is', async () => {
    if (!['mke2fs', 'debugfs', 'e2fsck'].every((tool) => hasTool(tool, 'points: encryption in place'))) return
    await begin()
    for (let count = 0; count < 5; count += 1) {
      await image.add(disk(), `backup-${count}.tar`, text(place, 2 * MIB))
      await cut()
    }
    await image.add(disk(), 'film.mkv', place.random.bytes(8 * MIB))
    await cut()
    await image.overwrite(disk(), 'table.db', (lengthBytes) => text(place, lengthBytes))
    await cut()
    await image.overwrite(disk(), 'photo.jpg', (lengthBytes) => place.random.bytes(lengthBytes))
    await cut()
    expect(await suspected()).toEqual([])
    expect((await replica.churn()).map(({ turnedBytes }) => turnedBytes < MIB)).not.toContain(false)
    const last = (await replica.points()).at(-1)
    await image.overwrite(disk(), notes, (lengthBytes) => place.random.bytes(lengthBytes))
    await cut()
    await image.overwrite(disk(), 'table.db', (lengthBytes) => place.random.bytes(lengthBytes))
    await cut()
    await cut()
    // One rise, told once, however many cuts it lasts.
    const [event, ...others] = await suspected()
    expect(others).toEqual([])
    expect(event).toMatchObject({ level: 'warning', details: { lastPointBefore: last?.number } })
    expect(Number(event?.details['turnedBytes'])).toBeGreaterThan(7 * MIB)
    const { healthDetails } = await machine.measure()
    expect(healthDetails.map(({ code }) => code)).toContain('ENCRYPTION_SUSPECTED')
    const points = await replica.points()
    const index = points.findIndex(({ number }) => number === last?.number)
    expect(points.map(({ suspicion }) => suspicion)).toEqual([
      ...Array(index).fill(null),
      'last-before',
      ...Array(points.length - index - 1).fill('after'),
    ])
    // Nothing was stopped by it, and the point holds the file as it was.
    expect(machine.state).toBe('Replicating')
    place.expectEqual(['ext4.raw'])
    const before = point(last?.number ?? 0)
    const [restored] = await replica.restore(before, { directory: place.path('out') })
    execFileSync('e2fsck', ['-fn', restored?.path ?? ''], { stdio: 'pipe' })
    const content = Ext4Image.read(restored?.path ?? '', notes)
    expect(content.equals(readFileSync(place.path(`tree/${notes}`)))).toBe(true)
    const { said } = await runHere(['points', place.path('replica')])
    expect(said.join()).toContain('last point before what looks like encryption')
    const dismissed = await runHere(['points', 'dismiss', place.path('replica'), '--json'])
    expect(dismissed.objects).toEqual([{ dismissed: 2 }])
    expect((await replica.points()).every(({ suspicion }) => suspicion === null)).toBe(true)
  }, 120_000)
})

describe('encryption that fills the logs', () => {
  it('is told by the resynchronization that it leads to', async () => {
    const place = new RecoveryPlace()
    try {
      const policy = { recoveryPoints: 8, recoveryPointIntervalSeconds: 60, resyncThresholdPercent: 10 }
      const engine = await place.open({ clock: place.clock })
      place.engine = engine
      const path = place.makeDisk('os.raw', 32 * MIB, 0)
      writeFileSync(path, text(place, 16 * MIB))
      truncateSync(path, 32 * MIB)
      const machine = await place.enable(engine, [path], policy)
      await machine.startInitialReplication()
      place.clock.advance(5 * MINUTE_MS)
      await machine.replicate()
      place.clock.advance(5 * MINUTE_MS)
      for (let at = 0; at < 12 * MIB; at += MIB) await machine.disks[0]?.write(at, place.random.bytes(MIB))
      await expect(machine.replicate()).rejects.toMatchObject({ code: 'INVALID_STATE' })
      expect(machine.state).toBe('WaitingForStartResynchronize')
      await machine.resynchronize()
      await engine.settled()
      const events = (await engine.events()).filter(({ id }) => id === 40060)
      expect(events).toHaveLength(1)
      place.replica = await place.openReplica()
      const last = (await place.replica.churn()).at(-1)
      expect([last?.isResync, last?.isSuspicious, last?.turnedBytes]).toEqual([true, true, 12 * MIB])
      const points = await place.replica.points()
      expect(points.map(({ suspicion }) => suspicion)).toContain('last-before')
    } finally {
      await place.end()
    }
  })
})

function point(number: number): { readonly point: number } {
  return { point: number }
}
