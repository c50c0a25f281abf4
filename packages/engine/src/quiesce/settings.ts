/**
 * The settings of a quiesce hook, as they stand in a policy: which way to freeze, and the limits on it.
 *
 * Commands are lists of arguments and no shell reads them, so a name with a space or a quote in it is just a name. They
 * are carried out by a process of their own in the folder `/`, so programs, sockets and mounts are absolute paths.
 */

import { isAbsolute } from 'node:path'
import { z } from 'zod'

const COMMAND_WORDS_MAX = 64
const WORD_LENGTH_MAX = 4096
/** File systems of one hook, at most. */
const MOUNTS_MAX = 32

const commandMessage = `a list of 1 to ${COMMAND_WORDS_MAX} words, the first one the absolute path of a program`
const command = z
  .array(z.string(commandMessage).min(1, commandMessage).max(WORD_LENGTH_MAX, commandMessage), commandMessage)
  .min(1, commandMessage)
  .max(COMMAND_WORDS_MAX, commandMessage)
  .refine(
    (words) => isAbsolute(words[0] ?? '') && words.every((word) => !word.includes('\0')),
    commandMessage,
  )

const pathMessage = 'an absolute path'
const path = z
  .string(pathMessage)
  .max(WORD_LENGTH_MAX, pathMessage)
  .refine((text) => isAbsolute(text) && !text.includes('\0'), pathMessage)

const mountsMessage = `1 to ${MOUNTS_MAX} absolute paths that differ`
const mounts = z
  .array(path, mountsMessage)
  .min(1, mountsMessage)
  .max(MOUNTS_MAX, mountsMessage)
  .refine((list) => new Set(list).size === list.length, mountsMessage)

function seconds(max: number, initial: number) {
  const message = `a whole number of seconds from 1 to ${max}`
  return z.number(message).int(message).min(1, message).max(max, message).default(initial)
}

const limits = {
  /** Run before anything is frozen, for what takes long: a checkpoint of a database. Default none. */
  prepare: command.optional(),
  /** Seconds that `prepare` may take, from 1 to 3600; default 60. */
  prepareLimitSeconds: seconds(3600, 60),
  /** Seconds from the begin of the freeze after which everything is thawed, come what may, from 1 to 60; default 10. */
  frozenLimitSeconds: seconds(60, 10),
}

const METHODS = ['command', 'fsfreeze', 'guest-agent'] as const
const methodMessage = `one of ${METHODS.join(', ')}`

/** One of the ways to freeze. */
export const quiesceSchema = z.discriminatedUnion(
  'method',
  [
    z.strictObject({
      method: z.literal('command'),
      /** Freezes; exit code 0 says that everything is at rest. */
      freeze: command,
      /** Thaws; it must succeed also where nothing is frozen. */
      thaw: command,
      ...limits,
    }),
    z.strictObject({
      method: z.literal('fsfreeze'),
      /** Mount points of this computer, frozen in this order and thawed in the opposite one. */
      mounts,
      ...limits,
    }),
    z.strictObject({
      method: z.literal('guest-agent'),
      /** The host's end of the guest's channel `org.qemu.guest_agent.0`: a unix socket that QEMU listens at. */
      socketPath: path,
      ...limits,
    }),
  ],
  methodMessage,
)

/** A hook with every setting filled in. */
export type QuiesceSettings = z.output<typeof quiesceSchema>
/** A hook as a caller gives it. */
export type QuiesceInput = z.input<typeof quiesceSchema>
