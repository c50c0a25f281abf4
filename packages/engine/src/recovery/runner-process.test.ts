import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { systemClock } from '../clock.js'
import {
  awaitEnd,
  isRunning,
  killLeft,
  processesOf,
  runToEnd,
  signalProcess,
  type StartedProcess,
  startProcess,
} from './runner-process.js'

let folder: string
let started: StartedProcess[]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'secondsite-process-'))
  started = []
})

afterEach(() => {
  for (const one of started) signalProcess(one, 'SIGKILL')
  rmSync(folder, { recursive: true, force: true })
})

/** A busy machine takes its time. */
const WAIT = { timeout: 30_000 }
const SLEEP = ['/bin/sh', '-c', 'sleep 600 & sleep 600; :']

async function start(words: readonly string[], token = 'none') {
  const environment = { SECONDSITE_RUN_TOKEN: token }
  const one = await startProcess({ words, directory: '/', environment, logPath: join(folder, 'log') })
  started.push(one)
  return one
}

describe('a process of a run', () => {
  it('is found by its token with all it has started, and nothing else is', async () => {
    const token = `token-${process.pid}`
    const [ours, other] = [await start(SLEEP, token), await start(SLEEP, `${token}0`)]
    await expect.poll(() => processesOf(token).length, WAIT).toBe(3)
    killLeft(token)
    expect(await awaitEnd(ours, 20_000, systemClock)).toBe(true)
    await expect.poll(() => processesOf(token), WAIT).toEqual([])
    expect(isRunning(other)).toBe(true)
  })

  it('is not signalled when its number belongs to a later one', async () => {
    const one = await start(SLEEP)
    signalProcess({ ...one, identity: `${one.identity}0` }, 'SIGKILL')
    signalProcess({ ...one, identity: '' }, 'SIGKILL')
    expect(isRunning(one)).toBe(true)
    signalProcess(one, 'SIGTERM')
    expect((await one.ended).endSignal).toBe('SIGTERM')
    expect(isRunning(one)).toBe(false)
  })

  it('that there is no program for is told apart', async () => {
    await expect(start(['/no/such/program'])).rejects.toMatchObject({ code: 'RUNNER_NOT_FOUND' })
    await expect(start([folder])).rejects.toMatchObject({ code: 'RUNNER_FAILED' })
  })
})

describe('a command', () => {
  const call = { directory: '/', environment: {}, limitMs: 30_000, clock: systemClock }

  it('gives its exit code and the end of what it wrote; its input is what it was given', async () => {
    const words = ['/bin/sh', '-c', 'cat; echo oops >&2; exit 3']
    expect(await runToEnd({ ...call, words, input: 'hello\n' })).toEqual({
      exitCode: 3,
      output: 'hello\noops',
      standardOutput: 'hello\n',
    })
  })

  it('gives all of a long output, but shows its end only', async () => {
    const words = ['/bin/sh', '-c', 'echo begin; head -c 100000 /dev/zero | tr "\\0" x; echo; echo end']
    const { output, standardOutput } = await runToEnd({ ...call, words })
    expect([output.length, output.endsWith('end')]).toEqual([4000 - 1, true])
    expect([standardOutput.length, standardOutput.startsWith('begin\n')]).toEqual([100_011, true])
  })

  it('that takes too long is ended with all it has started', async () => {
    const token = `late-${process.pid}`
    const environment = { SECONDSITE_RUN_TOKEN: token }
    const late = runToEnd({ ...call, environment, words: SLEEP, limitMs: 50 })
    await expect(late).rejects.toMatchObject({ code: 'RUNNER_FAILED' })
    await expect.poll(() => processesOf(token), WAIT).toEqual([])
  })

  it('that has ended is not waited for until its limit, and what it left behind goes on', async () => {
    const token = `left-${process.pid}`
    const environment = { SECONDSITE_RUN_TOKEN: token }
    const words = ['/bin/sh', '-c', 'sleep 600 >/dev/null 2>&1 & echo started']
    expect(await runToEnd({ ...call, environment, words, limitMs: 2 ** 31 })).toEqual({
      exitCode: 0,
      output: 'started',
      standardOutput: 'started\n',
    })
    expect(processesOf(token)).toHaveLength(1)
    killLeft(token)
  })
})
