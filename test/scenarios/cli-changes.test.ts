/**
 * Disks that somebody else writes to while, or between, runs of the command: never taken for a good copy in silence.
 */

import { once } from 'node:events'
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readFileSync,
  readSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { createInterface } from 'node:readline'
import { isSecondsiteError, type SyncOptions, syncDisks, verifyDisks } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { digest, runHere, start } from './cli-command.js'
import { KIB, MIB, Workplace } from './workplace.js'

const GIB = 1024 * MIB
let place: Workplace

beforeEach(() => {
  place = new Workplace(7)
})

afterEach(() => place.remove())

function poke(path: string, offset: number, bytes = place.random.bytes(512)): void {
  const file = openSync(path, 'r+')
  writeSync(file, bytes, 0, bytes.length, offset)
  closeSync(file)
}

function bytesAt(path: string, offset: number): Buffer {
  const bytes = Buffer.alloc(512)
  const file = openSync(path, 'r')
  readSync(file, bytes, 0, 512, offset)
  closeSync(file)
  return bytes
}

describe('a disk that is written to while it is read', () => {
  it.each([
    ['sync', 'the source', 'a.raw'],
    ['verify', 'the source', 'a.raw'],
    ['verify', 'the replica', 'b.raw'],
  ])('%s ends with 5 when %s was, though what is written is what was there', async (verb, _who, name) => {
    const source = place.makeDisk('a.raw', 4 * MIB)
    copyFileSync(source, place.path('b.raw'))
    const written = place.path(name)
    const printed = await runHere([verb, '--json', source, place.path('b.raw')], ({ doneBytes }) => {
      if (doneBytes === 0) poke(written, MIB, bytesAt(written, MIB))
    })
    expect(printed.exitCode).toBe(5)
    expect(printed.failures).toMatchObject([{ code: 'DISK_CHANGED_WHILE_READ', details: { path: written } }])
    expect(printed.failures[0]?.hint).toMatch(/Stop what writes/)
    expect(printed.objects).toMatchObject([{ error: { code: 'DISK_CHANGED_WHILE_READ' } }])
    expect(existsSync(`${place.path('b.raw')}.secondsite-sync`)).toBe(false)
  })

  it('is noticed though its time was put back, and the next run makes both equal', async () => {
    const source = place.makeDisk('a.raw', 4 * MIB)
    const replica = place.path('b.raw')
    const past = new Date(1_600_000_000_000)
    utimesSync(source, past, past)
    const { exitCode } = await runHere(['sync', source, replica], ({ doneBytes }) => {
      if (doneBytes === 0) return
      poke(source, 3 * MIB)
      utimesSync(source, past, past)
    })
    expect(exitCode).toBe(5)
    expect(digest(replica)).not.toBe(digest(source))
    expect((await runHere(['sync', source, replica])).exitCode).toBe(0)
    expect(digest(replica)).toBe(digest(source))
  })
})

/** Stops a sync in order after `batches` of 64 KiB, the first of them differing from the replica. */
async function stopped(source: string, replica: string, batches: number): Promise<unknown> {
  const stop = new AbortController()
  const options: SyncOptions = {
    batchBytes: 64 * KIB,
    signal: stop.signal,
    onProgress: ({ doneBytes }) => void (doneBytes === batches * 64 * KIB && stop.abort()),
  }
  return syncDisks(source, replica, options).catch((error: unknown) => error)
}

function pair(): [string, string] {
  return [place.makeDisk('a.raw', MIB, MIB), place.makeDisk('b.raw', MIB, MIB)]
}

const note = (replica: string) => `${replica}.secondsite-sync`

