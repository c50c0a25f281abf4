/**
 * Freezing and thawing by real commands: a freeze makes the file `frozen`, a thaw removes it, and both leave a line in a
 * list. What must hold on every bad day: the action is carried out once, and in the end nothing is frozen.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type QuiesceInput, type QuiesceSettings, quiesceSchema } from './settings.js'

// The keeper is a program of the built package.
const built = new URL('../../dist/quiesce/while-frozen.js', import.meta.url).href
const { whileFrozen } = (await import(built)) as typeof import('./while-frozen.js')

let folder: string
const file = (name: string): string => join(folder, name)
const isFrozen = (): boolean => fs.existsSync(file('frozen'))
const done = (): string[] =>
  fs.existsSync(file('done')) ? fs.readFileSync(file('done'), 'utf8').trim().split('\n') : []

function shell(text: string): string[] {
  return ['/bin/sh', '-c', `cd '${folder}' && ${text}`]
}

const FREEZE = 'echo freeze >> done; touch frozen'
const THAW = 'rm -f frozen; echo thaw >> done'

function hook(input: Partial<Record<'freeze' | 'thaw' | 'prepare', string>>, limitS = 30): QuiesceSettings {
  const prepare = input.prepare === undefined ? {} : { prepare: shell(input.prepare) }
  const pair = { freeze: shell(input.freeze ?? FREEZE), thaw: shell(input.thaw ?? THAW) }
  return settings({ method: 'command', ...pair, ...prepare, frozenLimitSeconds: limitS })
}

function settings(input: QuiesceInput): QuiesceSettings {
  return quiesceSchema.parse(input)
}

/** Resolves when `isTrue` does; a test that waits in vain ends by its own limit. */
async function until(isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await sleep(5)
}

/** An action that says whether it was carried out at rest, and how often it was. */
function watcher(): { act: () => Promise<boolean>; count: () => number } {
  let count = 0
  const act = async (): Promise<boolean> => {
    count += 1
    return isFrozen()
  }
  return { act, count: () => count }
}

beforeEach(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'secondsite-quiesce-'))
})

afterEach(() => {
  fs.rmSync(folder, { recursive: true })
})

/** A process that freezes and then acts for ever. */
function engine(freeze: string): ChildProcess {
  const program = `
    const { whileFrozen } = await import(${JSON.stringify(built)})
    const settings = ${JSON.stringify(hook({ freeze }, 60))}
    setInterval(() => {}, 1000)
    await whileFrozen(settings, () => { console.log('acting'); return new Promise(() => {}) })`
  const options = ['--input-type=module', '--eval', program]
  return spawn(process.execPath, options, { stdio: ['ignore', 'pipe', 'inherit'] })
}

function mount(): string | undefined {
  fs.writeFileSync(file('fs.raw'), '')
  fs.truncateSync(file('fs.raw'), 32 << 20)
  fs.mkdirSync(file('mount'))
  const made = spawnSync('mkfs.ext4', ['-q', file('fs.raw')])
  const isMounted =
    made.status === 0 && spawnSync('mount', ['-o', 'loop', file('fs.raw'), file('mount')]).status === 0
  if (isMounted) return file('mount')
  const list = process.env['SECONDSITE_SKIP_LOG']
  if (list) fs.appendFileSync(list, 'quiesce: fsfreeze\tmounting needs root and loop devices\n')
  return undefined
}

async function mounted(test: (mount: string) => Promise<void>): Promise<void> {
  const place = mount()
  if (place === undefined) return
  try {
    await test(place)
  } finally {
    spawnSync('fsfreeze', ['--unfreeze', place])
    spawnSync('umount', [place])
  }
}

describe('a hook that works', () => {
  it('holds the applications still for the action and no longer', async () => {
    const { act, count } = watcher()
    const { result, report } = await whileFrozen(hook({ prepare: 'echo prepare >> done' }), act)
    expect([result, count(), isFrozen()]).toEqual([true, 1, false])
    expect(done()).toEqual(['prepare', 'freeze', 'thaw'])
    expect(report).toMatchObject({ isConsistent: true, isThawed: true, error: null })
    expect(report.frozenMs).toBeGreaterThan(0)
  })

  it('is told what it is run for, and takes words as they are', async () => {
    const words = ['/bin/sh', '-c', `echo "$SECONDSITE_QUIESCE $1" >> '${file('done')}'`, 'sh', "a 'b' $HOME"]
    const { report } = await whileFrozen(
      settings({ method: 'command', freeze: words, thaw: words }),
      watcher().act,
    )
    expect(report.isConsistent).toBe(true)
    expect(done()).toEqual(["freeze a 'b' $HOME", "thaw a 'b' $HOME"])
  })

  it('thaws before the failure of the action is told', async () => {
    const action = async (): Promise<never> => {
      throw new Error(`frozen: ${isFrozen()}`)
    }
    await expect(whileFrozen(hook({}), action)).rejects.toThrow('frozen: true')
    expect(isFrozen()).toBe(false)
  })

  it('keeps what a freeze command leaves running', async () => {
    const freeze = `${FREEZE}; sleep 600 > /dev/null & echo $! > holder`
    const thaw = `kill $(cat holder) && echo held >> done; ${THAW}`
    const { report } = await whileFrozen(hook({ freeze, thaw }), watcher().act)
    expect(report.isConsistent).toBe(true)
    expect(done()).toEqual(['freeze', 'held', 'thaw'])
  })
})

