/**
 * The guest itself, on disks that are not ours (a raw file, qemu-nbd, nbdkit): what the scenarios with a tracked disk take
 * for granted is shown here, and that the check of a disk finds what is wrong with it.
 */

import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { skip } from '../scenarios/tools.js'
import { bootGuest, type Guest, type GuestDrive, missingForGuest } from './guest.js'
import { checkStamps, startStamps } from './stamps.js'

const MIB = 1 << 20
const missing = missingForGuest()

let folder: string
let guests: Guest[]
const path = (name: string): string => join(folder, name)

async function boot(...drives: GuestDrive[]): Promise<Guest> {
  const guest = await bootGuest({ drives })
  guests.push(guest)
  return guest
}

function makeDisk(name: string, sizeBytes = 64 * MIB): string {
  writeFileSync(path(name), '')
  truncateSync(path(name), sizeBytes)
  return path(name)
}

beforeEach(() => {
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-guest-test-'))
  guests = []
})

afterEach(async () => {
  await Promise.all(guests.map((guest) => guest.kill()))
  rmSync(folder, { recursive: true, force: true })
})

describe('a guest on a raw file', () => {
  if (missing !== undefined) {
    it('is not there', () => skip('guest', missing))
    return
  }

  it('killed in a write loop leaves a disk that recovers with every synced stamp', async () => {
    const disk = makeDisk('disk.raw')
    const first = await boot({ file: disk })
    await first.run('mkfs.ext4 -q /dev/vda && mkdir -p /mnt/a && mount /dev/vda /mnt/a')
    const load = startStamps(first, '/mnt/a/load')
    await load.advance(100)
    await first.kill()
    copyFileSync(disk, path('copy.raw'))
    const second = await boot({ file: path('copy.raw') })
    await second.run('mkdir -p /mnt/a && mount /dev/vda /mnt/a')
    expect(await checkStamps(second, '/mnt/a/load', load.synced)).toBeGreaterThanOrEqual(100)
    await second.run('umount /mnt/a && e2fsck -fn /dev/vda')
    await second.shutdown()
  })
})
