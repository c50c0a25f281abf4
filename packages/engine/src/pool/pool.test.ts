import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { SeededRandom } from '../random.js'
import { WorkerPool } from './pool.js'
import type { TaskContext } from './task.js'
import type { Tasks } from './tasks.js'

// Workers run from the built package: they do not pass through vitest.
const dist = new URL('../../dist/pool/', import.meta.url)
const folder = mkdtempSync(join(tmpdir(), 'secondsite-pool-'))
const pools: WorkerPool<never>[] = []

/** Tasks that misbehave; the worker file below holds their bodies. */
type BadTasks = {
  echo: (args: unknown) => unknown
  die: (args: null) => never
  fillHeap: (args: null) => never
  fail: (args: null) => never
  failOddly: (args: null) => never
  waitForStop: (args: { started: Int32Array }, context: TaskContext) => never
  touch: (args: { path: string }) => void
}

beforeAll(() => {
  writeFileSync(
    join(folder, 'bad-worker.mjs'),
    `import { writeFileSync } from 'node:fs'
    import { dispatcher } from ${JSON.stringify(new URL('dispatch.js', dist).href)}
    import { SecondsiteError } from ${JSON.stringify(new URL('../errors.js', dist).href)}
    export default dispatcher({
      echo: (args) => args,
      die: () => process.exit(3),
      fillHeap: () => { const held = []; for (;;) held.push(new Array(100000).fill(held.length + 0.5)) },
      fail: () => { throw new SecondsiteError('LOG_CORRUPT', { message: 'bad entry', details: { offset: 4096 } }) },
      failOddly: () => { throw 'no error at all' },
      waitForStop: ({ started }, context) => {
        Atomics.store(started, 0, 1)
        for (;;) { Atomics.wait(started, 0, 1, 1); context.throwIfStopped() }
      },
      touch: ({ path }) => writeFileSync(path, ''),
    })`,
  )
})

afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close()))
})

afterAll(() => rmSync(folder, { recursive: true, force: true }))

function framePool(): WorkerPool<Tasks> {
  const pool = new WorkerPool<Tasks>({ threadCountMax: 2, workerUrl: new URL('worker.js', dist) })
  pools.push(pool as never)
  return pool
}

function badPool(options = {}): WorkerPool<BadTasks> {
  const workerUrl = pathToFileURL(join(folder, 'bad-worker.mjs'))
  const pool = new WorkerPool<BadTasks>({ threadCountMax: 1, workerUrl, ...options })
  pools.push(pool as never)
  return pool
}

function file(name: string, bytes: Uint8Array): string {
  const path = join(folder, name)
  writeFileSync(path, bytes)
  return path
}

async function started(flag: Int32Array): Promise<void> {
  while (Atomics.load(flag, 0) === 0) await new Promise((resolve) => setTimeout(resolve, 2))
}

const sharedFlag = (): Int32Array => new Int32Array(new SharedArrayBuffer(4))

describe('frame tasks', () => {
  it.each(['adaptive', 'lz4', 'zstd', 'none'] as const)(
    'carry a file over slice by slice, compression %s',
    async (compression) => {
      const pool = framePool()
      const bytes = Buffer.concat([new SeededRandom(7).bytes(300_001), Buffer.alloc(400_000, 'abcd')])
      const source = file(`source-${compression}`, bytes)
      const target = file(`target-${compression}`, new Uint8Array(0))
      const offsets = Array.from({ length: Math.ceil(bytes.length / 100_000) }, (_, index) => index * 100_000)
      await Promise.all(
        offsets.toReversed().map(async (offset) => {
          const lengthBytes = Math.min(100_000, bytes.length - offset)
          const { body, rawBytes } = await pool.run('encodeFrame', {
            path: source,
            offset,
            lengthBytes,
            compression,
          })
          expect(rawBytes).toBe(lengthBytes)
          await pool.run('decodeFrame', { body, path: target, offset, rawBytes }, { transfer: [body.buffer] })
          expect(body.length).toBe(0)
        }),
      )
      expect(readFileSync(target).equals(bytes)).toBe(true)
    },
  )

  it('refuse a slice that the file does not have', async () => {
    const path = file('short', new Uint8Array(1000))
    const run = framePool().run('encodeFrame', { path, offset: 512, lengthBytes: 512, compression: 'none' })
    await expect(run).rejects.toMatchObject({ code: 'LOG_CORRUPT', details: { path, offset: 1000 } })
  })

  it('write nothing of a damaged frame', async () => {
    const pool = framePool()
    const path = file('source', new Uint8Array(4096).fill(1))
    const target = file('untouched', new Uint8Array(4096).fill(9))
    const { body } = await pool.run('encodeFrame', {
      path,
      offset: 0,
      lengthBytes: 4096,
      compression: 'none',
    })
    body[2000] = 2
    const run = pool.run('decodeFrame', { body, path: target, offset: 0, rawBytes: 4096 })
    await expect(run).rejects.toMatchObject({ code: 'FRAME_CORRUPT' })
    expect(readFileSync(target).every((byte) => byte === 9)).toBe(true)
  })

  it('write nothing of a frame that belongs to another place', async () => {
    const pool = framePool()
    const path = file('source', new Uint8Array(4096).fill(1))
    const target = file('untouched', new Uint8Array(4096).fill(9))
    const { body } = await pool.run('encodeFrame', {
      path,
      offset: 0,
      lengthBytes: 2048,
      compression: 'none',
    })
    const elsewhere = pool.run('decodeFrame', { body, path: target, offset: 2048, rawBytes: 2048 })
    await expect(elsewhere).rejects.toMatchObject({ code: 'FRAME_CORRUPT', details: { offset: 2048 } })
    expect(readFileSync(target).every((byte) => byte === 9)).toBe(true)
  })

  it('tell a full disk and a missing file apart, by code', async () => {
    const pool = framePool()
    const path = file('source', new Uint8Array(4096).fill(1))
    const { body } = await pool.run('encodeFrame', {
      path,
      offset: 0,
      lengthBytes: 4096,
      compression: 'none',
    })
    const full = pool.run('decodeFrame', { body, path: '/dev/full', offset: 0, rawBytes: 4096 })
    await expect(full).rejects.toMatchObject({ code: 'REPLICA_DISK_FULL', retryable: 'recoverable' })
    const missing = pool.run('decodeFrame', { body, path: join(folder, 'none'), offset: 0, rawBytes: 4096 })
    await expect(missing).rejects.toMatchObject({ code: 'PATH_NOT_FOUND' })
  })
})

