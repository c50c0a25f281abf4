/**
 * Application-consistent cuts of a machine whose "application" is a loop in this process: it writes a number to the first
 * sector and then the same number to the last one. Between the two writes its disk is torn; at rest it never is. The
 * hook is a pair of shell commands that ask the loop to rest and wait until it does.
 */

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Engine, MachineEvent, PolicyInput, ProtectedMachine, QuiesceInput } from '@secondsite/engine'
import {
  FaultyTransport,
  ManualClock,
  type Message,
  SeededRandom,
  type Serve,
} from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { relayTo } from './relay.js'
import { MIB, Workplace } from './workplace.js'

const SECTOR = 512
const HOUR_MS = 3_600_000
/** So large that the loop cannot reach the threshold of the logs. */
const DISK_BYTES = 256 * MIB

let place: Workplace
let clock: ManualClock
let engine: Engine | undefined
let application: Application | undefined
/** What the shipments said of their cuts, in the order in which they travelled. */
let pointKinds: string[]

/** The loop described above. */
class Application {
  #isRunning = true
  readonly #loop: Promise<void>

  constructor(private readonly machine: ProtectedMachine) {
    this.#loop = this.#run()
  }

  async stop(): Promise<void> {
    this.#isRunning = false
    await this.#loop
  }

  async #run(): Promise<void> {
    const [disk] = this.machine.disks
    if (disk === undefined) throw new Error('a machine without disks')
    for (let number = 1; this.#isRunning; number += 1) {
      const sector = Buffer.alloc(SECTOR)
      sector.writeUInt32LE(number)
      await disk.write(0, sector)
      await sleep(1)
      await disk.write(disk.sizeBytes - SECTOR, sector)
      await this.#restIfAsked()
    }
  }

  async #restIfAsked(): Promise<void> {
    while (existsSync(place.path('rest')) && this.#isRunning) {
      writeFileSync(place.path('resting'), '')
      await sleep(1)
    }
    rmSync(place.path('resting'), { force: true })
  }
}

function shell(text: string): string[] {
  return ['/bin/sh', '-c', `cd '${place.folder}' && ${text}`]
}

/** The hook of the application. */
function hook(freezeTail = 'while [ ! -e resting ]; do sleep 0.01; done'): QuiesceInput {
  return {
    method: 'command',
    freeze: shell(`touch rest; ${freezeTail}`),
    thaw: shell('rm -f rest'),
    frozenLimitSeconds: 60,
  }
}

/** Whether the replica shows the disk between the two writes. */
function isTorn(): boolean {
  const image = openSync(place.path('replica/os.raw.raw'), 'r')
  const [first, last] = [0, DISK_BYTES - SECTOR].map((offset) => {
    const sector = Buffer.alloc(SECTOR)
    readSync(image, sector, 0, SECTOR, offset)
    return sector.readUInt32LE(0)
  })
  closeSync(image)
  return first !== last
}

async function* heard(messages: AsyncIterable<Message>): AsyncGenerator<Message> {
  for await (const message of messages) {
    if (message.type === 'shipment-begin' && 'pointKind' in message.header)
      pointKinds.push(String(message.header.pointKind))
    yield message
  }
}

/** Notes what shipments say of their cuts. */
function noting(serve: Serve): Serve {
  return (channel) => {
    serve({
      send: (message, signal) => channel.send(message, signal),
      receive: () => heard(channel.receive()),
      close: () => channel.close(),
    })
  }
}

async function open(): Promise<Engine> {
  engine = await place.open({
    clock,
    wrapTransport: (inner) =>
      new FaultyTransport({ serve: noting(relayTo(inner)), random: new SeededRandom(1) }),
  })
  return engine
}

async function replicating(policy: PolicyInput): Promise<ProtectedMachine> {
  const machine = await place.enable(await open(), [place.makeDisk('os.raw', DISK_BYTES, 0)], policy)
  await machine.startInitialReplication()
  pointKinds = []
  return machine
}

async function lastEvent(): Promise<MachineEvent | undefined> {
  return (await engine?.events())?.at(-1)
}

beforeEach(() => {
  place = new Workplace()
  clock = new ManualClock(Date.UTC(2026, 10, 21, 10))
  pointKinds = []
})

afterEach(async () => {
  await application?.stop()
  application = undefined
  await engine?.close()
  engine = undefined
  place.remove()
})

