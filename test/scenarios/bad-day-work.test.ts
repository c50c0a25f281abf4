/**
 * What goes wrong in the middle of work: an abort at any message of any verb, a worker that dies, a log that changes under
 * the shipper, a gap in the chain, and a guest that writes while both sides are compared.
 */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import threads from 'node:worker_threads'
import { type ProtectedMachine, SecondsiteError } from '@secondsite/engine'
import type { AnyMessage, Channel, Message, Transport } from '@secondsite/engine/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BadDay, codeOf, refusal } from './bad-day.js'
import { KIB, MIB } from './workplace.js'

let day: BadDay

beforeEach(() => {
  day = new BadDay()
})

afterEach(() => day.end())

/** Sees every message to the replica before it is sent, and may put another in its place. */
class Tap {
  onMessage: (message: AnyMessage, count: number) => AnyMessage = (message) => message
  #count = 0

  /** Begins to count anew. */
  watch(onMessage: (message: AnyMessage, count: number) => AnyMessage): void {
    this.#count = 0
    this.onMessage = onMessage
  }

  readonly wrap = (inner: Transport): Transport => ({
    connect: async (signal?: AbortSignal) => this.#tapped(await inner.connect(signal)),
  })

  #tapped(channel: Channel): Channel {
    return {
      send: (message: Message, signal?: AbortSignal) => {
        this.#count += 1
        return channel.send(this.onMessage(message as AnyMessage, this.#count), signal)
      },
      receive: () => channel.receive(),
      close: () => channel.close(),
    }
  }
}

const policy = { replicationFrequencySeconds: 86_400, autoResynchronize: { enabled: false } }

async function tapped(tap: Tap, sizeBytes = 8 * MIB): Promise<ProtectedMachine> {
  day.engine = await day.place.open({ wrapTransport: tap.wrap })
  return day.place.enable(day.engine, [day.place.makeDisk('os.raw', sizeBytes, sizeBytes / 4)], policy)
}

/** Writes that make a log of several frames. */
async function writeMuch(machine: ProtectedMachine): Promise<void> {
  for (let offset = 0; offset < MIB; offset += 64 * KIB) {
    await machine.disks[0]?.write(offset, day.place.random.bytes(64 * KIB))
  }
}

const verbs: Readonly<Record<string, (machine: ProtectedMachine, signal: AbortSignal) => Promise<unknown>>> =
  {
    startInitialReplication: (machine, signal) => machine.startInitialReplication({ signal }),
    replicate: (machine, signal) => machine.replicate({ signal }),
    resynchronize: (machine, signal) => machine.resynchronize({ signal }),
    verify: (machine, signal) => machine.verify({ signal }),
  }

describe('an abort', () => {
  it.each(Object.keys(verbs))('of %s, at any of its messages, loses nothing', async (verb) => {
    const act = verbs[verb] as (machine: ProtectedMachine, signal: AbortSignal) => Promise<unknown>
    const tap = new Tap()
    const machine = await tapped(tap)
    if (verb !== 'startInitialReplication') await machine.startInitialReplication()
    for (const at of [1, 2, 3, 5, 9]) {
      await writeMuch(machine)
      const stop = new AbortController()
      tap.watch((message, count) => {
        if (count === at) stop.abort()
        return message
      })
      const code = await codeOf(act(machine, stop.signal))
      expect(at === 1 ? ['ABORTED'] : ['ABORTED', 'none'], `message ${at}`).toContain(code)
      tap.watch((message) => message)
      if (verb === 'startInitialReplication') {
        if (machine.state !== 'InitialReplicationInProgress') break
        await machine.cancelInitialReplication()
      } else {
        expect((await day.repaired(machine)).at(-1)).toBe('replicate')
      }
    }
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })

  it.each(Object.keys(verbs))('before %s begins is told at once, and changes nothing', async (verb) => {
    const act = verbs[verb] as (machine: ProtectedMachine, signal: AbortSignal) => Promise<unknown>
    const machine = verb === 'startInitialReplication' ? await day.enabled() : await day.replicating()
    const { state } = machine
    expect(await refusal(act(machine, AbortSignal.abort()))).toMatchObject({ code: 'ABORTED' })
    expect(machine.state).toBe(state)
    expect((await day.repaired(machine)).at(-1)).toBe('replicate')
  })
})

describe('a worker that dies', () => {
  const { Worker } = threads
  const workers = new Set<threads.Worker>()

  beforeEach(() => {
    threads.Worker = class extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args)
        workers.add(this)
        this.once('exit', () => workers.delete(this))
      }
    }
    syncBuiltinESMExports()
  })

  afterEach(() => {
    threads.Worker = Worker
    syncBuiltinESMExports()
  })

  it('in a cycle costs that attempt at most, and no byte', async () => {
    const tap = new Tap()
    const machine = await tapped(tap)
    await machine.startInitialReplication()
    const codes: string[] = []
    for (let attempt = 0; attempt < 6; attempt += 1) {
      await writeMuch(machine)
      tap.watch((message) => {
        if (message.type === 'frame') for (const worker of workers) void worker.terminate()
        return message
      })
      codes.push(await codeOf(machine.replicate()))
      tap.watch((message) => message)
      await day.guestWrites(machine)
      expect((await day.repaired(machine)).at(-1)).toBe('replicate')
    }
    expect(codes).toContain('WORKER_DIED')
    expect(codes.filter((code) => code !== 'WORKER_DIED' && code !== 'none')).toEqual([])
  })
})