describe('a worker that dies', () => {
  it.each(['die', 'fillHeap'] as const)('by %s fails its task alone; the pool goes on', async (name) => {
    const pool = badPool()
    const death = pool.run(name, null)
    const behind = pool.run('echo', { text: 'still here' })
    await expect(death).rejects.toMatchObject({
      code: 'WORKER_DIED',
      retryable: 'recoverable',
      details: { task: name },
    })
    expect(await behind).toEqual({ text: 'still here' })
    expect(await pool.run('echo', 1)).toBe(1)
  })
})

describe('errors of a task', () => {
  it('arrive with their code and details', async () => {
    await expect(badPool().run('fail', null)).rejects.toMatchObject({
      name: 'SecondsiteError',
      code: 'LOG_CORRUPT',
      details: { offset: 4096 },
    })
  })

  it('that are none arrive as INTERNAL', async () => {
    await expect(badPool().run('failOddly', null)).rejects.toMatchObject({
      code: 'INTERNAL',
      message: 'no error at all',
    })
  })

  it('name a task that the table does not have', async () => {
    await expect(badPool().run('toString' as never, null as never)).rejects.toMatchObject({
      code: 'INTERNAL',
      message: 'there is no task toString',
    })
  })

  it('say when arguments cannot be copied', async () => {
    await expect(badPool().run('echo', () => 1)).rejects.toThrow(TypeError)
  })
})

describe('stopping', () => {
  it('ends a running task through its flag, in the same thread', async () => {
    const pool = badPool()
    const stop = new AbortController()
    const flag = sharedFlag()
    const running = pool.run('waitForStop', { started: flag }, { signal: stop.signal })
    await started(flag)
    stop.abort()
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    expect(await pool.run('echo', 2)).toBe(2)
  })

  it('answers at once for a queued task, which then never runs', async () => {
    const pool = badPool()
    const [stopFirst, stopSecond] = [new AbortController(), new AbortController()]
    const flag = sharedFlag()
    const path = join(folder, 'must-not-exist')
    const running = pool.run('waitForStop', { started: flag }, { signal: stopFirst.signal })
    await started(flag)
    const queued = pool.run('touch', { path }, { signal: stopSecond.signal })
    stopSecond.abort()
    await expect(queued).rejects.toMatchObject({ code: 'ABORTED' })
    stopFirst.abort()
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    await pool.run('echo', 3)
    expect(() => readFileSync(path)).toThrow(/ENOENT/)
  })

  it('before the call refuses it', async () => {
    const run = badPool().run('echo', 1, { signal: AbortSignal.abort() })
    await expect(run).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

describe('limits', () => {
  it('refuse what a full queue cannot take', async () => {
    const pool = badPool({ queueLengthMax: 1 })
    const stop = new AbortController()
    const flag = sharedFlag()
    const running = pool.run('waitForStop', { started: flag }, { signal: stop.signal })
    await started(flag)
    const queued = pool.run('echo', 'queued')
    await expect(pool.run('echo', 'too many')).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    stop.abort()
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' })
    expect(await queued).toBe('queued')
  })

  it('refuse tasks after closing, and wait for those before', async () => {
    const pool = badPool()
    const last = pool.run('echo', 'last')
    await pool.close()
    expect(await last).toBe('last')
    await expect(pool.run('echo', 1)).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

describe('a pool over the threads of another', () => {
  it('refuses tasks after closing and waits for its own before; the other goes on', async () => {
    const owner = badPool()
    const borrower = new WorkerPool<BadTasks>({ threadsOf: owner as never })
    const stop = new AbortController()
    const flag = sharedFlag()
    const theirs = owner.run('waitForStop', { started: flag }, { signal: stop.signal })
    await started(flag)
    let isClosed = false
    const mine = borrower.run('echo', 'mine')
    const closing = borrower.close().then(() => void (isClosed = true))
    await expect(borrower.run('echo', 'late')).rejects.toMatchObject({ code: 'ABORTED' })
    expect(isClosed).toBe(false)
    stop.abort()
    await expect(theirs).rejects.toMatchObject({ code: 'ABORTED' })
    await closing
    expect(await mine).toBe('mine')
    expect(await owner.run('echo', 'still here')).toBe('still here')
  })

  it('waits for no task of the other', async () => {
    const owner = badPool()
    const borrower = new WorkerPool<BadTasks>({ threadsOf: owner as never })
    const stop = new AbortController()
    const flag = sharedFlag()
    const theirs = owner.run('waitForStop', { started: flag }, { signal: stop.signal })
    await started(flag)
    await borrower.close()
    stop.abort()
    await expect(theirs).rejects.toMatchObject({ code: 'ABORTED' })
  })
})
