import { describe, expect, it } from 'vitest'
import { SecondsiteError } from '../errors.js'
import { SeededRandom } from '../random.js'
import { afterFailure, NO_RETRY, type RetryState, retryWaitMs } from './retry.js'

const network = new SecondsiteError('TRANSPORT_FAILED', { message: 'no route' })

describe('retries', () => {
  it('come 1, 3, 7, 15 and 25 minutes after the first failure, then every 30 minutes', () => {
    let state: RetryState = NO_RETRY
    let nowMs = 0
    const attempts: number[] = []
    while (attempts.length < 8) {
      const decision = afterFailure(state, network, nowMs)
      if (decision.kind === 'stop') throw new Error('stopped')
      state = decision
      nowMs = decision.atMs
      attempts.push(nowMs / 60_000)
    }
    expect(attempts).toEqual([1, 3, 7, 15, 25, 55, 85, 115])
  })

  it('start anew after a success', () => {
    expect(afterFailure(NO_RETRY, network, 1000)).toEqual({ kind: 'retry', failureCount: 1, atMs: 61_000 })
  })

  it.each(['STORE_FOREIGN', 'FENCED', 'ABORTED', 'LOG_CORRUPT'] as const)('are not made after %s', (code) => {
    expect(afterFailure(NO_RETRY, new SecondsiteError(code, { message: '' }), 0)).toEqual({ kind: 'stop' })
  })

  it('are not made after an error nobody has classified', () => {
    expect(afterFailure(NO_RETRY, new Error('what'), 0)).toEqual({ kind: 'stop' })
  })

  it('are only ever later with jitter, within its share', () => {
    const seed = 41
    const random = new SeededRandom(seed)
    const waits = Array.from({ length: 500 }, () => retryWaitMs(1, { random, percent: 20 }))
    expect(
      waits.every((wait) => wait >= 60_000 && wait <= 72_000),
      `seed ${seed}`,
    ).toBe(true)
    expect(new Set(waits).size).toBeGreaterThan(400)
  })
})
