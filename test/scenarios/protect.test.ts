import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, rmSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MIB, Workplace } from './workplace.js'

const cli = join(import.meta.dirname, '../../packages/cli/dist/main.js')

let place: Workplace
let children: ChildProcess[]

beforeEach(() => {
  place = new Workplace()
  children = []
})

afterEach(async () => {
  for (const child of children) await kill(child, 'SIGKILL')
  place.remove()
})

async function kill(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode
  const ended = once(child, 'exit')
  child.kill(signal)
  return (await ended)[0] as number | null
}

/** The objects that a `protect --json` prints, as they come. */
class Protect {
  readonly child: ChildProcess
  readonly events: number[] = []
  /** What cuts on demand were. */
  readonly cuts: string[] = []
  uris: string[] = []
  readonly ready: Promise<string>
  errors = ''

  constructor(disks: readonly string[], more: readonly string[] = [], environment: NodeJS.ProcessEnv = {}) {
    const options = ['--replica', place.path('replica'), '--state', place.path('state'), '--json']
    const args = ['protect', ...disks, ...options, '--nbd', `unix:${place.path('nbd.sock')}`, ...more]
    this.child = spawn(process.execPath, [cli, ...args, '--ready-fd', '3'], {
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...environment },
    })
    children.push(this.child)
    createInterface({ input: this.child.stdout as Readable }).on('line', (line) => this.#take(line))
    this.child.stderr?.on('data', (piece: Buffer) => (this.errors += piece.toString()))
    const pipe = this.child.stdio[3] as Readable
    this.ready = once(pipe, 'data').then(([piece]) => String(piece))
    this.ready.catch(() => {})
  }

  #take(line: string): void {
    const object = JSON.parse(line) as {
      event?: { id: number }
      exported?: { uris: string[] }
      cut?: { pointKind: string }
    }
    if (object.cut) this.cuts.push(object.cut.pointKind)
    if (object.event) this.events.push(object.event.id)
    if (object.exported) this.uris = object.exported.uris
  }

  async exit(): Promise<number | null> {
    if (this.child.exitCode !== null) return this.child.exitCode
    return (await once(this.child, 'close'))[0] as number | null
  }
}

function equals(names: readonly string[]): boolean {
  try {
    place.expectEqual(names)
    return true
  } catch {
    return false
  }
}

/** A client that writes. */
function fio(uri: string, runtimeSeconds: number): ChildProcess {
  const args = ['--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bs=4k', '--iodepth=8', '--size=32M']
  const load = ['--time_based', `--runtime=${runtimeSeconds}`, '--rate=8m', '--thread', '--name=load']
  const child = spawn('fio', [...args, ...load], { stdio: 'ignore', cwd: place.folder })
  children.push(child)
  return child
}

