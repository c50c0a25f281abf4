/**
 * Closing many things: one that cannot be closed in order keeps no other one open.
 */

import { asSecondsiteError, SecondsiteError } from './errors.js'

/**
 * Calls each, one behind the other, whatever becomes of those before.
 * @throws the failure, when one has failed; {CLOSE_FAILED} with all of them when several have
 */
export async function closeInOrder(closings: readonly (() => Promise<unknown>)[]): Promise<void> {
  const failures: SecondsiteError[] = []
  for (const close of closings) {
    await close().catch((error: unknown) => {
      failures.push(asSecondsiteError(error))
    })
  }
  const [first] = failures
  if (first === undefined) return
  if (failures.length === 1) throw first
  throw new SecondsiteError('CLOSE_FAILED', {
    message: `${failures.length} failures while closing, the first: ${first.message}`,
    details: { failures: failures.map(({ code, message, details }) => ({ code, message, details })) },
    cause: first,
  })
}
