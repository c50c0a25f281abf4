/** Long calls of the core: looked at from time to time, and ended by a signal where they can be taken up again. */

import { throwIfAborted } from '../errors.js'
import { native } from '../native/index.js'

/** Between two looks at the progress. */
const PROGRESS_MS = 200

/**
 * Runs a long call of the core.
 * @param look - given the handle for `native.workProgress`
 * @throws {ABORTED} when the signal ended it
 */
export async function withWork(
  signal: AbortSignal | undefined,
  look: (work: number) => void,
  run: (work: number) => Promise<unknown>,
): Promise<void> {
  throwIfAborted(signal)
  const work = native.beginWork()
  const onAbort = (): void => native.stopWork(work)
  signal?.addEventListener('abort', onAbort, { once: true })
  const timer = setInterval(() => look(work), PROGRESS_MS)
  try {
    await run(work)
    look(work)
  } finally {
    clearInterval(timer)
    signal?.removeEventListener('abort', onAbort)
    native.endWork(work)
  }
}
