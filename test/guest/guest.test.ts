/**
 * The guest itself, on disks that are not ours (a raw file, qemu-nbd, nbdkit): what the scenarios with a tracked disk take
 * for granted is shown here.
 */

import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { hasTool, skip } from '../scenarios/tools.js'
import { ForeignExport, type ForeignServer } from './foreign-export.js'
import { bootGuest, type Guest, type GuestDrive, missingForGuest } from './guest.js'
import { checkStamps, startStamps } from './stamps.js'

const MIB = 1 << 20
const missing = missingForGuest()

let folder: string
let ends: (() => Promise<void>)[]
const path = (name: string): string => join(folder, name)

async function boot(...drives: GuestDrive[]): Promise<Guest> {
  const guest = await bootGuest({ drives })
  ends.push(() => guest.kill())
  return guest
}

async function serve(server: ForeignServer, disk: string): Promise<ForeignExport> {
  const served = new ForeignExport(server, disk, path(server))
  ends.push(() => served.kill())
  await served.start()
  return served
}

function makeDisk(name: string, sizeBytes = 64 * MIB): string {
  writeFileSync(path(name), '')
  truncateSync(path(name), sizeBytes)
  return path(name)
}

function allocatedBytes(disk: string): number {
  return statSync(disk).blocks * 512
}

/** What e2fsck on the host says of a disk that a guest has left. */
function fsck(disk: string): string {
  const { status, stdout, stderr } = spawnSync('e2fsck', ['-fn', disk], { encoding: 'utf8' })
  return `${status} ${stdout}${stderr}`
}

beforeEach(() => {
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-guest-test-'))
  ends = []
})

afterEach(async () => {
  for (const end of ends.toReversed()) await end()
  rmSync(folder, { recursive: true, force: true })
})

describe('a guest', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest', missing))
    return
  }

  it('killed in a write loop leaves a disk that recovers with every synced stamp', async () => {
    const disk = makeDisk('disk.raw')
    const first = await boot({ file: disk })
    await first.run('mkfs.ext4 -q /dev/vda && mkdir /mnt/a && mount /dev/vda /mnt/a')
    const load = startStamps(first, '/mnt/a/load')
    await load.advance(100)
    await first.kill()

    copyFileSync(disk, path('copy.raw'))
    const second = await boot({ file: path('copy.raw') })
    await second.run(
      'mkdir /mnt/a && mount /dev/vda /mnt/a && dmesg | grep -q "EXT4-fs (vda): recovery complete"',
    )
    const newest = await checkStamps(second, '/mnt/a/load', load.synced)
    await second.run('umount /mnt/a && e2fsck -fn /dev/vda && mount /dev/vda /mnt/a')
    const goesOn = startStamps(second, '/mnt/a/load', newest + 1)
    await goesOn.advance(10)
    const last = await goesOn.stop()
    expect(await checkStamps(second, '/mnt/a/load', last)).toBe(last)
    await second.shutdown()
    expect(fsck(path('copy.raw'))).toMatch(/^0 /)
  }, 120_000)

  it.each(['nbdkit', 'qemu-nbd'] as const)(
    'on an export of %s trims, lives through its death, shuts down',
    async (server) => {
      if (!hasTool(server, `guest: ${server}`)) return
      const disk = makeDisk('disk.raw')
      const served = await serve(server, disk)
      const guest = await boot({ nbd: served.uri, reconnectDelayS: 60 })
      await guest.run(
        'mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda && mkdir /mnt/a && mount /dev/vda /mnt/a',
      )
      await guest.run('dd if=/dev/urandom of=/mnt/a/big bs=1M count=24 conv=fsync')
      const allocatedBytesBefore = allocatedBytes(disk)
      await guest.run('rm /mnt/a/big && sync && fstrim /mnt/a')
      expect(allocatedBytesBefore - allocatedBytes(disk)).toBeGreaterThan(20 * MIB)

      const load = startStamps(guest, '/mnt/a/load')
      await load.advance(10)
      await served.kill()
      await served.start()
      await load.advance(50)
      const last = await load.stop()
      expect(await checkStamps(guest, '/mnt/a/load', last)).toBe(last)
      await guest.shutdown()
      expect(fsck(disk)).toMatch(/^0 /)
    },
  )
})
