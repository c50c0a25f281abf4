/**
 * A real Linux on a tracked disk, from outside: it formats, writes, syncs and trims while the disk is copied and cycles run,
 * and whatever the replica shows after a cycle is a disk that a second guest can use, with everything that was synced
 * before that cycle began.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
import type { ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { bootGuest, type Guest, type GuestDrive, missingForGuest } from '../guest/guest.js'
import { ProtectProcess } from '../guest/protect-process.js'
import { checkStamps, type StampLoad, startStamps } from '../guest/stamps.js'
import { skip } from './tools.js'
import { MIB, Workplace } from './workplace.js'

const missing = missingForGuest()
const DISK_BYTES = 128 * MIB
const MOUNT = 'mkdir -p /mnt/vda && mount /dev/vda /mnt/vda'
/** Of the file system for the logs that is to become full. */
const LOG_FOLDER_BYTES = 24 * MIB
/** How often the protecting process is killed under a guest. */
const KILL_COUNT = process.env['SECONDSITE_SLOW'] ? 50 : 3

let place: Workplace
let ends: (() => Promise<void>)[]

beforeEach(() => {
  place = new Workplace()
  ends = []
})

afterEach(async () => {
  for (const end of ends.toReversed()) await end()
  place.remove()
})

async function boot(...drives: GuestDrive[]): Promise<Guest> {
  const guest = await bootGuest({ drives })
  ends.push(() => guest.kill())
  return guest
}

/** A machine with one empty disk, exported, and where a guest finds it. */
async function protectEmptyDisk(): Promise<{ machine: ProtectedMachine; nbd: string }> {
  const disk = place.makeDisk('os.raw', DISK_BYTES, 0)
  const engine = await place.open()
  ends.push(() => engine.close())
  const machine = await place.enable(engine, [disk])
  const served = await machine.exportNbd({ listen: `unix:${place.path('web01.sock')}` })
  return { machine, nbd: served.uri('os.raw') }
}

/** A folder for a file system that is there before us. */
function makeContent(): string {
  mkdirSync(place.path('content'))
  writeFileSync(place.path('content/greeting'), 'hello')
  return place.path('content')
}

async function format(guest: Guest): Promise<void> {
  await guest.run(`mkfs.ext4 -q /dev/vda && ${MOUNT}`)
}

/** Whether a process may mount a file system for itself. */
function canMount(test: string): boolean {
  const { status } = spawnSync('unshare', [
    '--mount',
    '--map-root-user',
    'mount',
    '-t',
    'tmpfs',
    'tmpfs',
    '/tmp',
  ])
  if (status !== 0) skip(test, 'no file system may be mounted here, not even unseen by others')
  return status === 0
}

/** What the replica showed after a cycle, and what was synced when that cycle began. */
interface Point {
  readonly image: string
  readonly atLeast: number
}

async function takePoint(machine: ProtectedMachine, load: StampLoad, name: string): Promise<Point> {
  const atLeast = load.synced
  await machine.replicate()
  copyFileSync(place.path('replica/os.raw.raw'), place.path(name))
  return { image: place.path(name), atLeast }
}

/** Boots a guest on copies of the replica; each must mount, have its stamps, and be clean after the replay of its journal. */
async function expectUsable(points: readonly Point[]): Promise<void> {
  const guest = await boot(...points.map(({ image }) => ({ file: image })))
  for (const [index, { atLeast }] of points.entries()) {
    const name = `vd${String.fromCodePoint(97 + index)}`
    await guest.run(`mkdir -p /mnt/${name} && mount /dev/${name} /mnt/${name}`)
    expect(await checkStamps(guest, `/mnt/${name}/load`, atLeast)).toBeGreaterThanOrEqual(atLeast)
    await guest.run(`umount /mnt/${name} && e2fsck -fn /dev/${name}`)
  }
  await guest.shutdown()
}

/** The replica equals its disk, which a guest has unmounted; so what that guest saw on the disk is on the replica. */
function expectSameAndClean(): void {
  place.expectEqual(['os.raw'])
  const { status, stdout } = spawnSync('e2fsck', ['-fn', place.path('replica/os.raw.raw')], {
    encoding: 'utf8',
  })
  expect(status, stdout).toBe(0)
}

