/**
 * The worker's side: finds the function of a request in its table, runs it, and answers with data.
 */

import { move } from 'piscina'
import { transferableSymbol, valueSymbol } from 'piscina'
import { SecondsiteError, toPlainError } from '../errors.js'
import {
  contextOf,
  TASK_FLAG,
  type Task,
  type TaskReply,
  type TaskRequest,
  type TaskTable,
  Transferred,
} from './task.js'

/**
 * The function that a worker file exports: `export default dispatcher(table)`.
 *
 * It never throws: whatever goes wrong is an answer. A caller's mistake, a TypeError, arrives as INTERNAL.
 */
export function dispatcher(tasks: TaskTable): (request: TaskRequest) => Promise<TaskReply> {
  return async (request) => {
    try {
      return replyOf(await start(tasks, request))
    } catch (error) {
      return { error: toPlainError(error) }
    }
  }
}

function start(tasks: TaskTable, { name, args, flag }: TaskRequest): unknown {
  // A task stopped while it was queued has been answered already; it must not touch anything.
  const before = Atomics.compareExchange(flag, 0, TASK_FLAG.queued, TASK_FLAG.running)
  if (before === TASK_FLAG.stopped)
    throw new SecondsiteError('ABORTED', { message: 'stopped before it began' })
  const task: Task | undefined = Object.hasOwn(tasks, name) ? tasks[name] : undefined
  if (task === undefined) throw new TypeError(`there is no task ${name}`)
  return task(args as never, contextOf(flag))
}

function replyOf(result: unknown): TaskReply {
  if (!(result instanceof Transferred)) return { value: result }
  const reply = {
    get [transferableSymbol]() {
      return result.buffers
    },
    get [valueSymbol]() {
      return { value: result.value }
    },
  }
  return move(reply as never) as unknown as TaskReply
}
