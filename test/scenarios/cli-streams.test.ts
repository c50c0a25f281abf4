/**
 * Where the command prints, and what it prints when nobody, or a program, is listening.
 */

import { spawnSync } from 'node:child_process'
import { copyFileSync, openSync, readdirSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { applyLogs, readEntries, showLog } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { digest, main, run, runHere, vectors } from './cli-command.js'
import { MIB, Workplace } from './workplace.js'

let place: Workplace

beforeEach(() => {
  place = new Workplace(11)
})

afterEach(() => place.remove())

/** A log of many entries, made by the engine: every write of the guest is one. */
async function longLog(count: number): Promise<string> {
  const disk = place.makeDisk('guest.raw', 8 * MIB)
  const engine = await place.open()
  const machine = await place.enable(engine, [disk], { replicationFrequencySeconds: 86_400 })
  const sector = place.random.bytes(512)
  for (let index = 0; index < count; index += 1) await machine.disks[0]?.write(512 * (index % 1000), sector)
  const names = readdirSync(place.folder, { recursive: true, encoding: 'utf8' })
  const logs = names.filter((name) => name.endsWith('.hrl')).map((name) => place.path(name))
  // The other one is the next log, prepared ahead and empty.
  const [path = ''] = logs.sort((one, other) => statSync(other).size - statSync(one).size)
  copyFileSync(path, place.path('long.hrl'))
  copyFileSync(path.replace(/hrl$/, 'hrx'), place.path('long.hrx'))
  await engine.close()
  return place.path('long.hrl')
}

describe('progress', () => {
  it('as JSON is one object a line on standard error, from nothing to all', () => {
    const source = place.makeDisk('a.raw', 8 * MIB)
    const { status, stdout, stderr } = run('sync', '--progress', 'json', source, place.path('b.raw'))
    expect(status).toBe(0)
    expect(stdout).toContain('8.0 MiB compared')
    const events = stderr
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    expect(events[0]).toMatchObject({ event: 'progress', phase: 'sync', doneBytes: 0, totalBytes: 8 * MIB })
    expect(events.at(-1)).toMatchObject({ event: 'progress', phase: 'sync', doneBytes: 8 * MIB })
  })

  it('as JSON tells errors on standard error as an object, too', () => {
    const { status, stdout, stderr } = run('verify', '--progress', 'json', place.path('a'), place.path('b'))
    expect({ status, stdout }).toEqual({ status: 3, stdout: '' })
    expect(JSON.parse(stderr)).toMatchObject({
      event: 'error',
      code: 'DISK_NOT_FOUND',
      details: { path: place.path('a') },
      hint: expect.stringMatching(/./),
    })
  })

  it('is silent where no terminal is, and a terminal gets no colours', () => {
    const source = place.makeDisk('a.raw', MIB)
    copyFileSync(source, place.path('b.raw'))
    const { stdout, stderr } = run('verify', source, place.path('b.raw'))
    expect(stderr).toBe('')
    expect(stdout).toMatch(/^equal\n/)
    const shown = run('log', 'show', '--entries', join(vectors, 'hyperv-v2.hrl')).stdout
    expect(stdout + shown).not.toContain('\u001b')
    const inTerminal = spawnSync(
      'script',
      ['-qec', `${process.execPath} ${main} log show ${join(vectors, 'hyperv-v2.hrl')}`, '/dev/null'],
      { encoding: 'utf8', env: { ...process.env, NO_COLOR: '1' } },
    )
    expect(inTerminal.stdout).not.toContain('\u001b[3')
  })
})

describe('sync --digest', () => {
  it('prints equal digests of what both disks hold afterwards', async () => {
    const source = place.makeDisk('a.raw', 2 * MIB)
    const { exitCode, objects } = await runHere([
      'sync',
      '--json',
      '--digest',
      'blake3',
      source,
      place.path('b.raw'),
    ])
    expect(exitCode).toBe(0)
    const { digests } = objects[0] as { digests: { source: string; replica: string } }
    expect(digests.source).toMatch(/^[0-9a-f]{64}$/)
    expect(digests.replica).toBe(digests.source)
  })

  it('ends with 1 when the replica does not keep what was written to it', async () => {
    const source = place.makeDisk('a.raw', 2 * MIB)
    const replica = place.path('b.raw')
    let spoiled = false
    const { exitCode, objects } = await runHere(
      ['sync', '--json', '--digest', 'xxh3-128', source, replica],
      ({ phase, doneBytes, totalBytes }) => {
        if (spoiled || phase !== 'sync' || doneBytes !== totalBytes) return
        spoiled = true
        writeSync(openSync(replica, 'r+'), Buffer.from('rotten'), 0, 6, MIB)
      },
    )
    expect({ spoiled, exitCode }).toEqual({ spoiled: true, exitCode: 1 })
    const { digests } = objects[0] as { digests: { source: string; replica: string } }
    expect(digests.replica).not.toBe(digests.source)
  })

  it('of a dry run without a replica says that there is none', async () => {
    const source = place.makeDisk('a.raw', MIB)
    const { exitCode, said } = await runHere([
      'sync',
      '--dry-run',
      '--digest',
      'blake3',
      source,
      place.path('b.raw'),
    ])
    expect(exitCode).toBe(1)
    expect(said.join('\n')).toContain('the replica does not exist')
  })
})

describe('a long log', () => {
  it('left open by its writer lists every entry, in more than one batch', async () => {
    const log = await longLog(5000)
    const { exitCode, objects } = await runHere(['log', 'show', '--entries', '--json', log])
    expect(exitCode).toBe(1) // It was not closed, and that is told as damage.
    expect(objects[0]).toMatchObject({ isSealed: false, damage: [{ code: 'LOG_NOT_SEALED', isTorn: true }] })
    expect(objects.at(-1)).toEqual({ entryCount: 5000 })
    const offsets = objects.slice(1, -1).map((entry) => entry['offset'])
    expect(offsets).toEqual(Array.from({ length: 5000 }, (_, index) => 512 * (index % 1000)))
  })

  it('piped into a program that reads ten lines ends in silence', async () => {
    const log = await longLog(5000)
    const script = `"$0" "$1" log show --entries "$2" | head -n 10`
    const { status, stdout, stderr } = spawnSync(
      'bash',
      ['-o', 'pipefail', '-c', script, process.execPath, main, log],
      { encoding: 'utf8' },
    )
    expect(stdout.split('\n').length).toBe(11)
    expect(stderr).toBe('')
    expect(status).toBe(0)
  })

  it('whose reader stops early leaves no list open behind', async () => {
    const log = await longLog(9000)
    let batchCount = 0
    for (const entries of readEntries(log)) {
      expect(entries.length).toBe(4096)
      batchCount += 1
      break
    }
    expect(batchCount).toBe(1)
    expect([...readEntries(log)].flat().length).toBe(9000)
  })
})

describe('log apply', () => {
  it('refuses the second of two logs before a byte of the first is written', async () => {
    const good = join(vectors, 'profile-1.hrl')
    const { statistics } = await showLog(good)
    const image = place.makeDisk('i.raw', Math.ceil(statistics.diskEndOffset / MIB) * MIB, MIB)
    const before = digest(image)
    const bad = place.makeDisk('bad.hrl', 8192)
    await expect(applyLogs([good, bad], image)).rejects.toMatchObject({ code: 'LOG_NOT_HRL' })
    expect(digest(image)).toBe(before)
  })
})
