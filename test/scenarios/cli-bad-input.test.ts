/**
 * What a user gets wrong at the command line, and what disks do: a code, what was wrong where, a hint, an exit code as the
 * help says, and nothing changed.
 */

import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { digest, main, run, runHere, vectors } from './cli-command.js'
import { hasTool, skip } from './tools.js'
import { KIB, MIB, Workplace } from './workplace.js'

let place: Workplace

beforeEach(() => {
  place = new Workplace(9)
})

afterEach(() => place.remove())

/** The one failure of a command, which must have an exit code, a hint, and what it is about. */
async function refusal(exitCode: number, ...args: string[]) {
  const printed = await runHere([...args, '--json'])
  expect(printed).toMatchObject({ exitCode, said: [], warned: [] })
  const [failure] = printed.failures
  if (failure === undefined || printed.failures.length > 1) throw new Error('one failure was expected')
  expect(failure.hint).not.toBe('')
  expect(printed.objects).toEqual([{ error: failure }])
  return failure
}

/** Makes a loop device over `path`; undefined, and the skip recorded, where that is not possible. */
function loopOver(path: string, test: string): { device: string; detach: () => void } | undefined {
  if (!hasTool('losetup', test)) return undefined
  const made = spawnSync('losetup', ['--find', '--show', path], { encoding: 'utf8' })
  if (made.status !== 0) {
    skip(test, 'losetup cannot make a loop device here')
    return undefined
  }
  const device = made.stdout.trim()
  return { device, detach: () => void spawnSync('losetup', ['--detach', device]) }
}

describe('two disks', () => {
  it.each(['sync', 'verify'])('%s refuses a directory, and a replica that is one', async (verb) => {
    const disk = place.makeDisk('a.raw', MIB)
    const folder = place.path('folder')
    mkdirSync(folder)
    const details = { path: folder }
    expect(await refusal(3, verb, folder, disk)).toMatchObject({ code: 'DISK_NOT_A_DISK', details })
    expect(await refusal(3, verb, disk, folder)).toMatchObject({ code: 'DISK_NOT_A_DISK', details })
  })

  it('refuses a replica whose folder is missing, and makes no file anywhere', async () => {
    const disk = place.makeDisk('a.raw', MIB)
    const replica = place.path('none/b.raw')
    expect(await refusal(3, 'sync', disk, replica)).toMatchObject({ details: { path: replica } })
    expect(existsSync(place.path('none'))).toBe(false)
  })

  it.each(['sync', 'verify'])('%s refuses one disk by symbolic link, too', async (verb) => {
    const disk = place.makeDisk('a.raw', MIB)
    const before = digest(disk)
    symlinkSync(disk, place.path('soft.raw'))
    linkSync(disk, place.path('hard.raw'))
    for (const other of ['a.raw', 'soft.raw', 'hard.raw'])
      expect(await refusal(3, verb, disk, place.path(other))).toMatchObject({ code: 'DISK_SAME' })
    expect(digest(disk)).toBe(before)
  })

  it('refuses a loop device over the other disk', async () => {
    const disk = place.makeDisk('a.raw', MIB)
    const loop = loopOver(disk, 'cli: one disk by loop device')
    if (loop === undefined) return
    try {
      expect(await refusal(3, 'sync', disk, loop.device)).toMatchObject({ code: 'DISK_SAME' })
      expect(await refusal(3, 'sync', loop.device, disk)).toMatchObject({ code: 'DISK_SAME' })
    } finally {
      loop.detach()
    }
  })

  it.each([
    ['smaller', MIB / 2],
    ['larger', 2 * MIB],
  ])('refuses a replica that is %s, and leaves it as it is', async (_name, sizeBytes) => {
    const [disk, replica] = [place.makeDisk('a.raw', MIB), place.makeDisk('b.raw', sizeBytes)]
    const before = digest(replica)
    expect(await refusal(3, 'verify', disk, replica, '--repair')).toMatchObject({
      code: 'DISK_SIZE_DIFFERS',
      details: { sourceSizeBytes: MIB, replicaSizeBytes: sizeBytes },
    })
    expect(digest(replica)).toBe(before)
  })

  it('says who must be let in when a source cannot be read, or a replica not written', () => {
    const test = 'cli: a disk without permission'
    if (process.getuid?.() === 0 && !hasTool('setpriv', test)) return
    const [disk, replica] = [place.makeDisk('a.raw', MIB), place.makeDisk('b.raw', MIB)]
    chmodSync(place.folder, 0o755)
    for (const [path, mode] of [
      [disk, 0o000],
      [replica, 0o444],
    ] as const) {
      chmodSync(disk, 0o444)
      chmodSync(path, mode)
      const asNobody = ['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath]
      const [program, prefix] = process.getuid?.() === 0 ? ['setpriv', asNobody] : [process.execPath, []]
      const args = [...prefix, main, 'sync', '--json', disk, replica]
      const { status, stdout } = spawnSync(program, args, { encoding: 'utf8' })
      if (status === null || stdout === '') return skip(test, 'another user cannot run this program here')
      expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'ACCESS_DENIED', details: { path } } })
      expect(status).toBe(3)
    }
  })

  it('a read error in the middle ends with 4 and its place; what was copied stays, and the rest follows', async () => {
    const test = 'cli: read error of a source'
    const [file, replica] = [place.makeDisk('a.raw', 4 * MIB, 4 * MIB), place.makeDisk('b.raw', 4 * MIB)]
    const whole = readFileSync(file)
    const loop = loopOver(file, test)
    if (loop === undefined) return
    try {
      truncateSync(file, MIB)
      const failure = await refusal(4, 'sync', '--threads', '1', loop.device, replica)
      expect(failure).toMatchObject({ code: 'DISK_READ_FAILED', details: { path: loop.device } })
      const { offset } = failure.details as { offset: number }
      expect(offset).toBeGreaterThanOrEqual(512 * KIB)
      expect(readFileSync(replica).subarray(0, offset).equals(whole.subarray(0, offset))).toBe(true)
    } finally {
      loop.detach()
    }
    writeFileSync(file, whole)
    expect((await runHere(['sync', file, replica])).exitCode).toBe(0)
    expect(readFileSync(replica).equals(whole)).toBe(true)
  })

  it('a full disk below the replica ends with 4; with room made, the next run ends it', () => {
    const test = 'cli: full disk of a replica'
    if (!hasTool('unshare', test)) return
    const source = place.makeDisk('a.raw', 4 * MIB, 4 * MIB)
    const script = `
      mount -t tmpfs -o size=2m tmpfs "$PLACE" || exit 99
      "$NODE" "$MAIN" sync --json "$SOURCE" "$PLACE/b.raw"; echo "exit $?"
      mount -o remount,size=16m "$PLACE" || exit 99
      "$NODE" "$MAIN" sync --json "$SOURCE" "$PLACE/b.raw"; echo "exit $?"
      cmp "$SOURCE" "$PLACE/b.raw" && echo same`
    mkdirSync(place.path('small'))
    const env = {
      ...process.env,
      PLACE: place.path('small'),
      NODE: process.execPath,
      MAIN: main,
      SOURCE: source,
    }
    const args = ['--mount', '--map-root-user', 'sh', '-c', script]
    const { status, stdout, stderr } = spawnSync('unshare', args, { encoding: 'utf8', env })
    if (status === 99 || stderr.startsWith('unshare:')) return skip(test, 'no mount namespace here')
    const [failed, first, done, second, same] = stdout.trimEnd().split('\n')
    expect([first, second, same]).toEqual(['exit 4', 'exit 0', 'same'])
    expect(JSON.parse(failed ?? '')).toMatchObject({ error: { code: 'DISK_FULL' } })
    expect(JSON.parse(done ?? '')).toMatchObject({ differentBytes: expect.any(Number) })
  })
})