describe('a log', () => {
  it('that changes while it is shipped is not applied, and mended by a resynchronization', async () => {
    const tap = new Tap()
    const machine = await tapped(tap)
    await machine.startInitialReplication()
    await writeMuch(machine)
    const image = readFileSync(day.place.path('replica/os.raw.raw'))
    tap.watch((message) => {
      if (message.type !== 'frame') return message
      tap.watch((next) => next)
      const name = readdirSync(day.place.folder)
        .filter((file) => /^os\.raw\.\d{10}\.hrl$/.test(file))
        .sort()[0]
      const path = day.place.path(name as string)
      const bytes = readFileSync(path)
      bytes.writeUInt8(bytes.readUInt8(900 * KIB) ^ 1, 900 * KIB)
      writeFileSync(path, bytes)
      return message
    })
    expect(await codeOf(machine.replicate())).toBe('LOG_CORRUPT')
    expect(readFileSync(day.place.path('replica/os.raw.raw')).equals(image)).toBe(true)
    expect(await machine.measure()).toMatchObject({ resyncReason: 'LOG_DAMAGED' })
    await day.guestWrites(machine)
    expect(await day.repaired(machine)).toEqual(['resynchronize', 'replicate'])
  })

  it('that does not follow the newest one of the replica is refused as a gap, and mended', async () => {
    const tap = new Tap()
    const machine = await tapped(tap)
    await machine.startInitialReplication()
    await machine.replicate()
    await writeMuch(machine)
    const image = readFileSync(day.place.path('replica/os.raw.raw'))
    const missing = '00000000-1111-2222-3333-444444444444'
    tap.watch((message) => {
      if (message.type !== 'shipment-begin') return message
      const logs = message.header.logs.map((log) => ({ ...log, previousLogId: missing }))
      return { ...message, header: { ...message.header, logs } }
    })
    const error = await refusal(machine.replicate())
    expect(error).toMatchObject({ code: 'LOG_CHAIN_GAP', details: { previousLogId: missing } })
    tap.watch((message) => message)
    expect(readFileSync(day.place.path('replica/os.raw.raw')).equals(image)).toBe(true)
    expect(await machine.measure()).toMatchObject({
      state: 'WaitingForStartResynchronize',
      resyncReason: 'CHAIN_BROKEN',
    })
    await day.guestWrites(machine)
    expect(await day.repaired(machine)).toEqual(['resynchronize', 'replicate'])
  })
})

describe('a resynchronization that gives up a log which was cut and never sent', () => {
  it('is followed by cycles, also of a disk that nobody wrote to meanwhile', async () => {
    const tap = new Tap()
    day.engine = await day.place.open({ wrapTransport: tap.wrap })
    const disks = ['os.raw', 'data.raw'].map((name) => day.place.makeDisk(name, 2 * MIB))
    const machine = await day.place.enable(day.engine, disks, policy)
    const [os, data] = machine.disks
    await machine.startInitialReplication()
    for (const disk of [os, data]) await disk?.write(0, day.place.random.bytes(4096))
    await machine.replicate()
    for (const disk of [os, data]) await disk?.write(4096, day.place.random.bytes(4096))
    tap.watch(() => {
      throw new SecondsiteError('TRANSPORT_LOST', { message: 'cut by the test' })
    })
    expect(await codeOf(machine.replicate())).toBe('TRANSPORT_LOST')
    tap.watch((message) => message)
    await machine.resynchronize({
      onProgress: ({ doneBytes }) => {
        if (doneBytes === 0) void os?.write(8192, day.place.random.bytes(4096))
      },
    })
    for (const disk of [os, data]) await disk?.write(MIB, day.place.random.bytes(4096))
    await machine.replicate()
    day.place.expectEqual(['os.raw', 'data.raw'])
    // What follows it belongs to the same chain, and a death of the process changes nothing about that.
    const again = await day.reopen('abandon')
    for (const disk of again.disks) await disk.write(MIB, day.place.random.bytes(4096))
    await again.replicate()
    expect(await again.measure()).toMatchObject({ state: 'Replicating', resyncReason: null })
    day.place.expectEqual(['os.raw', 'data.raw'])
  })
})

/** Does `action` while a guest writes without a pause. */
async function besideGuest(
  write: () => Promise<unknown> | undefined,
  action: () => Promise<void>,
): Promise<void> {
  const done = new AbortController()
  const guest = (async () => {
    while (!done.signal.aborted) await write()
  })()
  try {
    await action()
  } finally {
    done.abort()
    await guest
  }
}

describe('verify on a disk that is written to', () => {
  it('raises no false alarm, and still finds a byte that differs', async () => {
    const machine = await day.replicating(4 * MIB)
    const scribble = () => day.place.scribble(machine, 1, 8 * KIB)
    await besideGuest(scribble, async () => {
      for (let round = 0; round < 8; round += 1) expect(await machine.verify()).toMatchObject({ equal: true })
    })
    await machine.replicate()
    const image = day.place.path('replica/os.raw.raw')
    const bytes = readFileSync(image)
    bytes.writeUInt8(bytes.readUInt8(3 * MIB) ^ 1, 3 * MIB)
    writeFileSync(image, bytes)
    const writeElsewhere = () => machine.disks[0]?.write(0, day.place.random.bytes(4096))
    await besideGuest(writeElsewhere, async () => {
      expect(await machine.verify()).toMatchObject({ equal: false })
    })
  })
})
