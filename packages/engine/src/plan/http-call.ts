/**
 * Makes the HTTP call of an action with the `fetch` of Node.
 *
 * The call carries an `Idempotency-Key`, the same for each attempt of a step in a run, so that a server that knows it can
 * tell a repetition. Redirects are not followed: a plan that calls what has moved is told so. Of the answer a bounded
 * part is kept. Values of headers may come from environment variables; neither plan nor journal holds those.
 */

import type { Clock } from '../clock.js'
import {
  abortedError,
  type ErrorDetails,
  type JsonValue,
  SecondsiteError,
  throwIfAborted,
} from '../errors.js'
import { SECOND_MS } from '../units.js'
import type { PlanHttpCall } from './plan.js'

/** Bytes of an answer that are kept, the first ones. */
export const ANSWER_BYTES_MAX = 8192

/** A call that is to be made. */
export interface HttpRequest {
  readonly http: PlanHttpCall
  readonly idempotencyKey: string
  /** Sent where the plan names no body and the method has one. */
  readonly facts: JsonValue
  readonly timeoutMs: number
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** What a call that succeeded has brought. */
export interface HttpResult {
  readonly status: number
  /** The first {@link ANSWER_BYTES_MAX} bytes of the answer. */
  readonly answer: string
}

/** @throws {PLAN_ACTION_FAILED} when the headers of a call need an environment variable that is not set */
export function checkVariables(http: PlanHttpCall): void {
  for (const value of Object.values(http.headers)) {
    if (typeof value === 'string' || process.env[value.environment] !== undefined) continue
    const variable = value.environment
    throw failed(http, `the environment variable ${variable} is not set`, { variable })
  }
}

/**
 * Makes a call and checks its status.
 * @throws {PLAN_ACTION_FAILED} when the server cannot be reached, or answers with another status than expected
 * @throws {PLAN_ACTION_TIMEOUT} when the answer was not whole in time
 * @throws {ABORTED} when the signal stopped it
 */
export async function callHttp(request: HttpRequest): Promise<HttpResult> {
  throwIfAborted(request.signal)
  checkVariables(request.http)
  const timeout = new AbortController()
  const cancelTimer = request.clock.setTimer(request.timeoutMs, () => timeout.abort())
  try {
    return await exchange(request, AbortSignal.any([timeout.signal, request.signal]))
  } catch (error) {
    if (timeout.signal.aborted) throw timedOut(request)
    if (request.signal.aborted) throw abortedError(request.signal.reason)
    if (error instanceof SecondsiteError) throw error
    throw failed(request.http, reasonOf(error), { reason: reasonOf(error) })
  } finally {
    cancelTimer()
  }
}

async function exchange(request: HttpRequest, signal: AbortSignal): Promise<HttpResult> {
  const { http } = request
  const response = await fetch(http.url, {
    ...messageOf(request),
    method: http.method,
    redirect: 'manual',
    signal,
  })
  const answer = await firstBytes(response)
  const { status } = response
  const isExpected = http.expect ? http.expect.includes(status) : response.ok
  if (isExpected) return { status, answer }
  throw failed(http, `the answer is status ${status}`, { status, answer })
}

function messageOf({ http, facts, idempotencyKey }: HttpRequest): { headers: Headers; body?: string } {
  const headers = new Headers({ 'User-Agent': 'secondsite', 'Idempotency-Key': idempotencyKey })
  const isBodiless = ['GET', 'HEAD', 'DELETE'].includes(http.method) && http.body === undefined
  const content = http.body ?? facts
  if (!isBodiless)
    headers.set(
      'Content-Type',
      typeof content === 'string' ? 'text/plain; charset=utf-8' : 'application/json',
    )
  for (const [name, value] of Object.entries(http.headers))
    headers.set(name, typeof value === 'string' ? value : (process.env[value.environment] ?? ''))
  if (isBodiless) return { headers }
  return { headers, body: typeof content === 'string' ? content : JSON.stringify(content) }
}

/** An answer of any length costs only what is kept of it. */
async function firstBytes(response: Response): Promise<string> {
  const reader = response.body?.getReader()
  if (reader === undefined) return ''
  const parts: Uint8Array[] = []
  let sizeBytes = 0
  while (sizeBytes < ANSWER_BYTES_MAX) {
    const { done, value } = await reader.read()
    if (done) break
    parts.push(value)
    sizeBytes += value.length
  }
  await reader.cancel()
  return Buffer.concat(parts).subarray(0, ANSWER_BYTES_MAX).toString('utf8')
}

/** `fetch` says "fetch failed"; why stands in its cause. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  const code = cause instanceof Error && 'code' in cause ? `${String(cause.code)} ` : ''
  return cause instanceof Error ? `${code}${cause.message}`.trim() : String(cause)
}

function failed(http: PlanHttpCall, reason: string, details: ErrorDetails): SecondsiteError {
  return new SecondsiteError('PLAN_ACTION_FAILED', {
    message: `${http.method} ${http.url}: ${reason}`,
    details: { method: http.method, url: http.url, ...details },
  })
}

function timedOut({ http, timeoutMs }: HttpRequest): SecondsiteError {
  const timeoutSeconds = timeoutMs / SECOND_MS
  return new SecondsiteError('PLAN_ACTION_TIMEOUT', {
    message: `${http.method} ${http.url}: no whole answer within ${timeoutSeconds} s`,
    details: { method: http.method, url: http.url, timeoutSeconds },
  })
}
