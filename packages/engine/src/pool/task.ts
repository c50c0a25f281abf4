/**
 * What a task is, and what crosses between the pool and its workers.
 *
 * A task is a function of the task table. It gets plain data and a {@link TaskContext}; it may be synchronous for as long
 * as it likes, which is what workers are for. Errors cross as data, because an Error loses class and code on its way.
 */

import { SecondsiteError, type PlainError } from '../errors.js'

/** States of the flag that pool and worker share. */
export const TASK_FLAG = { queued: 0, running: 1, stopped: 2 } as const

/** What a running task can ask. */
export interface TaskContext {
  /** Whether the caller wants the task to end soon. */
  isStopped(): boolean
  /** @throws {ABORTED} when the caller wants the task to end; call it between pieces of work */
  throwIfStopped(): void
}

/** A function that a worker carries out. Arguments and result are what structured cloning can copy. */
// biome-ignore lint: `never` is what lets every argument type into a table.
export type Task = (args: never, context: TaskContext) => unknown

/** Task name to function. */
export type TaskTable = Readonly<Record<string, Task>>

/** Arguments of a task of a table. */
export type ArgsOf<Tasks extends TaskTable, Name extends keyof Tasks> = Parameters<Tasks[Name]>[0]

/** What running a task of a table gives. */
export type ResultOf<Tasks extends TaskTable, Name extends keyof Tasks> =
  Awaited<ReturnType<Tasks[Name]>> extends Transferred<infer Value> ? Value : Awaited<ReturnType<Tasks[Name]>>

/** A result whose buffers are moved to the caller instead of copied. */
export class Transferred<Value> {
  readonly value: Value
  readonly buffers: readonly ArrayBuffer[]

  constructor(value: Value, buffers: readonly ArrayBuffer[]) {
    this.value = value
    this.buffers = buffers
  }
}

/** What the pool sends to a worker. */
export interface TaskRequest {
  readonly name: string
  readonly args: unknown
  /** An Int32Array of one element, a state of {@link TASK_FLAG}. */
  readonly flag: Int32Array
}

/** What a worker answers. */
export type TaskReply = { readonly value: unknown } | { readonly error: PlainError }

/** The context of the task that `flag` belongs to. */
export function contextOf(flag: Int32Array): TaskContext {
  const isStopped = (): boolean => Atomics.load(flag, 0) === TASK_FLAG.stopped
  return {
    isStopped,
    throwIfStopped() {
      if (isStopped()) throw new SecondsiteError('ABORTED', { message: 'the task was stopped' })
    },
  }
}
