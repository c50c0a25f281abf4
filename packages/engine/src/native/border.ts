/**
 * The one door to the addon: errors come out as {@link SecondsiteError}, nothing else changes.
 *
 * The addon throws an Error whose message is a JSON object {code, message, hint, details}; see crates/node/src/error.rs.
 * A panic arrives with code GenericFailure and a plain message.
 */

import { fromPlainError, type PlainError } from '../errors.js'

interface NativeFailure {
  readonly code?: unknown
  readonly message?: unknown
}

/** Turns what the addon threw into the engine's error. */
export function fromNative(thrown: unknown): Error {
  const { code, message } = (thrown ?? {}) as NativeFailure
  if (typeof code !== 'string' || typeof message !== 'string') return thrown as Error
  return fromPlainError({ code, details: {}, ...parse(message) })
}

/** The body of one of our errors; a text that is none stays the message. */
function parse(text: string): Partial<PlainError> & { readonly message: string } {
  try {
    const { code, message, details } = JSON.parse(text) as PlainError
    return { code, message, details }
  } catch {
    return { message: text }
  }
}

/** Wraps every function of the addon so that what it throws, or rejects with, is an error of the engine. */
export function bordered<Addon extends object>(addon: Addon): Addon {
  const wrapped = Object.entries(addon).map(([name, member]) => [
    name,
    typeof member === 'function' ? guard(member as (...args: unknown[]) => unknown) : member,
  ])
  return Object.fromEntries(wrapped) as Addon
}

function guard(call: (...args: unknown[]) => unknown): (...args: unknown[]) => unknown {
  return (...args) => {
    try {
      const result = call(...args)
      return result instanceof Promise
        ? result.catch((error: unknown) => Promise.reject(fromNative(error)))
        : result
    } catch (error) {
      throw fromNative(error)
    }
  }
}
