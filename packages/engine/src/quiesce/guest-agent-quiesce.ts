/**
 * Freezes the file systems of a guest by its QEMU guest agent, which runs the guest's own freeze hooks first.
 *
 * A freeze whose answer did not come may have happened, or may happen yet: the agent does one thing after the other, so a
 * thaw that it answers comes after the freeze. Hence thawing waits longer than freezing, in conversations of its own.
 */

import { randomInt } from 'node:crypto'
import { SecondsiteError } from '../errors.js'
import { GuestAgent } from './guest-agent.js'
import type { Quiesce } from './quiesce.js'

/** Milliseconds that one conversation about a thaw may take; the next one begins anew. */
const THAW_CONVERSATION_MS = 20_000
const SYNC_ID_MAX = 0x7fff_ffff

export class GuestAgentQuiesce implements Quiesce {
  readonly #socketPath: string
  /** How many file systems the agent said it has frozen. */
  #frozenCount = 0

  constructor(socketPath: string) {
    this.#socketPath = socketPath
  }

  async freeze(signal: AbortSignal): Promise<void> {
    this.#frozenCount = 0
    using agent = await this.#open(signal)
    const count = await agent.execute('guest-fsfreeze-freeze')
    if (typeof count !== 'number' || count < 1) {
      const message = `the guest agent froze nothing, its answer is ${JSON.stringify(count)}`
      throw new SecondsiteError('QUIESCE_FREEZE_FAILED', {
        message,
        details: { socketPath: this.#socketPath, answer: count },
      })
    }
    this.#frozenCount = count
  }

  async thaw(): Promise<boolean> {
    const late = new SecondsiteError('QUIESCE_TIMEOUT', {
      message: `thaw: the guest agent at ${this.#socketPath} did not answer within ${THAW_CONVERSATION_MS} ms`,
      details: { purpose: 'thaw', socketPath: this.#socketPath, limitMs: THAW_CONVERSATION_MS },
    })
    const limit = new AbortController()
    const timer = setTimeout(() => limit.abort(late), THAW_CONVERSATION_MS)
    try {
      using agent = await this.#open(limit.signal)
      const count = await agent.execute('guest-fsfreeze-thaw')
      return typeof count === 'number' && count > 0 && count >= this.#frozenCount
    } finally {
      clearTimeout(timer)
    }
  }

  #open(signal: AbortSignal): Promise<GuestAgent> {
    return GuestAgent.open(this.#socketPath, randomInt(1, SYNC_ID_MAX), signal)
  }
}
