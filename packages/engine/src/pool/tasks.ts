/**
 * The table of everything that workers do: task name to function.
 *
 * Workers load this file; the engine's thread imports only its type. A new task is one line here and its function in a
 * file of its own.
 */

import { decodeFrameTo, type EncodeFrameArgs, encodeFrameOf } from './frame-files.js'
import { callNative } from './native-task.js'
import { type TaskTable, Transferred } from './task.js'

export const TASKS = {
  /** Reads a slice of a log and encodes it; the frame's buffer is moved to the caller. */
  encodeFrame: (args: EncodeFrameArgs) => {
    const result = encodeFrameOf(args)
    return new Transferred(result, [result.body.buffer])
  },
  /** Decodes a frame and writes it to its place in the spool. */
  decodeFrame: decodeFrameTo,
  /** A call of the native core. */
  native: callNative,
} as const satisfies TaskTable

/** The type of the table, which is all that the engine's thread needs of it. */
export type Tasks = typeof TASKS
