/**
 * A real Linux that goes away and comes home again: on its disk, on a test of an older point, on the failover of a chosen
 * point, as a primary over there while replication is turned round under it, and at home at last. At every step its file
 * system is checked, and it holds exactly the files that were synced before the point: none is missing, none is too much.
 */

import { spawnSync } from 'node:child_process'
import { copyFileSync, rmSync } from 'node:fs'
import {
  type Clock,
  Engine,
  failback,
  openReplica,
  type ProtectedMachine,
  type Replica,
  reverseReplication,
  systemClock,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { bootGuest, type Guest, missingForGuest } from '../guest/guest.js'
import { skip } from './tools.js'
import { MIB, Workplace } from './workplace.js'

const missing = missingForGuest()
const DISK = 'os.raw'
const DISK_BYTES = 64 * MIB
/** Longer than a point lives before the next is made. */
const STEP_MS = 60_000

/** The clock of this computer, put forward between cycles, so that each of them becomes a point. */
class AheadClock implements Clock {
  #aheadMs = 0
  readonly sleep = systemClock.sleep
  readonly setTimer = systemClock.setTimer

  nowMs(): number {
    return systemClock.nowMs() + this.#aheadMs
  }

  nowNs(): bigint {
    return BigInt(this.nowMs()) * 1_000_000n
  }

  advance(durationMs: number): void {
    this.#aheadMs += durationMs
  }
}

let place: Workplace
let clock: AheadClock
let ends: (() => Promise<void>)[]

beforeEach(() => {
  place = new Workplace()
  clock = new AheadClock()
  ends = []
})

afterEach(async () => {
  for (const end of ends.toReversed()) await end()
  place.remove()
})

async function openEngine(name: string): Promise<Engine> {
  const engine = await place.open({ clock, stateDirectory: place.path(name) })
  ends.push(() => engine.close())
  return engine
}

async function open(directory: string): Promise<Replica> {
  const replica = await openReplica({ directory: place.path(directory), clock })
  ends.push(() => replica.close())
  return replica
}

const listen = (name: string) => ({ listen: `unix:${place.path(name)}` })

/** A guest with a file system at /mnt/vda; it is made where there is none. */
async function boot(nbd: string, isNew = false): Promise<Guest> {
  const guest = await bootGuest({ drives: [{ nbd, reconnectDelayS: 60 }] })
  ends.push(() => guest.kill())
  if (isNew) await guest.run('mkfs.ext4 -q /dev/vda')
  await guest.run('mkdir -p /mnt/vda && mount /dev/vda /mnt/vda')
  return guest
}

/** Writes a file that holds its own name; it is durable when this resolves. */
async function write(guest: Guest, name: string): Promise<void> {
  await guest.run(`echo ${name} | dd of=/mnt/vda/${name} conv=fsync 2>&1`)
}

/** The guest has exactly these files, each with its content, and its file system is clean once it is unmounted. */
async function expectFiles(guest: Guest, names: readonly string[]): Promise<void> {
  const listed = await guest.run('cd /mnt/vda && for name in *; do [ -f $name ] && cat $name; done; true')
  expect(listed.trim().split('\n').toSorted()).toEqual(names.toSorted())
  await guest.run('umount /mnt/vda && e2fsck -fn /dev/vda && mount /dev/vda /mnt/vda')
}

/** What a disk that nobody has mounted holds: after the replay of its journal it is clean and has exactly these files. */
function expectOnDisk(path: string, names: readonly string[]): void {
  const copy = place.path('checked.raw')
  copyFileSync(path, copy)
  const replayed = run('e2fsck', '-fy', copy)
  // 1: something was put right, as the free counts always are after a replay.
  expect([0, 1], replayed.text).toContain(replayed.status)
  expect(run('e2fsck', '-fn', copy)).toMatchObject({ status: 0 })
  const listed = run('debugfs', '-R', 'ls -p /', copy).text
  const found = [...listed.matchAll(/^\/\d+\/10\d{4}\/\d+\/\d+\/([^/]+)\//gm)].map((match) => match[1] ?? '')
  expect(found.toSorted()).toEqual(names.toSorted())
  for (const name of names) expect(run('debugfs', '-R', `cat /${name}`, copy).text).toContain(name)
  rmSync(copy)
}

function run(program: string, ...args: string[]): { status: number | null; text: string } {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' })
  return { status, text: `${stdout}${stderr}` }
}

/** One cycle, a while after what was before. */
async function cycle(machine: ProtectedMachine): Promise<void> {
  clock.advance(STEP_MS)
  await machine.replicate()
}

async function replicating(machine: ProtectedMachine): Promise<void> {
  for (let look = 0; machine.state !== 'Replicating'; look += 1) {
    if (look > 6000) throw new Error(`still ${machine.state}`)
    await systemClock.sleep(10)
  }
}

describe('a guest', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('guest: there and home again', missing))
    return
  }

  it('goes away at a chosen point and comes home again, with what was synced and a clean file system', async () => {
    // At home: three cuts, each with one file more.
    const home = await openEngine('state')
    const policy = {
      recoveryPoints: 24,
      recoveryPointIntervalSeconds: 30,
      replicationFrequencySeconds: 86_400,
    }
    const machine = await place.enable(home, [place.makeDisk(DISK, DISK_BYTES, 0)], policy)
    const served = await machine.exportNbd(listen('home.sock'))
    const atHome = await boot(served.uri(DISK), true)
    await write(atHome, 'one')
    await machine.startInitialReplication()
    for (const name of ['two', 'three', 'four']) {
      await write(atHome, name)
      await cycle(machine)
    }
    const replica = await open('replica')
    const [withTwo, withThree] = (await replica.points()).slice(-3)

    // A test of an older point, while the guest at home writes on and is replicated.
    const test = await replica.startTestFailover({ point: { point: withTwo?.number ?? -1 } })
    const inTest = await boot((await test.exportNbd(listen('test.sock'))).uri(DISK))
    await expectFiles(inTest, ['one', 'two'])
    await write(inTest, 'tested')
    await write(atHome, 'five')
    await cycle(machine)
    await expectFiles(inTest, ['one', 'two', 'tested'])
    expectOnDisk(place.path(`replica/${DISK}.raw`), ['one', 'two', 'three', 'four', 'five'])
    await inTest.shutdown()
    await test.stop()

    // The site is lost, with a file that was synced there and never sent.
    await write(atHome, 'unsent')
    await atHome.kill()
    await home.abandon()
    const failover = await replica.startFailover({ point: { point: withThree?.number ?? -1 } })
    const away = await boot((await failover.exportNbd(listen('away.sock'))).uri(DISK))
    await expectFiles(away, ['one', 'two', 'three'])
    await write(away, 'six')
    await replica.commitFailover()
    await write(away, 'seven')

    // Home is back; replication is turned round under the guest, which waits for its export meanwhile.
    const homeAgain = await openEngine('state')
    const awayEngine = await openEngine('away-state')
    const request = {
      engine: awayEngine,
      former: { engine: homeAgain },
      directory: place.path('home-store'),
      policy,
    }
    await expect(reverseReplication(replica, request)).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
    const reversed = await reverseReplication(replica, { ...request, loser: 'primary' })
    expect(reversed.candidateBytes).toBeLessThan(DISK_BYTES / 2)
    expect(reversed.lostLogs.length).toBeGreaterThan(0)
    await reversed.machine.exportNbd(listen('away.sock'))
    await write(away, 'eight')
    const trip = { replica, away: awayEngine, home: homeAgain, directory: place.path('home-store') }
    const copied = await failback({ ...trip, until: 'synchronize' })
    expect(copied.done).toEqual(['synchronize'])
    expectOnDisk(place.path(DISK), ['one', 'two', 'three', 'six', 'seven', 'eight'])
    await write(away, 'nine')
    const there = ['one', 'two', 'three', 'six', 'seven', 'eight', 'nine']
    await expectFiles(away, there)
    await expect(failback(trip)).rejects.toMatchObject({ code: 'MACHINE_RUNNING' })
    await away.shutdown()

    // Home, with nothing lost, and outward again, under the guest as before.
    const arrived = await failback({ ...trip, until: 'finalize' })
    expect(arrived).toMatchObject({ done: ['finalize'], next: 'return', provenBytes: DISK_BYTES })
    const homeReplica = await open('home-store')
    const homeward = await homeReplica.failover()
    if (homeward === undefined) throw new Error('the disks are not at home')
    const back = await boot((await homeward.exportNbd(listen('home.sock'))).uri(DISK))
    await expectFiles(back, there)
    await write(back, 'ten')
    await homeReplica.commitFailover()
    const outward = await reverseReplication(homeReplica, {
      engine: homeAgain,
      former: { engine: awayEngine },
      directory: place.path('replica'),
      policy,
    })
    await outward.machine.exportNbd(listen('home.sock'))
    await write(back, 'eleven')
    await replicating(outward.machine)
    await cycle(outward.machine)
    expectOnDisk(place.path(`replica/${DISK}.raw`), [...there, 'ten', 'eleven'])
    await expectFiles(back, [...there, 'ten', 'eleven'])
    await back.shutdown()
    await cycle(outward.machine)
    place.expectEqual([DISK])
    expectOnDisk(place.path(DISK), [...there, 'ten', 'eleven'])
  }, 180_000)
})
