/**
 * The one error class of the engine, and its form as plain data.
 *
 * An Error thrown in a worker, in the addon or on the other side of a connection arrives without class and code. So what
 * crosses such a border is {@link PlainError}, made and turned back here alone. Match on `code`; messages may change.
 * A caller's mistake that no environment can cause is a TypeError, not a code.
 */

import { ERROR_TABLE, type ErrorClass, type ErrorCode, isErrorCode } from './error-table.js'

export type { ErrorClass, ErrorCode } from './error-table.js'

/** What JSON can hold. */
export type JsonValue =
  | null
  | boolean
  | number
  | string
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue }

/** Where and why: path, offset, disk, machine, reason and the like. */
export type ErrorDetails = Readonly<Record<string, JsonValue>>

/** An error as data, fit for workers, the native border and the wire. */
export interface PlainError {
  readonly code: string
  readonly message: string
  readonly details: ErrorDetails
}

/** What a new error is made of. */
export interface ErrorOptionsOf {
  /** One sentence with the values in it: what was tried, on what, and why it failed. */
  readonly message: string
  readonly details?: ErrorDetails
  readonly cause?: unknown
}

/** A failure of the world, with a stable code, its class and the next step. */
export class SecondsiteError extends Error {
  override readonly name = 'SecondsiteError'
  /** Stable; listed in docs/errors.md. */
  readonly code: ErrorCode
  readonly details: ErrorDetails

  constructor(code: ErrorCode, options: ErrorOptionsOf) {
    super(options.message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.details = options.details ?? {}
  }

  /** The next step for the operator. */
  get hint(): string {
    return ERROR_TABLE[this.code].hint
  }

  /** Whether trying again by itself can help. */
  get retryable(): ErrorClass {
    return ERROR_TABLE[this.code].class
  }

  /** The number of the WMI replication service that says the same, 32768 to 32779. */
  get returnCode(): number {
    return ERROR_TABLE[this.code].returnCode
  }
}

/** Says whether `error` is ours, of the given code when one is named. */
export function isSecondsiteError(error: unknown, code?: ErrorCode): error is SecondsiteError {
  return error instanceof SecondsiteError && (code === undefined || error.code === code)
}

/** The error as data. Whatever is not ours becomes INTERNAL, an abort becomes ABORTED. */
export function toPlainError(error: unknown): PlainError {
  const { code, message, details } = asSecondsiteError(error)
  return { code, message, details }
}

/** The error that `plain` describes. An unknown code becomes INTERNAL and stays readable in the details. */
export function fromPlainError(plain: PlainError): SecondsiteError {
  const { code, message, details } = plain
  if (isErrorCode(code)) return new SecondsiteError(code, { message, details })
  return new SecondsiteError('INTERNAL', { message, details: { ...details, originalCode: code } })
}

/** `thrown` itself when it is ours, else the coded error that says the same. */
export function asSecondsiteError(thrown: unknown): SecondsiteError {
  if (thrown instanceof SecondsiteError) return thrown
  if (!(thrown instanceof Error)) {
    return new SecondsiteError('INTERNAL', { message: String(thrown), details: {}, cause: thrown })
  }
  if (thrown.name === 'AbortError') return abortedError(thrown)
  const details = 'code' in thrown && thrown.code !== undefined ? { originalCode: String(thrown.code) } : {}
  return new SecondsiteError('INTERNAL', { message: thrown.message, details, cause: thrown })
}

/** An option, what was given for it, and what it may be. */
export interface OptionProblem {
  readonly path: string
  readonly value: JsonValue
  readonly range: string
}

/** OPTION_OUT_OF_RANGE for one option. */
export function optionOutOfRange({ path, value, range }: OptionProblem, message?: string): SecondsiteError {
  return new SecondsiteError('OPTION_OUT_OF_RANGE', {
    message: message ?? `${path} is ${JSON.stringify(value)}, must be ${range}`,
    details: { problems: [{ path, value, range }] },
  })
}

/** @throws {OPTION_OUT_OF_RANGE} unless `value` is a whole number from `min` to `max` */
export function checkWithin(path: string, value: number, min: number, max: number): number {
  if (Number.isSafeInteger(value) && value >= min && value <= max) return value
  const range = `a whole number from ${min} to ${max}`
  throw optionOutOfRange({ path, value: Number.isFinite(value) ? value : String(value), range })
}

const SYSTEM_CODES: Readonly<Record<string, ErrorCode>> = {
  ENOENT: 'PATH_NOT_FOUND',
  ENOTDIR: 'PATH_NOT_FOUND',
  EACCES: 'ACCESS_DENIED',
  EPERM: 'ACCESS_DENIED',
  EROFS: 'ACCESS_DENIED',
}

/** What the caller knows about a failed system call. */
export interface SystemCall {
  /** What was tried, as a verb: "open", "write". */
  readonly operation: string
  readonly path: string
  /** Code for ENOSPC and EDQUOT: which disk is full decides what is to be done. Default IO_FAILED. */
  readonly fullCode?: ErrorCode
}

/** The coded error of a failed system call; what is no system error comes back as {@link asSecondsiteError} makes it. */
export function fromSystemError(thrown: unknown, call: SystemCall): SecondsiteError {
  const errno = thrown instanceof Error && 'code' in thrown ? String(thrown.code) : ''
  if (thrown instanceof SecondsiteError || !/^E[A-Z0-9]+$/.test(errno)) return asSecondsiteError(thrown)
  const isFull = errno === 'ENOSPC' || errno === 'EDQUOT'
  const code = isFull ? (call.fullCode ?? 'IO_FAILED') : (SYSTEM_CODES[errno] ?? 'IO_FAILED')
  const message = `cannot ${call.operation} ${call.path}: ${errno}`
  return new SecondsiteError(code, {
    message,
    details: { operation: call.operation, path: call.path, reason: errno },
    cause: thrown,
  })
}

/** The error of an operation stopped by its signal; the signal's reason is the cause. */
export function abortedError(reason?: unknown): SecondsiteError {
  if (reason instanceof SecondsiteError) return reason
  return new SecondsiteError('ABORTED', { message: 'the operation was stopped by its signal', cause: reason })
}

/** @throws {ABORTED} when `signal` is aborted; a coded error given as its reason is thrown as it is. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortedError(signal.reason)
}
