/**
 * The pool of worker threads: everything that takes long or reads many bytes runs here, never on the engine's thread.
 *
 * Every limit is set: threads, queue, heap of a worker. A task is stopped softly, through a flag in shared memory that it
 * looks at, because stopping a thread from outside would end native code in the middle of a write. A queued task that is
 * stopped never starts; a running one is waited for, so when `run` has settled nothing touches the task's files any
 * more. A worker that dies takes its task with it (WORKER_DIED), and another takes its place.
 *
 * Which pool does what: file and native calls of tasks run in these threads, synchronously; libuv's four threads serve
 * only `fs` promises and dns of the engine's thread.
 */

import { availableParallelism } from 'node:os'
import { Piscina } from 'piscina'
import { abortedError, fromPlainError, SecondsiteError, throwIfAborted } from '../errors.js'
import { type ArgsOf, type ResultOf, TASK_FLAG, type TaskReply, type TaskTable } from './task.js'
import type { Tasks } from './tasks.js'

/** Tasks that may wait for a thread; more are refused with LIMIT_EXCEEDED. */
export const POOL_QUEUE_MAX = 1024
/** Idle threads end after a minute: starting one costs some 30 ms, keeping one some 10 MiB. */
const IDLE_TIMEOUT_MS = 60_000
/** JavaScript heap of a worker; buffers of frames lie outside of it. */
const WORKER_HEAP_MIB_MAX = 256

/** Options of a pool. */
export interface PoolOptions {
  /** 1 to 64, default the number of processors, at least 2. */
  readonly threadCountMax?: number
  /** Default {@link POOL_QUEUE_MAX}. */
  readonly queueLengthMax?: number
  /** The worker file, default that of the built package. A test gives its own, with its own table. */
  readonly workerUrl?: URL
  /** Uses the threads and the queue of that pool, which stays open longer than this one; the other options say nothing then. */
  readonly threadsOf?: WorkerPool | undefined
}

/** How an engine or a replica is told which threads to use. */
interface ThreadOptions {
  readonly threadCountMax?: number
  readonly threadsOf?: WorkerPool
}

/** Options of one task. */
export interface RunOptions {
  readonly signal?: AbortSignal | undefined
  /** Buffers to move to the worker instead of copying them; the caller must not use them any more. */
  readonly transfer?: readonly ArrayBuffer[] | undefined
}

/** Runs the tasks of a table in worker threads. */
export class WorkerPool<Table extends TaskTable = Tasks> {
  readonly #piscina: Threads
  readonly #isBorrower: boolean
  /** Tasks of a borrower that have not settled: its close waits for them alone. */
  readonly #borrowed = new Set<Promise<unknown>>()
  #isClosed = false

  constructor(options: PoolOptions = {}) {
    this.#isBorrower = options.threadsOf !== undefined
    this.#piscina = options.threadsOf ? options.threadsOf.#piscina : startThreads(options)
  }

  /** Tasks that wait for a thread. */
  get queueLength(): number {
    return this.#piscina.queueSize
  }

  /**
   * Carries out a task of the table.
   *
   * @throws {ABORTED} when `signal` was aborted and the task has not begun, or has ended because of it
   * @throws {WORKER_DIED} when the thread ended in the middle; how far the task came is unknown, running it again is safe
   * @throws {LIMIT_EXCEEDED} when too many tasks wait
   * @throws what the task threw, as a coded error
   */
  async run<Name extends keyof Table & string>(
    name: Name,
    args: ArgsOf<Table, Name>,
    options: RunOptions = {},
  ): Promise<ResultOf<Table, Name>> {
    throwIfAborted(options.signal)
    if (this.#isClosed) throw new SecondsiteError('ABORTED', { message: 'the pool is closed' })
    const flag = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
    const transferList = [...(options.transfer ?? [])]
    const running = this.#piscina.run({ name, args, flag }, { transferList })
    if (this.#isBorrower) this.#note(running)
    const reply = await stoppable(running.catch(rethrowOf(name)), flag, options.signal)
    if ('error' in reply) throw fromPlainError(reply.error)
    return reply.value as ResultOf<Table, Name>
  }

  /** Waits for running and queued tasks, then ends the threads that are its own; tasks given later are refused with ABORTED. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await (this.#isBorrower ? Promise.allSettled(this.#borrowed) : this.#piscina.close())
  }

  #note(running: Promise<unknown>): void {
    this.#borrowed.add(running)
    const forget = (): void => void this.#borrowed.delete(running)
    running.then(forget, forget)
  }
}

/** The pool that somebody who was given these options works with; its close is theirs to call. */
export function poolOf({ threadCountMax, threadsOf }: ThreadOptions): WorkerPool {
  return new WorkerPool({ ...(threadCountMax === undefined ? {} : { threadCountMax }), threadsOf })
}

type Threads = Piscina<unknown, TaskReply>

function startThreads({ workerUrl, threadCountMax, queueLengthMax }: PoolOptions): Threads {
  const url = workerUrl ?? new URL('./worker.js', import.meta.url)
  const threads: Threads = new Piscina({
    filename: url.href,
    minThreads: 1,
    maxThreads: threadCountMax ?? Math.max(2, availableParallelism()),
    maxQueue: queueLengthMax ?? POOL_QUEUE_MAX,
    idleTimeout: IDLE_TIMEOUT_MS,
    // 'sync' would make a worker's event loop wait inside Atomics.wait.
    atomics: 'disabled',
    resourceLimits: { maxOldGenerationSizeMb: WORKER_HEAP_MIB_MAX },
  })
  // A worker that dies with no task is replaced when it is needed; unheard, its error would end the process.
  threads.on('error', () => {})
  return threads
}

/** The reply, or ABORTED as soon as `signal` stops the task before it began. */
function stoppable(running: Promise<TaskReply>, flag: Int32Array, signal?: AbortSignal): Promise<TaskReply> {
  if (signal === undefined) return running
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      if (Atomics.exchange(flag, 0, TASK_FLAG.stopped) === TASK_FLAG.queued)
        reject(abortedError(signal.reason))
    }
    signal.addEventListener('abort', onAbort, { once: true })
    running.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/** What piscina rejects with: a full queue, arguments that cannot be copied, or a thread that has ended. */
function rethrowOf(task: string): (thrown: unknown) => never {
  return (thrown) => {
    const reason = thrown instanceof Error ? thrown.message : String(thrown)
    if (reason === 'Task queue is at limit') {
      throw new SecondsiteError('LIMIT_EXCEEDED', {
        message: `too many tasks wait, ${task} was refused`,
        cause: thrown,
      })
    }
    if (thrown instanceof Error && thrown.name === 'DataCloneError') {
      throw new TypeError(`arguments of ${task} cannot be copied: ${reason}`, { cause: thrown })
    }
    const details = { task, reason }
    throw new SecondsiteError('WORKER_DIED', {
      message: `worker died in ${task}: ${reason}`,
      details,
      cause: thrown,
    })
  }
}