describe('a guest on a tracked disk', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('scenario: a guest on a tracked disk', missing))
    return
  }

  it('killed in the middle of it all leaves replicas that a second guest can use', async () => {
    const { machine, nbd } = await protectEmptyDisk()
    const guest = await boot({ nbd })
    await format(guest)
    const load = startStamps(guest, '/mnt/vda/load')
    await load.advance(20)
    await machine.startInitialReplication()
    const points = [await takePoint(machine, load, 'first')]
    await guest.run('dd if=/dev/urandom of=/mnt/vda/big bs=1M count=16 conv=fsync 2>&1')
    points.push(await takePoint(machine, load, 'second'))
    await guest.run('rm /mnt/vda/big && sync && fstrim /mnt/vda')
    await load.advance(20)
    expect(await machine.verify()).toMatchObject({ equal: true })
    points.push(await takePoint(machine, load, 'third'))
    await load.advance(20)
    await guest.kill()
    points.push(await takePoint(machine, load, 'last'))
    place.expectEqual(['os.raw'])
    await expectUsable(points)
  }, 120_000)

  it('shut down leaves a replica that is clean, and as full of holes as its disk', async () => {
    const { machine, nbd } = await protectEmptyDisk()
    const guest = await boot({ nbd })
    await machine.startInitialReplication()
    await format(guest)
    await guest.run('dd if=/dev/urandom of=/mnt/vda/big bs=1M count=32 conv=fsync 2>&1')
    await machine.replicate()
    const allocatedBytes = (path: string): number => statSync(place.path(path)).blocks * 512
    expect(allocatedBytes('replica/os.raw.raw')).toBeGreaterThan(32 * MIB)
    await guest.run('rm /mnt/vda/big && sync && fstrim /mnt/vda && umount /mnt/vda && e2fsck -fn /dev/vda')
    await guest.shutdown()
    await machine.replicate()
    place.expectEqual(['os.raw'])
    expect(allocatedBytes('os.raw')).toBeLessThan(16 * MIB)
    expect(allocatedBytes('replica/os.raw.raw')).toBeLessThan(allocatedBytes('os.raw') + 4 * MIB)
  }, 120_000)

  it('is put behind the export and taken out again; what it wrote without us is found and sent', async () => {
    const disk = place.makeDisk('os.raw', DISK_BYTES, 0)
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', makeContent(), disk])
    const first = await place.open()
    ends.push(() => first.close())
    const machine = await place.enable(first, [disk])
    await machine.startInitialReplication()
    const served = await machine.exportNbd({ listen: 'tcp:127.0.0.1:0' })
    const behind = await boot({ nbd: served.uri('os.raw') })
    await behind.run(`${MOUNT} && test "$(cat /mnt/vda/greeting)" = hello && rm /mnt/vda/greeting`)
    await behind.shutdown()
    await first.close()

    const without = await boot({ file: disk })
    await without.run(`${MOUNT} && ! test -e /mnt/vda/greeting`)
    const load = startStamps(without, '/mnt/vda/load')
    await load.advance(20)
    const last = await load.stop()
    expect(await checkStamps(without, '/mnt/vda/load', last)).toBe(last)
    await without.shutdown()

    const second = await place.open()
    ends.push(() => second.close())
    const again = second.machine('web01')
    expect((await again.measure()).resyncReason).toBe('DISK_MODIFIED_OFFLINE')
    await again.resynchronize()
    expectSameAndClean()
  }, 120_000)

  it('feels nothing of kill -9 of the protecting process, which then needs no resynchronization', async () => {
    const disk = place.makeDisk('os.raw', DISK_BYTES, 0)
    let protecting = ProtectProcess.start({ folder: place.folder, disks: [disk] })
    ends.push(() => protecting.kill())
    const { uris } = await protecting.ready()
    const guest = await boot({ nbd: uris[0] ?? '', reconnectDelayS: 60 })
    await format(guest)
    const load = startStamps(guest, '/mnt/vda/load')
    for (let round = 0; round < KILL_COUNT; round += 1) {
      await load.advance(1 + place.random.below(20))
      await protecting.kill()
      protecting = ProtectProcess.start({ folder: place.folder, disks: [disk] })
      expect((await protecting.ready()).recovery).toEqual(['process-death'])
    }
    await load.advance(20)
    await protecting.cycled(2)
    const last = await load.stop()
    expect(await checkStamps(guest, '/mnt/vda/load', last)).toBe(last)
    await guest.shutdown()
    expect(await protecting.stop()).toEqual({ state: 'Replicating' })
    expect(protecting.resyncs).toEqual([])
    expectSameAndClean()
  }, 900_000)

  it('feels nothing of a log folder that is full; the regions it wrote to are resynchronized', async () => {
    if (!canMount('scenario: a log folder that is full')) return
    const disk = place.makeDisk('os.raw', DISK_BYTES, 0)
    mkdirSync(place.path('logs'))
    const logs = { directory: place.path('logs'), sizeBytes: LOG_FOLDER_BYTES }
    const protecting = ProtectProcess.start({ folder: place.folder, disks: [disk], logs, isHeld: true })
    ends.push(() => protecting.kill())
    const { uris } = await protecting.ready()
    await protecting.copied()
    const guest = await boot({ nbd: uris[0] ?? '' })
    await format(guest)
    const load = startStamps(guest, '/mnt/vda/load')
    await load.advance(10)
    await guest.run(
      `dd if=/dev/urandom of=/mnt/vda/big bs=1M count=${(2 * LOG_FOLDER_BYTES) / MIB} conv=fsync 2>&1`,
    )
    await load.advance(10)
    protecting.go()
    await protecting.cycled(2)
    expect(protecting.resyncs).toEqual(['LOG_DISK_FULL'])
    const last = await load.stop()
    expect(await checkStamps(guest, '/mnt/vda/load', last)).toBe(last)
    await guest.shutdown()
    expect(await protecting.stop()).toEqual({ state: 'Replicating' })
    expectSameAndClean()
  }, 120_000)
})
