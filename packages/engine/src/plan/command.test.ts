import fs from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { systemClock } from '../clock.js'
import { type CommandCall, OUTPUT_BYTES_MAX, runCommand } from './command.js'
import { identityOf, isSameProcess } from '../process-identity.js'

let folder = ''

beforeEach(() => {
  folder = fs.mkdtempSync(join(os.tmpdir(), 'secondsite-command-'))
})

afterEach(() => fs.rmSync(folder, { recursive: true, force: true }))

function call(command: readonly string[], options: Partial<CommandCall> = {}): CommandCall {
  return {
    command,
    directory: folder,
    environment: {},
    input: '',
    timeoutMs: 60_000,
    clock: systemClock,
    signal: new AbortController().signal,
    onSpawn: () => undefined,
    ...options,
  }
}

/** Waits for a file that a command writes: its way to say that it has come so far. */
async function written(name: string): Promise<string> {
  for (;;) {
    const path = join(folder, name)
    const text = fs.existsSync(path) ? fs.readFileSync(path, 'utf8') : ''
    if (text.endsWith('\n')) return text.trim()
    await systemClock.sleep(5)
  }
}

async function isGone(processId: number): Promise<boolean> {
  for (let tries = 0; tries < 400 && identityOf(processId) !== undefined; tries += 1)
    await systemClock.sleep(5)
  return identityOf(processId) === undefined
}

/** A clock whose first timer fires when the test says so, once there is one: a command can be ahead of who has started it. */
function heldClock(): { clock: typeof systemClock; fire: () => Promise<void> } {
  const held: (() => void)[] = []
  const setTimer = (_ms: number, callback: () => void) => {
    held.push(callback)
    return () => undefined
  }
  const fire = async (): Promise<void> => {
    while (held[0] === undefined) await systemClock.sleep(1)
    held[0]()
  }
  return { clock: { ...systemClock, setTimer }, fire }
}

/** A shell that starts a child of its own, tells both numbers, and waits for the child. */
const FAMILY = 'sleep 600 & echo "$!" >child.new; mv child.new child; echo "$$" >leader; wait'

describe('a command', () => {
  it('runs without a shell, in its folder, with variables and input', async () => {
    const script = 'cat; printf "%s|%s|%s" "$1" "$SECONDSITE_RUN" "$(pwd -P)"'
    const command = ['sh', '-c', script, 'sh', '$HOME; `x`']
    const environment = { SECONDSITE_RUN: 'shop-1' }
    const result = await runCommand(call(command, { environment, input: '{"plan":"shop"}' }))
    expect(result).toEqual({
      exitCode: 0,
      output: `{"plan":"shop"}$HOME; \`x\`|shop-1|${fs.realpathSync(folder)}`,
    })
  })

  it('that reads nothing of a large input succeeds', async () => {
    const result = await runCommand(call(['true'], { input: 'x'.repeat(1 << 20) }))
    expect(result.exitCode).toBe(0)
  })

  it('keeps the end of what it writes, outputs and errors', async () => {
    const script = 'head -c 100000 /dev/zero | tr "\\0" x; echo last >&2'
    const { output } = await runCommand(call(['sh', '-c', script]))
    expect(Buffer.byteLength(output)).toBe(OUTPUT_BYTES_MAX)
    expect(output).toMatch(/^x+last\n$/)
  })

  it.each<[string, readonly string[], object]>([
    ['fails', ['sh', '-c', 'echo why; exit 3'], { exitCode: 3, endSignal: null, output: 'why\n' }],
    ['is killed', ['sh', '-c', 'kill -9 $$'], { exitCode: null, endSignal: 'SIGKILL' }],
    ['is not there', ['./nothing'], { reason: 'ENOENT' }],
    ['is no program', ['/etc'], { reason: 'EACCES' }],
    ['has a folder that is not there', ['true'], { reason: 'ENOENT' }],
  ])('that %s says why', async (what, command, details) => {
    const directory = what.includes('folder') ? join(folder, 'nowhere') : folder
    await expect(runCommand(call(command, { directory }))).rejects.toMatchObject({
      code: 'PLAN_ACTION_FAILED',
      details: { command, ...details },
    })
  })

  it('that takes too long is ended with all it has started', async () => {
    const { clock, fire } = heldClock()
    const running = runCommand(call(['sh', '-c', FAMILY], { clock }))
    const outcome = expect(running).rejects.toMatchObject({
      code: 'PLAN_ACTION_TIMEOUT',
      details: { timeoutSeconds: 60 },
    })
    const [leader, child] = [Number(await written('leader')), Number(await written('child'))]
    await fire()
    await outcome
    expect(await isGone(leader)).toBe(true)
    expect(await isGone(child)).toBe(true)
  })

  it('that does not listen to SIGTERM is killed, and so is a child that does not', async () => {
    const stop = new AbortController()
    const script = `trap "" TERM; ${FAMILY.replace('sleep 600', 'sh -c "while :; do sleep 1; done"')}; wait`
    // The grace is five seconds by the clock; this one is always far ahead.
    let nowMs = 0
    const clock = { ...systemClock, nowMs: () => (nowMs += 3000) }
    const running = runCommand(call(['sh', '-c', script], { signal: stop.signal, clock }))
    const outcome = expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    const [leader, child] = [Number(await written('leader')), Number(await written('child'))]
    stop.abort()
    await outcome
    expect(await isGone(leader)).toBe(true)
    expect(await isGone(child)).toBe(true)
  })

  it('may leave a service behind that holds its output, which is not waited for', async () => {
    const script = 'sleep 600 & echo "$!" >child.new; mv child.new child; echo started'
    const result = await runCommand(call(['sh', '-c', script]))
    const child = Number(await written('child'))
    try {
      expect(result).toEqual({ exitCode: 0, output: 'started\n' })
      expect(identityOf(child)).toBeDefined()
    } finally {
      process.kill(child, 'SIGKILL')
    }
  })

  it('does not start when the run has been stopped', async () => {
    const signal = AbortSignal.abort()
    await expect(runCommand(call(['sh', '-c', 'echo x >ran'], { signal }))).rejects.toMatchObject({
      code: 'ABORTED',
    })
    expect(fs.existsSync(join(folder, 'ran'))).toBe(false)
  })

  it('is killed when the journal refuses its process', async () => {
    let processId = 0
    const onSpawn = (spawned: { processId: number }): void => {
      processId = spawned.processId
      throw new Error('disk full')
    }
    await expect(runCommand(call(['sleep', '600'], { onSpawn }))).rejects.toThrow('disk full')
    expect(await isGone(processId)).toBe(true)
  })
})

describe('the identity of a process', () => {
  it('is its own while it runs, and nobody’s afterwards', async () => {
    let seen = { processId: 0, identity: '' }
    const running = runCommand(call(['cat'], { onSpawn: (spawned) => (seen = spawned) }))
    await running
    expect(seen.identity).toMatch(/^[0-9a-f-]{36}\/\d+$/)
    expect(isSameProcess(seen.processId, seen.identity)).toBe(false)
    expect(isSameProcess(process.pid, identityOf(process.pid) ?? '')).toBe(true)
    expect(isSameProcess(process.pid, seen.identity)).toBe(false)
    expect(isSameProcess(process.pid, '')).toBe(false)
  })
})