describe('a hook that fails costs consistency, never the action:', () => {
  it('a freeze that says no', async () => {
    const { act, count } = watcher()
    const { result, report } = await whileFrozen(hook({ freeze: `${FREEZE}; echo no room >&2; exit 3` }), act)
    expect([result, count(), isFrozen()]).toEqual([false, 1, false])
    expect(report).toMatchObject({ isConsistent: false, isThawed: true })
    const details = { purpose: 'freeze', program: '/bin/sh', exitCode: 3, output: 'no room' }
    expect(report.error).toMatchObject({ code: 'QUIESCE_FREEZE_FAILED', details })
  })

  it('a program that is not there', async () => {
    const broken = settings({ method: 'command', freeze: ['/nowhere/freeze'], thaw: shell(THAW) })
    const { result, report } = await whileFrozen(broken, watcher().act)
    expect(result).toBe(false)
    const details = { program: '/nowhere/freeze', reason: 'ENOENT' }
    expect(report.error).toMatchObject({ code: 'QUIESCE_FREEZE_FAILED', details })
  })

  it('a preparation that fails: nothing is frozen at all', async () => {
    const { result, report } = await whileFrozen(hook({ prepare: 'exit 1' }), watcher().act)
    expect([result, done(), report.frozenMs]).toEqual([false, [], 0])
    expect(report.error).toMatchObject({ code: 'QUIESCE_FREEZE_FAILED', details: { purpose: 'prepare' } })
  })

  it('a preparation without end', async () => {
    const slow = { ...hook({ prepare: 'sleep 600' }), prepareLimitSeconds: 1 }
    const { report } = await whileFrozen(slow, watcher().act)
    expect(report.error).toMatchObject({ code: 'QUIESCE_TIMEOUT', details: { purpose: 'prepare' } })
  })

  it('a freeze without end: it is ended with everything it started, then thawed', async () => {
    const freeze = 'touch frozen; (sleep 600; echo late >> done) & echo $! > child; wait'
    const { act, count } = watcher()
    const { result, report } = await whileFrozen(hook({ freeze }, 1), act)
    expect([result, count(), done()]).toEqual([false, 1, ['thaw']])
    expect(report.error).toMatchObject({ code: 'QUIESCE_TIMEOUT', details: { purpose: 'freeze' } })
    const child = Number(fs.readFileSync(file('child'), 'utf8'))
    await until(() => hasEnded(child))
  })

  it('a cut that takes longer than the limit: it is thawed in the middle', async () => {
    const action = async (): Promise<boolean> => {
      await until(() => done().includes('thaw'))
      return isFrozen()
    }
    const { result, report } = await whileFrozen(hook({}, 1), action)
    expect([result, done()]).toEqual([false, ['freeze', 'thaw']])
    expect(report).toMatchObject({ isConsistent: false, isThawed: true, error: { code: 'QUIESCE_TIMEOUT' } })
  })

  it('a thaw that fails twice is tried until it works', async () => {
    const thaw = 'echo try >> tries; test $(wc -l < tries) -gt 2 || exit 1; rm -f frozen; echo thaw >> done'
    const { report } = await whileFrozen(hook({ thaw }), watcher().act)
    expect(report).toMatchObject({ isConsistent: true, isThawed: true })
    expect([isFrozen(), done()]).toEqual([false, ['freeze', 'thaw']])
  })
})