describe('an interrupted run', () => {
  it('goes on where it stopped, and the counts are those of both runs', async () => {
    const [source, replica] = pair()
    const error = await stopped(source, replica, 4)
    expect(error).toMatchObject({ code: 'ABORTED', details: { goesOn: true, nextOffset: 256 * KIB } })
    expect(await syncDisks(source, replica)).toMatchObject({
      resumedFromOffset: 256 * KIB,
      comparedBytes: MIB - 256 * KIB,
      differentBytes: MIB,
      startedOver: null,
    })
    expect(digest(replica)).toBe(digest(source))
    expect(existsSync(note(replica))).toBe(false)
  })

  it('starts over and says so when the replica was changed since', async () => {
    const [source, replica] = pair()
    await stopped(source, replica, 4)
    poke(replica, 0)
    const printed = await runHere(['sync', '--json', source, replica])
    expect(printed.exitCode).toBe(0)
    expect(printed.objects).toMatchObject([{ startedOver: 'REPLICA_CHANGED', resumedFromOffset: 0 }])
    expect(printed.warned).toEqual(['started over: the replica is not as the interrupted run left it'])
    expect(digest(replica)).toBe(digest(source))
  })

  it('starts over when the source was changed since', async () => {
    const [source, replica] = pair()
    await stopped(source, replica, 4)
    poke(source, 0)
    expect(await syncDisks(source, replica)).toMatchObject({ startedOver: 'SOURCE_CHANGED' })
    expect(digest(replica)).toBe(digest(source))
  })

  it('starts over for another source, another chunk size, or when it is told to', async () => {
    const [source, replica] = pair()
    copyFileSync(source, place.path('c.raw'))
    await stopped(source, replica, 4)
    expect(await syncDisks(place.path('c.raw'), replica)).toMatchObject({ startedOver: 'OTHER_RUN' })
    poke(replica, 0)
    await stopped(source, replica, 4)
    expect(await syncDisks(source, replica, { chunkBytes: 4096 })).toMatchObject({ startedOver: 'OTHER_RUN' })
    poke(replica, 0)
    await stopped(source, replica, 4)
    const again = await syncDisks(source, replica, { restart: true })
    expect(again).toMatchObject({ startedOver: null, resumedFromOffset: 0 })
    expect(digest(replica)).toBe(digest(source))
  })

  it('that was killed goes on over its own last writes, and starts over when later ones are there', async () => {
    const [source, replica] = pair()
    await stopped(source, replica, 4)
    const killed = { ...(JSON.parse(readFileSync(note(replica), 'utf8')) as object), silenceMsMax: 3000 }
    poke(replica, 512 * KIB) // As the run itself would have, behind its note.
    writeFileSync(note(replica), JSON.stringify(killed))
    const { atime } = { atime: new Date() }
    utimesSync(note(replica), atime, new Date(Date.now() - 1000))
    await stopped(source, replica, 6)
    const goneOn = JSON.parse(readFileSync(note(replica), 'utf8')) as { point: object }
    expect(goneOn.point).toMatchObject({ nextOffset: 384 * KIB })

    writeFileSync(note(replica), JSON.stringify({ ...goneOn, silenceMsMax: 3000 }))
    utimesSync(note(replica), atime, new Date(Date.now() - 60_000))
    poke(replica, 0)
    expect(await syncDisks(source, replica)).toMatchObject({ startedOver: 'REPLICA_CHANGED' })
    expect(digest(replica)).toBe(digest(source))
  })

  it.each(['', '{', '[]', 'null', '{"key":{},"point":{}}', '{"key":{"source":1},"point":{"nextOffset":-1}}'])(
    'whose note is %j starts at zero',
    async (text) => {
      const [source, replica] = pair()
      writeFileSync(note(replica), text)
      expect(await syncDisks(source, replica)).toMatchObject({ resumedFromOffset: 0 })
      expect(digest(replica)).toBe(digest(source))
    },
  )

  it('by Ctrl-C ends with 130, says how to go on, and does go on', async () => {
    const [source, replica] = [place.makeDisk('a.raw', MIB, MIB), place.path('b.raw')]
    truncateSync(source, 256 * GIB)
    poke(source, 200 * GIB)
    const child = start('sync', '--json', '--progress', 'json', source, replica)
    const [output, errors]: string[][] = [[], []]
    createInterface(child.stdout).on('line', (line) => output?.push(line))
    createInterface(child.stderr).on('line', (line) => {
      errors?.push(line)
      if (errors?.length === 2) child.kill('SIGINT')
    })
    expect(await once(child, 'close')).toEqual([130, null])
    const [{ error }] = (output ?? []).map((line) => JSON.parse(line)) as [{ error: { hint: string } }]
    expect(error).toMatchObject({ code: 'ABORTED', details: { goesOn: true } })
    expect(error.hint).toBe('Run it again: it goes on there.')
    expect(JSON.parse(errors?.at(-1) ?? '')).toMatchObject({ event: 'error', code: 'ABORTED' })
    const result = await syncDisks(source, replica)
    expect(result.resumedFromOffset).toBeGreaterThan(0)
    expect(bytesAt(replica, 200 * GIB)).toEqual(bytesAt(source, 200 * GIB))
  })
})

describe('verify', () => {
  it('is stopped without a trace, and says that it begins anew', async () => {
    const source = place.makeDisk('a.raw', MIB)
    copyFileSync(source, place.path('b.raw'))
    const stop = AbortSignal.abort()
    const error = await verifyDisks(source, place.path('b.raw'), { signal: stop }).catch((e: unknown) => e)
    expect(isSecondsiteError(error, 'ABORTED')).toBe(true)
    expect(existsSync(`${place.path('b.raw')}.secondsite-sync`)).toBe(false)
  })
})
