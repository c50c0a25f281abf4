/**
 * A real machine started by a failover: QEMU boots from the export of the replica, in a test and in earnest, and outlives the
 * process that exports its disks.
 */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { Engine, type FailoverSettingsInput, openReplica, type Replica } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { main } from '../scenarios/cli-command.js'
import { skip } from '../scenarios/tools.js'
import { GuestChannel, type GuestCommand, within } from './channel.js'
import { initramfs, missingForGuest } from './initramfs.js'
import { findKernel } from './kernel.js'

const MIB = 1 << 20
const BOOT_LIMIT_MS = 120_000
const missing = missingForGuest()
const COMMAND_LINE =
  'console=ttyS0 quiet panic=-1 random.trust_cpu=on nokaslr mitigations=off cryptomgr.notests no_timer_check lpj=4000000'

let folder: string
let server: Server
let replica: Replica | undefined
let children: ChildProcess[]
const path = (name: string): string => join(folder, name)

beforeEach(async () => {
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'secondsite-runner-'))
  children = []
  server = createServer().listen(path('control'))
  await once(server, 'listening')
})

afterEach(async () => {
  for (const child of children) child.kill('SIGKILL')
  await replica?.close()
  replica = undefined
  if (existsSync(path('replica'))) {
    await using left = await openReplica({ directory: path('replica') })
    for (const { id, endedMs } of await left.testFailovers())
      if (endedMs === null) await left.stopTestFailover(id)
    if (left.machineRun()) await left.cancelFailover()
  }
  server.close()
  rmSync(folder, { recursive: true, force: true })
})

/** The guest of these tests: its kernel and root file system from outside, its data disk from the export. */
function settings(): FailoverSettingsInput {
  const kernel = findKernel()
  if (kernel === undefined) throw new Error('no kernel')
  writeFileSync(path('initramfs'), initramfs(kernel, false))
  const control = [
    '-chardev',
    `socket,id=control,path=${path('control')}`,
    '-device',
    'virtserialport,chardev=control',
  ]
  return {
    memoryMiB: 192,
    stopLimitSeconds: 1,
    networkAdapters: [
      { testAddresses: { ipv4Address: '192.0.2.9' }, failoverAddresses: { ipv4Address: '192.0.2.10' } },
    ],
    runner: {
      method: 'qemu',
      machine: 'q35,usb=off,vmport=off',
      accelerator: 'tcg',
      processor: 'qemu64,+rdrand',
      kernel: kernel.imagePath,
      initrd: path('initramfs'),
      kernelCommandLine: COMMAND_LINE,
      arguments: ['-device', 'virtio-serial-pci', ...control],
    },
  }
}

/** Protects a disk with a file system on it, until the replica holds it; then its primary is gone. */
async function protectedOnce(): Promise<void> {
  mkdirSync(path('files'))
  writeFileSync(path('files/greeting'), 'from the primary')
  writeFileSync(path('os.raw'), '')
  truncateSync(path('os.raw'), 16 * MIB)
  execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', path('files'), path('os.raw')])
  await using engine = await Engine.open({ stateDirectory: path('state') })
  const machine = await engine.enable({
    name: 'web01',
    disks: [path('os.raw')],
    replica: { directory: path('replica') },
    policy: { failoverSettings: settings() },
  })
  await machine.startInitialReplication()
  await machine.replicate()
}

/** The guest that connects next. */
async function guest(): Promise<GuestChannel> {
  const [socket] = (await within(
    once(server, 'connection') as Promise<[Socket]>,
    BOOT_LIMIT_MS,
    () => 'QEMU at the control socket',
  )) as [Socket]
  const channel = new GuestChannel(socket)
  await within(channel.ready(), BOOT_LIMIT_MS, () => 'a guest that takes commands')
  return channel
}

async function say(channel: GuestChannel, text: string): Promise<string> {
  const command: GuestCommand = channel.start(text)
  const code = await command.exitCode(60_000)
  if (code !== 0) throw new Error(`exit code ${code} of ${command.describe()}`)
  return command.output
}

const MOUNT = 'mkdir -p /mnt/a && mount /dev/vda /mnt/a'
const HANDOVER = 'cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.secondsite/failover/raw'

function isAlive(processId: number): boolean {
  try {
    return readFileSync(`/proc/${processId}/stat`, 'utf8').split(') ').at(-1)?.[0] !== 'Z'
  } catch {
    return false
  }
}

interface Said {
  readonly run: { readonly processId: number; readonly name: string }
}

