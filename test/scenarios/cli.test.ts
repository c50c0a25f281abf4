/**
 * The command as a user runs it: a process, real images, exit codes, one JSON object.
 */

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  appendFileSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { hasTool } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

const main = fileURLToPath(new URL('../../packages/cli/dist/main.js', import.meta.url))
const vectors = fileURLToPath(new URL('../vectors/hrl', import.meta.url))

let place: Workplace

beforeEach(() => {
  place = new Workplace(5)
})

afterEach(() => place.remove())

function run(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

function json(...args: string[]): { status: number | null; value: Record<string, unknown> } {
  const { status, stdout } = run(...args, '--json')
  return { status, value: JSON.parse(stdout) as Record<string, unknown> }
}

function jsonLines(...args: string[]): { status: number | null; lines: Record<string, unknown>[] } {
  const { status, stdout } = run(...args, '--json')
  const lines = stdout.trimEnd().split('\n')
  return { status, lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) }
}

function sectorAt(path: string, offset: number): Buffer {
  const [sector, file] = [Buffer.alloc(512), openSync(path, 'r')]
  readSync(file, sector, 0, 512, offset)
  closeSync(file)
  return sector
}

function digest(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex')
}

describe('sync', () => {
  it('creates a replica that is missing, then finds nothing to do', () => {
    const source = place.makeDisk('a.raw', 8 * MIB)
    const replica = place.path('b.raw')
    expect(json('sync', source, replica)).toMatchObject({ status: 0, value: { isReplicaNew: true } })
    expect(digest(replica)).toBe(digest(source))
    expect(json('sync', source, replica)).toMatchObject({
      status: 0,
      value: { differentBytes: 0, writtenBytes: 0 },
    })
  })

  it('says how much differs without writing, by exit code too', () => {
    const source = place.makeDisk('a.raw', 8 * MIB)
    const replica = place.path('b.raw')
    copyFileSync(source, replica)
    const content = readFileSync(replica)
    content.fill(1, 3 * MIB, 3 * MIB + 10)
    writeFileSync(replica, content)
    const before = digest(replica)
    const { status, value } = json('sync', '--dry-run', source, replica)
    expect(status).toBe(1)
    expect(value).toMatchObject({ differentBytes: 64 * KIB, writtenBytes: 0, firstDifference: 3 * MIB })
    expect(digest(replica)).toBe(before)
  })

  it('makes an ext4 equal that mke2fs made, and e2fsck finds it clean', () => {
    if (!hasTool('mke2fs', 'cli: sync of an ext4')) return
    const tree = place.path('tree')
    mkdirSync(tree)
    for (let index = 0; index < 50; index += 1)
      writeFileSync(join(tree, `f${index}`), place.random.bytes(5000))
    const source = place.makeDisk('fs.raw', 16 * MIB, 0)
    expect(spawnSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, source]).status).toBe(0)
    const replica = place.makeDisk('old.raw', 16 * MIB, 4 * MIB)
    expect(run('sync', source, replica).status).toBe(0)
    expect(digest(replica)).toBe(digest(source))
    expect(spawnSync('e2fsck', ['-fn', replica]).status).toBe(0)
  })

  it('goes on where a killed run stopped', async () => {
    // Long enough that a run makes notes before it ends, with little to write.
    const [sizeBytes, source, replica] = [
      512 * 1024 * MIB,
      place.makeDisk('a.raw', MIB, MIB),
      place.path('b.raw'),
    ]
    truncateSync(source, sizeBytes - 512)
    appendFileSync(source, place.random.bytes(512))
    const child = spawn(process.execPath, [main, 'sync', source, replica], { stdio: 'ignore' })
    const note = `${replica}.secondsite-sync`
    while (!existsSync(note) && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 2))
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
    expect(existsSync(note)).toBe(true)
    const { status, value } = json('sync', source, replica)
    expect({ status, startedOver: value['startedOver'] }).toEqual({ status: 0, startedOver: null })
    expect(value['resumedFromOffset']).toBeGreaterThan(0)
    expect(existsSync(note)).toBe(false)
    for (const offset of [0, sizeBytes - 512])
      expect(sectorAt(replica, offset).equals(sectorAt(source, offset)), `at ${offset}`).toBe(true)
  })
})

describe('verify', () => {
  it('prints equal digests, finds a difference, repairs it', () => {
    const source = place.makeDisk('a.raw', 4 * MIB)
    const replica = place.path('b.raw')
    copyFileSync(source, replica)
    expect(json('verify', source, replica)).toMatchObject({ status: 0, value: { equal: true } })
    const content = readFileSync(replica)
    content.fill(9, MIB, MIB + 1)
    writeFileSync(replica, content)
    expect(json('verify', source, replica)).toMatchObject({
      status: 1,
      value: { equal: false, differentBytes: 64 * KIB },
    })
    expect(json('verify', '--repair', source, replica)).toMatchObject({ status: 0, value: { equal: true } })
    expect(digest(replica)).toBe(digest(source))
  })
})