describe('an application-consistent cut', () => {
  it('shows the application at rest, time after time, and says so to replica and operator', async () => {
    const machine = await replicating({ quiesce: hook() })
    application = new Application(machine)
    for (let round = 1; round <= 5; round += 1) {
      const report = await machine.replicate({ applicationConsistent: true })
      expect(report).toMatchObject({ pointKind: 'application-consistent', quiesce: { isConsistent: true } })
      expect(isTorn(), `round ${round}`).toBe(false)
    }
    expect(pointKinds).toEqual(Array.from({ length: 5 }, () => 'application-consistent'))
    const event = await lastEvent()
    expect(event).toMatchObject({ id: 40030, level: 'information', details: { method: 'command' } })
    expect(event?.details['frozenMs']).toBeGreaterThan(0)
    const measured = await machine.measure()
    expect(measured.lastApplicationConsistentCutMs).toBe(clock.nowMs())
    expect(measured.counters.applicationConsistentFailureCount).toBe(0)
  })

  it('that no hook can make is refused before anything is cut', async () => {
    const machine = await replicating({})
    const refused = machine.replicate({ applicationConsistent: true })
    await expect(refused).rejects.toMatchObject({ code: 'QUIESCE_NOT_CONFIGURED' })
    expect(pointKinds).toEqual([])
    expect((await machine.measure()).lastError).toBeNull()
  })
})

describe('a hook that fails', () => {
  it('costs no cycle: the cut is crash-consistent, the failure counted, told, and seen in the health', async () => {
    const machine = await replicating({ quiesce: hook('echo no room >&2; exit 3') })
    const report = await machine.replicate({ applicationConsistent: true })
    expect(report).toMatchObject({ pointKind: 'crash-consistent', quiesce: { isThawed: true } })
    expect(pointKinds).toEqual(['crash-consistent'])
    const details = { method: 'command', code: 'QUIESCE_FREEZE_FAILED' }
    expect(await lastEvent()).toMatchObject({ id: 40031, level: 'warning', details })
    const measured = await machine.measure()
    const counters = { applicationConsistentFailureCount: 1, replicationFailureCount: 0 }
    expect(measured.counters).toMatchObject({ ...counters, replicationSuccessCount: 1 })
    expect(measured.healthDetails).toMatchObject([{ code: 'QUIESCE_FAILED', health: 'Warning' }])
    expect(measured.lastApplicationConsistentCutMs).toBeNull()
    expect(existsSync(place.path('rest'))).toBe(false)
  })
})

const hourly = (): PolicyInput => ({
  quiesce: hook('true'),
  applicationConsistentSnapshotFrequencyInHours: 1,
})

describe('a machine that was frozen when everything was killed', () => {
  it('is thawed when the engine is opened again, and the operator told', async () => {
    const machine = await replicating({ quiesce: hook('true') })
    await engine?.close()
    // What engine and keeper leave when they are killed in the middle of a freeze.
    writeFileSync(place.path('rest'), '')
    mkdirSync(place.path('state/frozen'))
    writeFileSync(place.path(`state/frozen/${machine.id}`), JSON.stringify(hook('true')))
    await open()
    expect(existsSync(place.path('rest'))).toBe(false)
    expect(readdirSync(place.path('state/frozen'))).toEqual([])
    expect(await lastEvent()).toMatchObject({ id: 40033, machine: 'web01', details: { method: 'command' } })
  })

  it('has no mark once it is thawed', async () => {
    const machine = await replicating({ quiesce: hook('true') })
    await machine.replicate({ applicationConsistent: true })
    expect(readdirSync(place.path('state/frozen'))).toEqual([])
  })
})

describe('a policy of one an hour', () => {
  it('makes the first cycle of each hour one, also over a restart', async () => {
    let machine = await replicating(hourly())
    await machine.suspend()
    await machine.resume()
    const kinds: string[] = []
    for (let half = 0; half < 6; half += 1) {
      kinds.push((await machine.replicate()).pointKind)
      await engine?.close()
      await clock.advance(HOUR_MS / 2)
      machine = (await open()).machine('web01')
    }
    const [quiesced, other] = ['application-consistent', 'crash-consistent']
    expect(kinds).toEqual([quiesced, other, quiesced, other, quiesced, other])
  })

  it('is refused without a hook', async () => {
    const disks = [place.makeDisk('os.raw', DISK_BYTES, 0)]
    const enabled = place.enable(await open(), disks, { applicationConsistentSnapshotFrequencyInHours: 1 })
    const details = { problems: [{ path: 'quiesce', value: 'undefined' }] }
    await expect(enabled).rejects.toMatchObject({ code: 'OPTION_OUT_OF_RANGE', details })
  })
})
