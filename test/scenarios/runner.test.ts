/**
 * Machines that are started from a failover, by commands and by libvirt (a stand-in for virsh that keeps domains as files), and what
 * becomes of them when processes die. The same was done once with libvirt 9.0 itself.
 * Machines by QEMU: `test/guest/runner.test.ts`.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { type FailoverSettingsInput, openReplica, reverseReplication, systemClock } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { main, runHere } from './cli-command.js'
import { DISKS, RecoveryPlace } from './recovery-oracle.js'
import { hasTool } from './tools.js'
import { KIB } from './workplace.js'

const KEEP_RUNNING = 'echo $$ >"$SECONDSITE_RUN_FOLDER/pid"; exec sleep 600'

let place: RecoveryPlace
let folder: string
let children: ChildProcess[]
const searchPath = process.env['PATH']

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4 }, systemClock)
  await place.machine.replicate()
  folder = place.path('replica')
  children = []
})

afterEach(async () => {
  for (const child of children) await end(child, 'SIGKILL')
  const replica = await openReplica({ directory: folder })
  for (const { id, endedMs } of await replica.testFailovers())
    if (endedMs === null) await replica.stopTestFailover(id)
  await replica.close()
  await place.end()
  process.env['PATH'] = searchPath
  delete process.env['FAKE_VIRSH']
})

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode
  const ended = once(child, 'exit')
  child.kill(signal)
  return (await ended)[0] as number | null
}

async function settings(given: FailoverSettingsInput): Promise<void> {
  await place.replica.setFailoverSettings({ stopLimitSeconds: 1, ...given })
}

/** A machine that is a process, for tests that end it. */
function machineOf(script = KEEP_RUNNING): FailoverSettingsInput {
  return { runner: { method: 'command', start: ['/bin/sh', '-c', script], isMachine: true } }
}

interface Said {
  readonly test?: { readonly id: string }
  readonly run: { readonly processId: number; readonly folder: string; readonly address: string }
}