describe('log', () => {
  const genuine = join(vectors, 'hyperv-v2.hrl')

  it('shows and checks a log as Hyper-V writes it', () => {
    const { status, lines } = jsonLines('log', 'show', '--entries', genuine)
    const [report, ...entries] = lines
    expect(status).toBe(0)
    expect(report).toMatchObject({ isSealed: true, hasIndex: false, damage: [] })
    expect(entries.at(-1)).toEqual({ entryCount: entries.length - 1 })
    expect(report?.['statistics']).toMatchObject({ entryCount: entries.length - 1 })
    expect(run('log', 'show', genuine).stdout).toContain('MS-HRL 2.0')
    expect(json('log', 'verify', genuine)).toMatchObject({ status: 0, value: { isGood: true } })
  })

  it('names the place of a damage and ends with 1', () => {
    const damaged = place.makeDisk('bad.hrl', 512, 512)
    writeFileSync(damaged, readFileSync(genuine))
    const content = readFileSync(damaged)
    content[30] = (content[30] ?? 0) ^ 1
    writeFileSync(damaged, content)
    const { status, value } = json('log', 'show', damaged)
    expect(status).toBe(1)
    expect(value['damage']).toEqual([expect.objectContaining({ path: damaged, isTorn: false })])
    expect(run('log', 'verify', damaged).status).toBe(1)
  })

  it('applies a log to an image, and exports it for Hyper-V, which gives the same image', () => {
    const ours = join(vectors, 'profile-1.hrl')
    const end = (json('log', 'show', ours).value['statistics'] as { diskEndOffset: number }).diskEndOffset
    const sizeBytes = Math.ceil(end / MIB) * MIB
    const [first, second] = [place.makeDisk('one.raw', sizeBytes, MIB), place.path('two.raw')]
    copyFileSync(first, second)
    expect(run('log', 'apply', ours, first).status).toBe(0)
    const strict = place.path('strict.hrl')
    expect(run('log', 'export', ours, strict, '--strict').status).toBe(0)
    expect(run('log', 'apply', strict, second).status).toBe(0)
    expect(digest(second)).toBe(digest(first))
  })

  it('does not apply a log past the end of an image', () => {
    const ours = join(vectors, 'profile-1.hrl')
    const image = place.makeDisk('small.raw', 512, 512)
    const before = digest(image)
    expect(json('log', 'apply', ours, image)).toMatchObject({
      value: { error: { code: 'LOG_ENTRY_OUT_OF_RANGE' } },
    })
    expect(digest(image)).toBe(before)
  })
})

describe('bad input', () => {
  it.each([
    ['a source that is missing', (s: string) => [`${s}.none`, s], 'DISK_NOT_FOUND', 3],
    ['one disk under two names', (s: string) => [s, `${s}.link`], 'DISK_SAME', 3],
    ['a replica of another size', (s: string) => [s, `${s}.small`], 'DISK_SIZE_DIFFERS', 3],
    ['an empty source', (s: string) => [`${s}.empty`, s], 'DISK_EMPTY', 3],
    ['a source that is no multiple of a sector', (s: string) => [`${s}.odd`, s], 'DISK_SIZE_UNALIGNED', 3],
  ])('%s is refused with its code, and nothing changes', (_name, pair, code, status) => {
    const source = place.makeDisk('a.raw', MIB)
    linkSync(source, `${source}.link`)
    writeFileSync(`${source}.small`, place.random.bytes(512 * KIB))
    writeFileSync(`${source}.empty`, '')
    writeFileSync(`${source}.odd`, '')
    truncateSync(`${source}.odd`, 1000)
    const before = [source, `${source}.small`].map(digest)
    const answer = json('sync', ...pair(source))
    expect(answer).toMatchObject({ status, value: { error: { code } } })
    expect((answer.value['error'] as { hint: string }).hint).not.toBe('')
    expect([source, `${source}.small`].map(digest)).toEqual(before)
  })

  it('a bad command line ends with 2 and the help', () => {
    expect(run('sync')).toMatchObject({ status: 2 })
    expect(run('sync', 'a', 'b', '--chunk', 'x').status).toBe(2)
    const source = place.makeDisk('a.raw', MIB)
    expect(run('sync', source, place.path('b.raw'), '--chunk', '5000').status).toBe(2)
    expect(existsSync(place.path('b.raw'))).toBe(false)
    expect(run('--help')).toMatchObject({ status: 0 })
    expect(run('--help').stdout).toContain('Exit codes')
  })
})
