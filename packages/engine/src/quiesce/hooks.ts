/**
 * From settings to hooks, and thawing that does not give up at the first failure.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { CommandQuiesce } from './command-quiesce.js'
import { Fsfreeze } from './fsfreeze.js'
import { GuestAgentQuiesce } from './guest-agent-quiesce.js'
import type { Quiesce } from './quiesce.js'
import type { QuiesceSettings } from './settings.js'

/** Milliseconds from the first try of a thaw after which no other one is made. */
export const THAW_TRIES_MS = 60_000
const THAW_WAIT_MS_MIN = 100
const THAW_WAIT_MS_MAX = 2000

/** The hook that `settings` describe. @param onGroup - told the process group of each command */
export function hookOf(settings: QuiesceSettings, onGroup: (processGroup: number) => void): Quiesce {
  switch (settings.method) {
    case 'command':
      return new CommandQuiesce(settings, onGroup)
    case 'fsfreeze':
      return new Fsfreeze(settings.mounts, onGroup)
    case 'guest-agent':
      return new GuestAgentQuiesce(settings.socketPath)
  }
}

/**
 * Thaws; tries again for a minute when that fails, as a guest that stands still is worse than any wait.
 * @returns as {@link Quiesce.thaw}
 * @throws what the last try threw
 */
export async function thawPersistently(hook: Quiesce, triesMs = THAW_TRIES_MS): Promise<boolean> {
  const endMs = performance.now() + triesMs
  for (let waitMs = THAW_WAIT_MS_MIN; ; waitMs = Math.min(waitMs * 2, THAW_WAIT_MS_MAX)) {
    try {
      return await hook.thaw()
    } catch (error) {
      if (performance.now() + waitMs > endMs) throw error
      await sleep(waitMs)
    }
  }
}