/** Starts a command that runs a machine, and reads what it says of it. */
async function commanded(...args: string[]): Promise<Said & { readonly child: ChildProcess }> {
  const child = spawn(process.execPath, [main, ...args, '--run', '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  children.push(child)
  for await (const line of createInterface({ input: child.stdout as Readable })) {
    const said = JSON.parse(line) as Said
    if (said.run) return { ...said, child }
  }
  throw new Error('ended without a machine')
}

describe('a machine that QEMU starts', () => {
  if (missing !== undefined) {
    it('cannot be had here', () => skip('runner', missing))
    return
  }

  it('boots in a test and writes beside the replica, then in earnest, and what it wrote there stays', async () => {
    await protectedOnce()
    replica = await openReplica({ directory: path('replica') })

    const test = await replica.startTestFailover()
    const [testGuest, testRun] = await Promise.all([guest(), test.run()])
    expect(JSON.parse(await say(testGuest, HANDOVER))).toMatchObject({
      name: 'web01 - Test',
      networkAdapters: [{ network: 'isolated', addresses: { ipv4Address: '192.0.2.9' } }],
    })
    await say(
      testGuest,
      `${MOUNT} && grep -q 'from the primary' /mnt/a/greeting && echo test >/mnt/a/mine && sync`,
    )
    await test.stop()
    expect(isAlive(testRun.info.processId ?? 0)).toBe(false)
    expect(existsSync(testRun.info.folder)).toBe(false)

    const failover = await replica.startFailover()
    const [first, run] = await Promise.all([guest(), failover.run()])
    expect(JSON.parse(await say(first, HANDOVER))).toMatchObject({
      name: 'web01',
      kind: 'Unplanned',
      networkAdapters: [{ network: 'none', addresses: { ipv4Address: '192.0.2.10' } }],
    })
    await say(first, `${MOUNT} && [ ! -e /mnt/a/mine ] && echo earnest >/mnt/a/mine && umount /mnt/a`)
    first.start('poweroff -f')
    await within(run.ended(), 60_000, () => 'the end of a machine that has shut itself down')
    await failover.stopRun()
    await replica.commitFailover()
    await replica.closeFailover()
    const shown = execFileSync('debugfs', ['-R', 'cat /mine', path('replica/os.raw.raw')], {
      encoding: 'utf8',
    })
    expect(shown).toBe('earnest\n')
  }, 300_000)

  it.each(['virtio', 'scsi', 'sata'] as const)(
    'takes arguments for disks on %s, every kind of network, and a name with a comma',
    async (diskBus) => {
      await protectedOnce()
      replica = await openReplica({ directory: path('replica') })
      const networks = ['none', 'isolated', 'user'] as const
      await replica.setFailoverSettings({
        name: 'shop, the first',
        memoryMiB: 64,
        networkAdapters: networks.map((testNetwork) => ({ testNetwork })),
        runner: { method: 'qemu', accelerator: 'tcg', diskBus, arguments: ['-S'] },
      })
      await using test = await replica.startTestFailover()
      const { info } = await test.run()
      expect(isAlive(info.processId ?? 0)).toBe(true)
      const words = readFileSync(`/proc/${info.processId}/cmdline`, 'utf8').split('\0')
      expect(words[words.indexOf('-name') + 1]).toBe('shop,, the first - Test')
      expect(readFileSync(join(info.folder, 'qemu.log'), 'utf8')).not.toMatch(/error|could not/i)
      await test.stop()
      expect(isAlive(info.processId ?? 0)).toBe(false)
    },
    120_000,
  )

  it('that QEMU refuses says why, and leaves nothing', async () => {
    await protectedOnce()
    replica = await openReplica({ directory: path('replica') })
    await replica.setFailoverSettings({ runner: { method: 'qemu', machine: 'no-such-machine' } })
    await using test = await replica.startTestFailover()
    await expect(test.run()).rejects.toMatchObject({
      code: 'RUNNER_FAILED',
      details: { output: expect.stringContaining('machine type') },
    })
    expect(readdirSync(path('replica/runs'))).toEqual([])
  })

  it('goes on when the process that exports its disks is killed and another takes it up', async () => {
    await protectedOnce()
    const begun = guest()
    const first = await commanded('failover', 'start', path('replica'), '--yes')
    const channel = await begun
    await say(channel, `${MOUNT} && echo before >/mnt/a/mine && sync`)
    const killed = once(first.child, 'exit')
    first.child.kill('SIGKILL')
    await killed
    const write = channel.start(
      'echo after >>/mnt/a/mine && sync && echo 3 >/proc/sys/vm/drop_caches && cat /mnt/a/mine',
    )
    const second = await commanded('failover', 'serve', path('replica'))
    expect(second.run).toEqual(first.run)
    expect(await write.exitCode(60_000)).toBe(0)
    expect(write.lines).toEqual(['before', 'after'])
    const ended = once(second.child, 'exit')
    second.child.kill('SIGTERM')
    expect((await ended)[0]).toBe(0)
    expect(isAlive(first.run.processId)).toBe(false)
  }, 300_000)
})