describe('the keeper', () => {
  it('is not impressed by signals that ask it to end', async () => {
    let keeper = 0
    const action = async (): Promise<boolean> => {
      for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.kill(keeper, signal)
      return isFrozen()
    }
    const onKeeper = (processId: number | undefined): void => {
      keeper = processId ?? 0
    }
    const { result, report } = await whileFrozen(hook({}), action, undefined, { onKeeper })
    expect([result, report.isConsistent, done()]).toEqual([true, true, ['freeze', 'thaw']])
  })

  it('killed while frozen: the engine thaws', async () => {
    let keeper = 0
    const action = async (): Promise<void> => {
      process.kill(keeper, 'SIGKILL')
    }
    const onKeeper = (processId: number | undefined): void => {
      keeper = processId ?? 0
    }
    const { report } = await whileFrozen(hook({}), action, undefined, { onKeeper })
    expect([isFrozen(), done()]).toEqual([false, ['freeze', 'thaw']])
    expect(report).toMatchObject({ isConsistent: false, isThawed: true, error: { code: 'QUIESCE_LOST' } })
  })

  it('killed in the middle of a freeze: what it ran is ended before the engine thaws', async () => {
    const freeze = 'echo begun >> done; sleep 600; touch frozen'
    let keeper = 0
    const onKeeper = (processId: number | undefined): void => {
      keeper = processId ?? 0
    }
    const running = whileFrozen(hook({ freeze }), watcher().act, undefined, { onKeeper })
    await until(() => done().includes('begun'))
    process.kill(keeper, 'SIGKILL')
    const { result, report } = await running
    expect([result, isFrozen(), done()]).toEqual([false, false, ['begun', 'thaw']])
    expect(report.error).toMatchObject({ code: 'QUIESCE_FREEZE_FAILED' })
  })
})

describe('an aborted signal', () => {
  it('before the action ends everything: nothing is cut, nothing stays frozen', async () => {
    const stopper = new AbortController()
    const { act, count } = watcher()
    const running = whileFrozen(hook({ prepare: 'echo begun >> done; sleep 600' }), act, stopper.signal)
    await until(() => done().includes('begun'))
    stopper.abort()
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    expect([count(), isFrozen()]).toEqual([0, false])
  })
})

describe('the death of the engine', () => {
  it('while frozen (kill -9): the keeper thaws', async () => {
    const child = engine(FREEZE)
    if (child.stdout) await once(createInterface(child.stdout), 'line')
    expect(isFrozen()).toBe(true)
    child.kill('SIGKILL')
    await until(() => done().includes('thaw'))
    expect([isFrozen(), done()]).toEqual([false, ['freeze', 'thaw']])
  })

  it('in the middle of a freeze (kill -9): it is ended, then thawed', async () => {
    const child = engine('touch frozen; echo begun >> done; sleep 600; echo late >> done')
    await until(() => done().includes('begun'))
    child.kill('SIGKILL')
    await until(() => done().includes('thaw'))
    expect([isFrozen(), done()]).toEqual([false, ['begun', 'thaw']])
  })
})

describe('fsfreeze', () => {
  it('lets every writer of a file system wait until it is thawed', () =>
    mounted(async (place) => {
      let writer: ChildProcess | undefined
      const action = async (): Promise<boolean> => {
        writer = spawn('sh', ['-c', `echo written > '${place}/late'`], { stdio: 'ignore' })
        // The writer has reached the kernel, and stands there, when its state is D.
        await until(() => stateOf(writer?.pid ?? 0) === 'D')
        return fs.existsSync(join(place, 'late'))
      }
      const { result, report } = await whileFrozen(settings({ method: 'fsfreeze', mounts: [place] }), action)
      expect([result, report.isConsistent]).toEqual([false, true])
      if (writer?.exitCode === null) await once(writer, 'exit')
      expect(fs.readFileSync(join(place, 'late'), 'utf8')).toBe('written\n')
    }))

  it('notices that somebody else has thawed', () =>
    mounted(async (place) => {
      const action = async (): Promise<void> => {
        expect(spawnSync('fsfreeze', ['--unfreeze', place]).status).toBe(0)
      }
      const { report } = await whileFrozen(settings({ method: 'fsfreeze', mounts: [place] }), action)
      expect(report).toMatchObject({ isConsistent: false, isThawed: true, error: { code: 'QUIESCE_LOST' } })
    }))

  it('thaws the first of two when the second cannot be frozen', () =>
    mounted(async (place) => {
      const mounts = [place, file('nothing')]
      const { report } = await whileFrozen(settings({ method: 'fsfreeze', mounts }), async () => {
        fs.writeFileSync(join(place, 'free'), 'written')
      })
      expect(report).toMatchObject({ isThawed: true, error: { code: 'QUIESCE_FREEZE_FAILED' } })
    }))
})

function hasEnded(processId: number): boolean {
  const state = stateOf(processId)
  return state === undefined || state === 'Z'
}

/** The state of a process as the kernel tells it, one letter; undefined when there is none. */
function stateOf(processId: number): string | undefined {
  try {
    return /^\d+ \(.*\) (\w)/.exec(fs.readFileSync(`/proc/${processId}/stat`, 'utf8'))?.[1]
  } catch {
    return undefined
  }
}
