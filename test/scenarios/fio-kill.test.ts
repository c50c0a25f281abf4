/**
 * fio writes, with a checksum in every block, while the process that protects its disk is killed again and again.
 *
 * fio itself cannot wait for a server that has gone away; a qemu-nbd between the two can, and does what the QEMU of a guest
 * does: it comes again and repeats what was not answered. So fio must feel nothing, and every block that it ever was told is
 * written must be there when it reads it back.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, statSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ProtectProcess } from '../guest/protect-process.js'
import { client } from './clients.js'
import { missingTool, skip } from './tools.js'
import { MIB, Workplace } from './workplace.js'

const missing = missingTool('fio', 'qemu-nbd')
const SEED = 20_261_121
const DISK_BYTES = 64 * MIB
const LOAD_BYTES = 16 * MIB
/** Of fio, so that one run of it lasts for two seconds wherever it runs. */
const RATE_BYTES_PER_SECOND = 8 * MIB
/** A kill comes at most so late after the first write. */
const KILL_DELAY_MS_MAX = 1500
const KILL_COUNT = process.env['SECONDSITE_SLOW'] ? 50 : 3
const LOAD = ['--bs=4k', '--iodepth=16', `--size=${LOAD_BYTES}`, '--verify_fatal=1', '--thread']
/** One round after the other takes the next: fio tells a block of an earlier round by the kind of its checksum alone. */
const CHECKSUMS = ['crc32c', 'xxhash', 'md5'] as const

let place: Workplace
let protecting: ProtectProcess
let proxy: ChildProcess | undefined

beforeEach(async () => {
  place = new Workplace(SEED)
  place.makeDisk('os.raw', DISK_BYTES, 8 * MIB)
  await protect()
  await protecting.copied()
})

afterEach(async () => {
  await end(proxy)
  await protecting.kill()
  place.remove()
})

async function end(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}

/** Starts the protecting process; returns how it found the disks. */
async function protect(): Promise<readonly string[]> {
  protecting = ProtectProcess.start({ folder: place.folder, disks: [place.path('os.raw')] })
  return (await protecting.ready()).recovery
}

async function killAndProtectAgain(): Promise<void> {
  await protecting.kill()
  expect(await protect()).toEqual(['process-death'])
}

/** Starts a server that passes requests on to ours, and waits for ours when it is gone; returns its address. */
async function startProxy(): Promise<string> {
  const socket = place.path('proxy.sock')
  const pidFile = place.path('proxy.pid')
  const inner = `server.type=unix,server.path=${place.path('web01.sock')},export=os.raw`
  const source = `driver=raw,file.driver=nbd,file.${inner.replaceAll(',', ',file.')},file.reconnect-delay=600`
  const options = [
    '--persistent',
    '--shared=4',
    '--cache=none',
    `--socket=${socket}`,
    `--pid-file=${pidFile}`,
  ]
  proxy = spawn('qemu-nbd', [...options, '--image-opts', source], { stdio: ['ignore', 'inherit', 'inherit'] })
  await expect.poll(() => existsSync(pidFile), { timeout: 60_000 }).toBe(true)
  return `nbd+unix:///?socket=${socket}`
}

/** The load of a round: every block once, in random order. */
function fio(round: number, ...more: string[]): Promise<string> {
  const kind = [`--randseed=${SEED + round}`, `--verify=${CHECKSUMS[round % CHECKSUMS.length]}`]
  const job = ['--name=load', '--rw=randwrite', ...LOAD, ...kind, ...more]
  return client('fio', '--output-format=terse', `--aux-path=${place.folder}`, ...job)
}

/** Writes the load of a round and then reads it back. */
function writeAndVerify(uri: string, round: number): Promise<string> {
  const speed = ['--fsync=64', `--rate=,${RATE_BYTES_PER_SECOND}`]
  return fio(round, '--ioengine=nbd', `--uri=${uri}`, ...speed)
}

function lastChangeMs(): number {
  return statSync(place.path('os.raw')).mtimeMs
}

/** After two cycles begun later than the last write. */
async function expectReplicaEqual(): Promise<void> {
  await protecting.cyclesFromNow(2)
  place.expectEqual(['os.raw'])
}

describe('fio with its checksums', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('scenario: fio across kills', missing))
    return
  }

  it('finds every block it wrote although the protecting process was killed meanwhile', async () => {
    const uri = await startProxy()
    let killCount = 0
    let round = 0
    while (killCount < KILL_COUNT) {
      round += 1
      let isWriting = true
      const changedMs = lastChangeMs()
      const load = writeAndVerify(uri, round).finally(() => {
        isWriting = false
      })
      load.catch(() => undefined)
      await expect.poll(lastChangeMs, { timeout: 60_000 }).toBeGreaterThan(changedMs)
      await delay(place.random.below(KILL_DELAY_MS_MAX))
      // On a machine so busy that fio is done already, this kill does not count.
      if (isWriting) killCount += 1
      await killAndProtectAgain()
      await load
      await expectReplicaEqual()
      expect(protecting.resyncs).toEqual([])
    }
    expect(await protecting.stop()).toEqual({ state: 'Replicating' })
    await fio(round, `--filename=${place.path('replica/os.raw.raw')}`, '--verify_only')
  }, 1_800_000)
})
