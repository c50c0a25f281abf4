/**
 * Does something while the applications are at rest, or without that when they cannot be brought to it.
 *
 * The action is carried out once, whatever the hook does: a hook that fails costs the consistency of one cut, never the
 * cut. Whether it was consistent is only known after the thaw, as somebody else may have thawed before.
 */

import { asSecondsiteError, fromPlainError, SecondsiteError, throwIfAborted } from '../errors.js'
import { SECOND_MS } from '../units.js'
import { commandFailed } from './command-quiesce.js'
import { runCommand } from './command.js'
import type { ThawedMessage } from './keeper-messages.js'
import { KeeperProcess } from './keeper-process.js'
import type { QuiesceReport } from './quiesce.js'
import type { QuiesceSettings } from './settings.js'

/** What {@link whileFrozen} gives back. */
export interface WhileFrozen<Result> {
  readonly result: Result
  readonly report: QuiesceReport
}

/** Steps at which a test may interfere. */
export interface QuiesceSteps {
  /** Called with the keeper's process id when it stands by. */
  readonly onKeeper?: (processId: number | undefined) => void
}

/**
 * Freezes by the hook of `settings`, carries out `action`, and thaws.
 *
 * @throws {ABORTED} when `signal` was aborted before the action began; everything is thawed
 * @throws what `action` throws, after the thaw
 */
export async function whileFrozen<Result>(
  settings: QuiesceSettings,
  action: () => Promise<Result>,
  signal?: AbortSignal,
  steps: QuiesceSteps = {},
): Promise<WhileFrozen<Result>> {
  throwIfAborted(signal)
  let keeper: KeeperProcess
  try {
    await prepare(settings, signal)
    keeper = await KeeperProcess.start(settings)
  } catch (error) {
    throwIfAborted(signal)
    return { result: await action(), report: notFrozen(asSecondsiteError(error)) }
  }
  steps.onKeeper?.(keeper.processId)
  const failure = await keeper.freeze()
  if (failure !== null || signal?.aborted) {
    const thawed = await keeper.thaw()
    throwIfAborted(signal)
    return { result: await action(), report: reportOf(settings, thawed, failure) }
  }
  return actFrozen(settings, keeper, action)
}

async function actFrozen<Result>(
  settings: QuiesceSettings,
  keeper: KeeperProcess,
  action: () => Promise<Result>,
): Promise<WhileFrozen<Result>> {
  const acted = await action().then(
    (result) => ({ result }),
    (error: unknown) => ({ error }),
  )
  const report = reportOf(settings, await keeper.thaw(), null)
  if ('error' in acted) throw acted.error
  return { result: acted.result, report }
}

/** What takes long and freezes nothing. */
async function prepare(settings: QuiesceSettings, signal?: AbortSignal): Promise<void> {
  if (settings.prepare === undefined) return
  const limitMs = settings.prepareLimitSeconds * SECOND_MS
  const options = { purpose: 'prepare', limitMs, ...(signal ? { signal } : {}) }
  const { exitCode, output } = await runCommand(settings.prepare, options)
  if (exitCode !== 0)
    throw commandFailed('QUIESCE_FREEZE_FAILED', 'prepare', settings.prepare, exitCode, output)
}

function notFrozen(error: SecondsiteError): QuiesceReport {
  return { isConsistent: false, frozenMs: 0, isThawed: true, error }
}

function reportOf(
  settings: QuiesceSettings,
  thawed: ThawedMessage,
  failure: SecondsiteError | null,
): QuiesceReport {
  const { frozenMs } = thawed
  if (thawed.error !== null) {
    const error = thawFailed(settings, fromPlainError(thawed.error))
    return { isConsistent: false, frozenMs, isThawed: false, error }
  }
  const error = failure ?? lossOf(settings, thawed)
  return { isConsistent: error === null, frozenMs, isThawed: true, error }
}

/** Why a freeze that succeeded was not held through the cut. */
function lossOf(
  settings: QuiesceSettings,
  { reason, wasFrozen, frozenMs }: ThawedMessage,
): SecondsiteError | null {
  const { method, frozenLimitSeconds } = settings
  if (reason === 'limit') {
    const message = `${method}: the cut was not made within ${frozenLimitSeconds} s, everything was thawed`
    return new SecondsiteError('QUIESCE_TIMEOUT', { message, details: { purpose: 'cut', method, frozenMs } })
  }
  if (reason === 'asked' && wasFrozen) return null
  const message = `${method}: something else thawed the applications before the cut was made`
  return new SecondsiteError('QUIESCE_LOST', { message, details: { method, frozenMs } })
}

function thawFailed(settings: QuiesceSettings, cause: SecondsiteError): SecondsiteError {
  if (cause.code === 'QUIESCE_THAW_FAILED') return cause
  const { method } = settings
  const message = `${method}: cannot thaw: ${cause.message}`
  return new SecondsiteError('QUIESCE_THAW_FAILED', {
    message,
    details: { method, reason: cause.code },
    cause,
  })
}