describe('the command line', () => {
  it.each([
    [['sync', 'a', 'b', '--chunk', '5000']],
    [['sync', 'a', 'b', '--chunk', '8388608']],
    [['verify', 'a', 'b', '--threads', '0']],
    [['verify', 'a', 'b', '--threads', '65']],
    [['sync', 'a', 'b', '--digest', 'md5']],
    [['sync', 'a', 'b', '--progress', 'often']],
    [['sync', 'a']],
    [['sync', 'a', 'b', 'c']],
    [['log', 'apply', 'a.hrl']],
    [['log', 'export', 'a.hrl', 'b.hrl']],
    [['nonsense']],
    [['log', 'nonsense']],
  ])('%j ends with 2, one line that says why, and a hint', (args) => {
    const { status, stdout, stderr } = run(...args)
    expect(status).toBe(2)
    expect(stdout).toBe('')
    const [error, hint, ...rest] = stderr.trimEnd().split('\n')
    expect(error).toMatch(/^error OPTION_OUT_OF_RANGE: /)
    expect(hint).toMatch(/^hint: .|^\(--help/)
    expect(rest).toEqual([])
  })

  it.each([
    [['sync']],
    [['verify']],
    [['log']],
    [['log', 'show']],
    [['log', 'verify']],
    [['log', 'apply']],
    [['log', 'export']],
    [['plan']],
    [['plan', 'check']],
    [['plan', 'run']],
    [['plan', 'continue']],
    [['plan', 'list']],
    [['plan', 'report']],
    [['plan', 'abandon']],
    [['demo']],
    [[]],
  ])('%j --help has an example of that verb and all exit codes', (verb) => {
    const { status, stdout, stderr } = run(...verb, '--help')
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(stdout).toMatch(new RegExp(`Examples?:\n  secondsite ${verb.join(' ')}`))
    for (const code of ['0', '1', '2', '3', '4', '5', '130'])
      expect(stdout).toMatch(new RegExp(` ${code}  \\w`))
  })
})

/** A copy of `from` with its index and with `bytes` at `offset`. */
function spoiled(from: string, offset: number, bytes: number[]): string {
  const path = place.path('bad.hrl')
  const content = readFileSync(from)
  content.set(bytes, offset)
  mkdirSync(place.folder, { recursive: true })
  writeFileSync(path, content)
  const index = from.replace(/hrl$/, 'hrx')
  if (existsSync(index)) copyFileSync(index, place.path('bad.hrx'))
  return path
}

const places = (entries: Record<string, unknown>[]) =>
  entries.map(({ offset, lengthBytes }) => [offset, lengthBytes])

describe('a log', () => {
  const genuine = join(vectors, 'hyperv-v2.hrl')
  const ours = join(vectors, 'profile-1.hrl')

  it('that is none is refused by name, not shown', async () => {
    const path = place.makeDisk('noise.hrl', 8 * KIB, 8 * KIB)
    expect(await refusal(3, 'log', 'show', path)).toMatchObject({ code: 'LOG_NOT_HRL', details: { path } })
    expect(await refusal(3, 'log', 'export', path, place.path('o.hrl'), '--strict')).toMatchObject({
      code: 'LOG_NOT_HRL',
    })
    expect(existsSync(place.path('o.hrl'))).toBe(false)
    writeFileSync(path, '')
    expect(await refusal(3, 'log', 'show', path)).toMatchObject({ code: 'LOG_NOT_HRL' })
    expect(await refusal(3, 'log', 'show', `${path}.none`)).toMatchObject({ code: 'PATH_NOT_FOUND' })
  })

  it('is not exported over something that is there', async () => {
    const out = place.makeDisk('o.hrl', 512)
    const before = digest(out)
    expect(await refusal(3, 'log', 'export', genuine, out, '--strict')).toMatchObject({ code: 'PATH_EXISTS' })
    expect(digest(out)).toBe(before)
  })

  it('with a rotten entry shows the entries before it, then where and why it stops, and ends with 1', async () => {
    const all = (await runHere(['log', 'show', '--entries', '--json', genuine])).objects.slice(1, -1)
    const { header } = (await runHere(['log', 'show', '--json', genuine])).objects[0] as {
      header: { endOfLog: number; metadataSizeBytes: number }
    }
    // The last block stands before the end of the log; its first entry is 32 bytes into it ([MS-HRL] 2.3, 2.4).
    const rotten = header.endOfLog - header.metadataSizeBytes + 32
    const path = spoiled(genuine, rotten + 1, [0xab])
    const { exitCode, objects } = await runHere(['log', 'show', '--entries', '--json', path])
    expect(exitCode).toBe(1)
    const last = objects.at(-1) as { entryCount: number }
    expect(last).toMatchObject({ error: { code: 'LOG_CORRUPT', details: { path, offset: rotten } } })
    expect(objects.slice(1, -1)).toEqual(all.slice(0, last.entryCount))
    const text = (await runHere(['log', 'show', '--entries', path])).said.join('\n')
    expect(text).toContain(`${last.entryCount} entries; then LOG_CORRUPT: `)
  })

  it('of ours with a rotten index record hides no entry', async () => {
    const all = (await runHere(['log', 'show', '--entries', '--json', ours])).objects.slice(1, -1)
    const path = spoiled(ours, 0, [])
    const index = readFileSync(place.path('bad.hrx'))
    index[4096 + 64 + 8] = (index[4096 + 64 + 8] ?? 0) ^ 1
    writeFileSync(place.path('bad.hrx'), index)
    const { exitCode, objects } = await runHere(['log', 'show', '--entries', '--json', path])
    expect(exitCode).toBe(1)
    expect(places(objects.slice(1, -1))).toEqual(places(all))
  })

  it.each([
    ['a newer version', 10, [9], 'LOG_VERSION_UNSUPPORTED', 3],
    ['a header checksum that is wrong', 100, [0xee], 'LOG_HEADER_CORRUPT', 1],
  ])('with %s is not applied, and the image stays as it is', async (_name, offset, bytes, code, status) => {
    const path = spoiled(genuine, offset, bytes)
    const image = place.makeDisk('i.raw', 64 * MIB, MIB)
    const before = digest(image)
    const { failures, exitCode } = await runHere(['log', 'apply', path, image])
    expect(failures).toMatchObject([{ code }])
    expect(exitCode).toBe(status)
    expect(digest(image)).toBe(before)
  })

  it('that ends before its end is named with the offset', async () => {
    const path = spoiled(genuine, 0, [])
    truncateSync(path, readFileSync(path).length - 512)
    const { exitCode, objects } = await runHere(['log', 'show', '--json', path])
    expect(exitCode).toBe(1)
    expect(objects).toMatchObject([{ damage: [{ code: 'LOG_CORRUPT', path, isTorn: false }] }])
    const verified = await runHere(['log', 'verify', path, genuine])
    expect(verified.exitCode).toBe(1)
    expect(verified.said.join('\n')).toMatch(/bad\.hrl: LOG_CORRUPT: .*past the end[^]*hyperv-v2\.hrl: good/)
  })

  it('does not follow itself', async () => {
    const { exitCode, said } = await runHere(['log', 'verify', genuine, genuine])
    expect(exitCode).toBe(1)
    expect(said.join('\n')).toMatch(/chain: LOG_CHAIN_(FORK|GAP): /)
  })
})