/** Starts a command that runs a machine, and reads what it says of it. */
async function commanded(...args: string[]): Promise<Said & { readonly child: ChildProcess }> {
  const child = spawn(process.execPath, [main, ...args, '--run', '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  children.push(child)
  let errors = ''
  child.stderr?.on('data', (piece: Buffer) => (errors += String(piece)))
  for await (const line of createInterface({ input: child.stdout as Readable })) {
    const said = JSON.parse(line) as Said
    if (said.run) return { ...said, child }
  }
  throw new Error(`ended with: ${errors}`)
}

function isAlive(processId: number): boolean {
  try {
    return readFileSync(`/proc/${processId}/stat`, 'utf8').split(') ').at(-1)?.[0] !== 'Z'
  } catch {
    return false
  }
}

const runs = (): string[] => (existsSync(`${folder}/runs`) ? readdirSync(`${folder}/runs`) : [])

describe('a machine that a command starts', () => {
  it('gets all that is known, on its standard input and as variables', async () => {
    const out = place.path('told')
    const note = (action: string): string[] => [
      '/bin/sh',
      '-c',
      `cat >${out}.${action}; env >${out}.${action}.env`,
    ]
    await settings({
      memoryMiB: 300,
      networkAdapters: [{ testAddresses: { ipv4Address: '192.0.2.9' } }],
      runner: { method: 'command', start: note('start'), stop: note('stop') },
    })
    await using test = await place.replica.startTestFailover()
    const { info } = await test.run()
    const told = JSON.parse(readFileSync(`${out}.start`, 'utf8'))
    expect(told).toMatchObject({
      kind: 'Test',
      machine: 'web01',
      name: 'web01 - Test',
      memoryMiB: 300,
      replica: folder,
    })
    expect(told.disks.map(({ name }: { name: string }) => name).toSorted()).toEqual([...DISKS].toSorted())
    expect(readFileSync(`${out}.start.env`, 'utf8')).toContain(
      'SECONDSITE_ADAPTER_0_IPV4_ADDRESS=192.0.2.9\n',
    )
    expect(existsSync(info.address.slice('unix:'.length))).toBe(true)
    await test.stop()
    expect(JSON.parse(readFileSync(`${out}.stop`, 'utf8'))).toEqual(told)
    expect(readFileSync(`${out}.stop.env`, 'utf8')).toContain('SECONDSITE_STOP=off\n')
    expect(runs()).toEqual([])
  })

  it('that cannot be started leaves nothing, and says why', async () => {
    await settings({
      runner: { method: 'command', start: ['/bin/sh', '-c', 'echo no room; exit 7'], stop: ['/bin/true'] },
    })
    await using test = await place.replica.startTestFailover()
    await expect(test.run()).rejects.toMatchObject({
      code: 'RUNNER_FAILED',
      details: { exitCode: 7, output: 'no room' },
    })
    expect(runs()).toEqual([])
    await settings({ runner: { method: 'command', start: ['/no/such/program'], isMachine: true } })
    await expect(test.run()).rejects.toMatchObject({ code: 'RUNNER_NOT_FOUND' })
    await settings(machineOf())
    expect((await test.run()).info.processId).toBeGreaterThan(0)
  })

  it('that ends by itself ends what waits for it', async () => {
    await settings(machineOf('exit 0'))
    await using test = await place.replica.startTestFailover()
    const machine = await test.run()
    await machine.ended()
  })

  it('that does not end is known, and can be stopped again', async () => {
    const script = place.path('stop.sh')
    writeFileSync(script, 'exit 1\n')
    const runner = { method: 'command', start: ['/bin/true'], stop: ['/bin/sh', script] } as const
    await settings({ runner })
    const test = await place.replica.startTestFailover()
    await test.run()
    await expect(test.stop()).rejects.toMatchObject({ code: 'RUNNER_STOP_FAILED' })
    expect(await place.replica.testFailovers()).toMatchObject([
      { endedMs: null, isHeld: false, run: { name: 'web01 - Test' } },
    ])
    writeFileSync(script, 'exit 0\n')
    await place.replica.stopTestFailover(test.id)
    expect((await place.replica.testFailovers())[0]?.endedMs).not.toBeNull()
    expect(runs()).toEqual([])
  })
})

describe('a test failover with a machine', () => {
  it('ends with the machine when another process stops it', async () => {
    await settings(machineOf())
    const { child, test, run: machine } = await commanded('test-failover', 'start', folder)
    expect(isAlive(machine.processId)).toBe(true)
    expect((await runHere(['test-failover', 'list', folder])).said.join()).toContain('runs')
    const ended = once(child, 'exit')
    expect((await runHere(['test-failover', 'stop', folder, test?.id ?? ''])).exitCode).toBe(0)
    expect((await ended)[0]).toBe(0)
    expect([isAlive(machine.processId), runs()]).toEqual([false, []])
    expect(existsSync(`${folder}/tests/${test?.id}`)).toBe(false)
  })

  it('whose process was killed is stopped by the next, with its machine', async () => {
    await settings(machineOf())
    const { child, test, run: machine } = await commanded('test-failover', 'start', folder)
    await end(child, 'SIGKILL')
    expect(isAlive(machine.processId)).toBe(true)
    expect((await runHere(['test-failover', 'list', folder])).said.join()).toContain(
      'left by a process that died',
    )
    expect((await runHere(['test-failover', 'stop', folder, test?.id ?? ''])).exitCode).toBe(0)
    expect([isAlive(machine.processId), runs()]).toEqual([false, []])
  })

  it('whose process was killed goes by itself once its lifetime has passed: at the next opening, or with the next cycle', async () => {
    await settings(machineOf())
    for (const next of [
      () => openReplica({ directory: folder }).then((one) => one.close()),
      () => place.machine.replicate(),
    ]) {
      const {
        child,
        test,
        run: machine,
      } = await commanded('test-failover', 'start', folder, '--lifetime', '1h')
      await end(child, 'SIGKILL')
      await next()
      await place.engine.settled()
      const { db } = place.replica.context.store
      const found = db
        .selectFrom('testFailovers')
        .selectAll()
        .where('testId', '=', test?.id ?? '')
      expect((await found.executeTakeFirst())?.endedMs).toBeNull()
      await db
        .updateTable('testFailovers')
        .set({ endsMs: 1 })
        .where('testId', '=', test?.id ?? '')
        .execute()
      await next()
      await place.engine.settled()
      expect((await found.executeTakeFirst())?.endedMs).not.toBeNull()
      expect([isAlive(machine.processId), runs()]).toEqual([false, []])
    }
  })

  it('that was killed between the start and the record of its machine is found all the same', async () => {
    await settings(machineOf())
    const { child, test, run: machine } = await commanded('test-failover', 'start', folder)
    await end(child, 'SIGKILL')
    const record = `${machine.folder}/run.json`
    writeFileSync(record, JSON.stringify({ ...JSON.parse(readFileSync(record, 'utf8')), process: null }))
    expect((await runHere(['test-failover', 'stop', folder, test?.id ?? ''])).exitCode).toBe(0)
    await expect.poll(() => isAlive(machine.processId), { timeout: 30_000 }).toBe(false)
  })
})

describe('a failover with a machine', () => {
  it('whose process was killed leaves the machine running; the next takes it up, and shuts it down in order', async () => {
    await place.engine.close()
    await settings(machineOf())
    const first = await commanded('failover', 'start', folder, '--yes')
    await end(first.child, 'SIGKILL')
    expect(isAlive(first.run.processId)).toBe(true)
    const second = await commanded('failover', 'serve', folder)
    expect(second.run).toEqual(first.run)
    expect(existsSync(second.run.address.slice('unix:'.length))).toBe(true)
    expect(await end(second.child, 'SIGTERM')).toBe(0)
    expect([isAlive(first.run.processId), runs()]).toEqual([false, []])
  })

  it('that is cancelled after its process was killed switches the machine off', async () => {
    await place.engine.close()
    await settings(machineOf())
    const { child, run: machine } = await commanded('failover', 'start', folder, '--yes')
    await end(child, 'SIGKILL')
    expect((await runHere(['failover', 'cancel', folder, '--yes'])).exitCode).toBe(0)
    expect([isAlive(machine.processId), runs()]).toEqual([false, []])
  })

  it('whose machine a killed process has left is reversed without it', async () => {
    await place.engine.close()
    await settings(machineOf())
    const { child, run: machine } = await commanded('failover', 'start', folder, '--yes')
    await end(child, 'SIGKILL')
    const ways = [
      '--state',
      place.path('away'),
      '--home',
      place.path('home'),
      '--former-state',
      place.path('state'),
    ]
    expect((await runHere(['reverse', folder, ...ways, '--yes'])).exitCode).toBe(0)
    expect([isAlive(machine.processId), runs()]).toEqual([false, []])
  })

  it('is shut down before a reversal decides what goes home, so its last writes do, too', async () => {
    const write = 'exec qemu-io -f raw -c "write -P 7 256k 64k" "$SECONDSITE_DISK_0_URI" >&2'
    await settings({ runner: { method: 'command', start: ['/bin/true'], stop: ['/bin/sh', '-c', write] } })
    const failover = await place.replica.startFailover({ fencePrimary: true })
    await failover.run()
    const [{ name = '' } = {}] = failover.disks
    await using away = await place.open({ stateDirectory: place.path('away') })
    const former = { engine: place.engine }
    const { machine } = await reverseReplication(place.replica, {
      engine: away,
      former,
      directory: place.path('home'),
    })
    await expect.poll(() => machine.state, { timeout: 20_000 }).toBe('Replicating')
    await machine.replicate()
    const home = readFileSync(place.path(name))
    expect(home.subarray(256 * KIB, 320 * KIB).every((byte) => byte === 7)).toBe(true)
  })

  it('needs to be told where its disks go', async () => {
    const refused = await runHere(['failover', 'start', folder, '--yes'])
    expect([refused.exitCode, refused.failures[0]?.message]).toEqual([2, expect.stringContaining('--run')])
    expect((await runHere(['test-failover', 'start', folder])).exitCode).toBe(2)
  })
})

describe('a machine that libvirt starts', () => {
  /** As long as those that virsh prints. */
  const comment = `<!-- ${'x'.repeat(20_000)} -->`
  const domainXml = `<domain type='kvm' id='3'>${comment}<name>web01</name><uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
    <memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
    <disk type='file' device='disk'><source file='/srv/os.raw'/><target dev='vda' bus='virtio'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/data.raw'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/srv/a.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:aa:bb:01'/><source bridge='br0'/><model type='virtio'/></interface>
    <channel type='unix'><source mode='bind' path='/run/a'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' autoport='no'/>
  </devices></domain>`
  const libvirt = (name: string): FailoverSettingsInput => {
    const uri = 'test:///default'
    return { name, runner: { method: 'libvirt', uri, domainXml } }
  }
  let domains: string

  beforeEach(() => {
    domains = place.path('domains')
    const bin = place.path('bin')
    for (const made of [domains, bin]) mkdirSync(made)
    copyFileSync(`${import.meta.dirname}/fake-virsh.mjs`, `${bin}/virsh`)
    chmodSync(`${bin}/virsh`, 0o755)
    process.env['PATH'] = `${bin}:${searchPath}`
    process.env['FAKE_VIRSH'] = domains
  })

  const known = (): string[] => readdirSync(domains).filter((name) => name.endsWith('.xml'))
  const calls = (): string[] => readFileSync(`${domains}/calls`, 'utf8').trim().split('\n')

  it('is made of its domain and the export, and is gone when the test is', async () => {
    await settings(libvirt('shop'))
    await using test = await place.replica.startTestFailover()
    const { info } = await test.run()
    expect(info).toMatchObject({ name: 'shop - Test', method: 'libvirt', processId: null })
    const [file = ''] = known()
    const xml = readFileSync(`${domains}/${file}`, 'utf8')
    expect(xml).toContain('<name>shop - Test</name>')
    expect(xml).toContain(`socket="${info.address.slice('unix:'.length)}"`)
    expect(file).not.toContain('c7a5fdbd')
    if (hasTool('virt-xml-validate', 'runner: the schema of libvirt')) {
      const { status, stderr } = spawnSync('virt-xml-validate', [`${domains}/${file}`, 'domain'], {
        encoding: 'utf8',
      })
      expect([status, stderr]).toEqual([0, expect.stringMatching(/ validates\s*$/)])
    }
    await test.stop()
    expect(known()).toEqual([])
    expect(calls().filter((call) => call.includes('shutdown'))).toEqual([])
  })

  it.each(['shop', 'deaf shop'])(
    'is asked to shut down after a real failover, and switched off if it is deaf: %s',
    async (name) => {
      await settings(libvirt(name))
      const failover = await place.replica.startFailover({ fencePrimary: true })
      await failover.run()
      expect(known()).toEqual(['c7a5fdbd-cdaf-9455-926a-d65c16db1809.xml'])
      await failover.close()
      expect(known()).toEqual([])
      const ends = calls()
        .filter((call) => /shutdown|destroy/.test(call))
        .map((call) => call.split(' ')[1])
      expect(ends).toEqual(name === 'shop' ? ['shutdown'] : ['shutdown', 'destroy'])
    },
  )

  it('is left alone when a domain of the same id is somebody else’s', async () => {
    writeFileSync(`${domains}/c7a5fdbd-cdaf-9455-926a-d65c16db1809.xml`, domainXml)
    await settings(libvirt('shop'))
    const failover = await place.replica.startFailover({ fencePrimary: true })
    await expect(failover.run()).rejects.toMatchObject({ code: 'RUNNER_FAILED' })
    expect(known()).toHaveLength(1)
    expect(calls().filter((call) => /shutdown|destroy/.test(call))).toEqual([])
  })

  it('says what virsh said, and that it is not installed', async () => {
    await settings(libvirt('unfit'))
    await using test = await place.replica.startTestFailover()
    await expect(test.run()).rejects.toMatchObject({
      code: 'RUNNER_FAILED',
      message: expect.stringContaining('nothing of the kind'),
    })
    process.env['PATH'] = '/nonexistent'
    await expect(test.run()).rejects.toMatchObject({
      code: 'RUNNER_NOT_FOUND',
      message: expect.stringContaining('libvirt-clients'),
    })
  })
})