describe('protect', () => {
  it('serves the guest first, copies while it writes, goes on after a kill, and ends in order', async () => {
    const disk = place.makeDisk('web01.raw', 64 * MIB, 32 * MIB)
    const first = new Protect([disk], ['--every', '1s'])
    expect(await first.ready).toBe('READY=1\n')
    const load = fio(first.uris[0] ?? '', 60)
    await expect.poll(() => first.events, { timeout: 100_000 }).toContain(40003)
    await kill(first.child, 'SIGKILL')
    await kill(load, 'SIGKILL')

    const second = new Protect([disk], ['--every', '1s', '--threshold', '90'])
    expect(await second.ready).toBe('READY=1\n')
    expect(second.events).toEqual([40014])
    await once(fio(second.uris[0] ?? '', 2), 'exit')
    expect(await kill(second.child, 'SIGTERM')).toBe(0)
    expect(second.events.filter((id) => id === 40007)).toEqual([])

    const third = new Protect([disk], ['--every', '1s'])
    await third.ready
    expect(third.events).toEqual([])
    await expect.poll(() => equals(['web01.raw']), { timeout: 100_000 }).toBe(true)
    expect(await kill(third.child, 'SIGINT')).toBe(0)
    expect(existsSync(place.path('nbd.sock'))).toBe(false)
  })

  it('brings applications to rest by the hook that it is given, and cuts on demand', async () => {
    const disk = place.makeDisk('web01.raw', 8 * MIB, 4 * MIB)
    const notes = place.path('notes')
    const note = (what: string): string => JSON.stringify(['/bin/sh', '-c', `echo ${what} >>${notes}`])
    const hook = ['--quiesce-freeze', note('freeze'), '--quiesce-thaw', note('thaw')]
    const protect = new Protect([disk], ['--every', '1h', ...hook])
    await protect.ready
    await expect.poll(() => protect.events, { timeout: 100_000 }).toContain(40003)
    protect.child.kill('SIGUSR2')
    await expect.poll(() => protect.cuts, { timeout: 100_000 }).toEqual(['application-consistent'])
    expect(protect.events).toContain(40030)
    expect(readFileSync(notes, 'utf8')).toBe('freeze\nthaw\n')
    expect(await kill(protect.child, 'SIGTERM')).toBe(0)
  })

  it('takes a disk that has shrunk, and makes a lost image anew, where it is told to and not before', async () => {
    const disk = place.makeDisk('web01.raw', 8 * MIB, 4 * MIB)
    const often = ['--every', '1s']
    const copied = new Protect([disk], often)
    await expect.poll(() => copied.events, { timeout: 100_000 }).toContain(40003)
    expect(await kill(copied.child, 'SIGTERM')).toBe(0)

    truncateSync(disk, 4 * MIB)
    const surprised = new Protect([disk], often)
    expect(await surprised.exit()).not.toBe(0)
    expect(surprised.errors).toContain('DISK_SIZE_DIFFERS')
    expect(statSync(place.path('replica/web01.raw.raw')).size).toBe(8 * MIB)
    const told = new Protect([disk], [...often, '--accept-shrink', 'web01.raw=4MiB'])
    expect(await told.ready).toBe('READY=1\n')
    await expect
      .poll(() => statSync(place.path('replica/web01.raw.raw')).size, { timeout: 100_000 })
      .toBe(4 * MIB)
    expect(await kill(told.child, 'SIGTERM')).toBe(0)

    rmSync(place.path('replica/web01.raw.raw'))
    const again = new Protect([disk], [...often, '--recreate-images'])
    await again.ready
    await expect.poll(() => equals(['web01.raw']), { timeout: 100_000 }).toBe(true)
    expect(again.events).toContain(40017)
    expect(await kill(again.child, 'SIGTERM')).toBe(0)
  })

  it('tells the service manager when the guest can attach, and when it stops', async () => {
    const socket = place.path('notify.sock')
    const program = `import socket,sys
s=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1]); print('listening', flush=True)
for n in range(2): print(s.recv(100).decode(), flush=True)`
    const manager = spawn('python3', ['-c', program, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
    children.push(manager)
    const told = createInterface({ input: manager.stdout })[Symbol.asyncIterator]()
    expect((await told.next()).value).toBe('listening')
    const run = new Protect([place.makeDisk('a.raw', MIB)], [], { NOTIFY_SOCKET: socket })
    expect((await told.next()).value).toBe('READY=1')
    await run.ready
    expect(await kill(run.child, 'SIGTERM')).toBe(0)
    expect((await told.next()).value).toBe('STOPPING=1')
  })

  it('refuses what makes no sense, and leaves what is there', async () => {
    const disk = place.makeDisk('a.raw', MIB)
    const running = new Protect([disk])
    await running.ready
    const second = new Protect([disk])
    expect(await second.exit()).toBe(3)
    expect(second.errors).toMatch(/STATE_IN_USE.*process \d+/)
    await kill(running.child, 'SIGTERM')

    const other = new Protect([place.makeDisk('b.raw', MIB)], ['--name', 'a'])
    expect(await other.exit()).toBe(3)
    expect(other.errors).toMatch(/MACHINE_EXISTS: a is protected already, with .*a\.raw/)
    for (const more of [
      ['--every', 'soon'],
      ['--threshold', '101'],
      ['--spin', '5000'],
    ]) {
      const refused = new Protect([disk], more)
      expect(await refused.exit(), more.join(' ')).toBe(2)
      expect(refused.errors).toMatch(/OPTION_OUT_OF_RANGE/)
    }
  })
})
