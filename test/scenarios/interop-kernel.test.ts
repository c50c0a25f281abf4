/**
 * The kernel's own NBD client: a guest attaches the export over TCP, with several connections, by its kernel instead of its
 * QEMU. It formats, writes, trims and detaches, while the disk is copied and cycles run.
 */

import { spawnSync } from 'node:child_process'
import type { Engine, NbdExport, ProtectedMachine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { bootGuest, type Guest, HOST_ADDRESS, missingForNetwork } from '../guest/guest.js'
import { checkStamps, startStamps } from '../guest/stamps.js'
import { skip } from './tools.js'
import { MIB, Workplace } from './workplace.js'

const missing = missingForNetwork()
const DISK_BYTES = 128 * MIB
const CONNECTION_COUNT = 4

let place: Workplace
let engine: Engine
let machine: ProtectedMachine
let nbd: NbdExport
let guest: Guest | undefined

beforeEach(async () => {
  place = new Workplace()
  engine = await place.open()
  machine = await place.enable(engine, [place.makeDisk('os.raw', DISK_BYTES, 0)])
  nbd = await machine.exportNbd({ listen: 'tcp:127.0.0.1:0' })
})

afterEach(async () => {
  await guest?.kill()
  await engine.close()
  place.remove()
})

async function attach(options: string): Promise<Guest> {
  const { port } = new URL(nbd.uri('os.raw'))
  guest = await bootGuest({ drives: [], hasNetwork: true })
  await guest.run('ifconfig eth0 10.0.2.15 up')
  await guest.run(`nbd-client ${HOST_ADDRESS} ${port} /dev/nbd0 -N os.raw ${options}`)
  return guest
}

describe("the kernel's NBD client", () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip("interop: the kernel's NBD client", missing))
    return
  }

  it('has a file system on a tracked disk, over several connections', async () => {
    const inside = await attach(`-C ${CONNECTION_COUNT}`)
    expect(nbd.counters().connectionCount).toBe(CONNECTION_COUNT)
    expect(await inside.run('cat /sys/block/nbd0/size')).toContain(`${DISK_BYTES / 512}`)
    await inside.run('mkfs.ext4 -q /dev/nbd0 && mkdir /mnt/a && mount /dev/nbd0 /mnt/a')
    const load = startStamps(inside, '/mnt/a/load')
    await load.advance(10)
    await machine.startInitialReplication()
    await inside.run('dd if=/dev/urandom of=/mnt/a/big bs=1M count=24 conv=fsync 2>&1')
    await machine.replicate()
    await inside.run('rm /mnt/a/big && sync && fstrim /mnt/a')
    await load.advance(10)
    await machine.replicate()
    const last = await load.stop()
    expect(await checkStamps(inside, '/mnt/a/load', last)).toBe(last)
    await inside.run('umount /mnt/a && e2fsck -fn /dev/nbd0 && nbd-client -d /dev/nbd0')
    await expect.poll(() => nbd.counters().connectionCount, { timeout: 60_000 }).toBe(0)
    await inside.shutdown()
    await machine.replicate()
    expect(nbd.counters()).toMatchObject({ errorCount: 0, breachCount: 0 })
    place.expectEqual(['os.raw'])
    const { status, stdout } = spawnSync('e2fsck', ['-fn', place.path('replica/os.raw.raw')])
    expect(status, `${stdout}`).toBe(0)
  }, 300_000)
})
