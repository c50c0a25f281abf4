/**
 * Application-consistent cuts of a machine: when one is due, how it is made, and what is told of it.
 *
 * A hook that fails leaves a crash-consistent cut, an event and a count, and is asked again after a quarter of an hour at
 * the earliest: a guest whose hook hangs would otherwise stand still for some seconds in every cycle.
 */

import { SecondsiteError } from '../errors.js'
import type { QuiesceReport } from '../quiesce/quiesce.js'
import type { QuiesceSettings } from '../quiesce/settings.js'
import type { Machine } from '../store/state-schema.js'
import { HOUR_MS, MINUTE_MS } from '../units.js'
import type { MachineContext } from './machine-context.js'
import type { Monitor } from './monitor.js'
import type { MakeCut } from './shipping.js'

/** After a failure the hook is asked again this much later, or at its next time when that is sooner. */
const RETRY_MS = 15 * MINUTE_MS

/** What {@link isQuiesceDue} depends on. */
export interface QuiesceFacts {
  readonly nowMs: number
  /** Hours between two; 0 for none. */
  readonly frequencyHours: number
  /** The newest one that succeeded; null when none did. */
  readonly lastCutMs: number | null
  /** The newest one that failed; null when none did. */
  readonly lastFailureMs: number | null
}

/** Whether the next cut is to be application-consistent. A clock that was set back makes none wait for longer than that. */
export function isQuiesceDue({ nowMs, frequencyHours, lastCutMs, lastFailureMs }: QuiesceFacts): boolean {
  if (frequencyHours === 0) return false
  const everyMs = frequencyHours * HOUR_MS
  const hasPassed = (sinceMs: number | null, waitMs: number): boolean =>
    sinceMs === null || sinceMs > nowMs || nowMs - sinceMs >= waitMs
  return hasPassed(lastCutMs, everyMs) && hasPassed(lastFailureMs, Math.min(everyMs, RETRY_MS))
}

/** What came of the newest of them. */
interface Outcome {
  readonly settings: QuiesceSettings
  readonly report: QuiesceReport
  readonly cutTimeMs: number
}

export class QuiescedCuts {
  readonly #context: MachineContext
  readonly #monitor: Monitor
  #lastCutMs: number | null = null
  #lastFailureMs: number | null = null
  #outcome: Outcome | undefined

  constructor(context: MachineContext, monitor: Monitor) {
    this.#context = context
    this.#monitor = monitor
  }

  /** Whether the policy wants the next cut to be one. */
  isDue({ lastApplicationConsistentCutMs }: Pick<Machine, 'lastApplicationConsistentCutMs'>): boolean {
    const { clock, policy } = this.#context
    return isQuiesceDue({
      nowMs: clock.nowMs(),
      frequencyHours: policy.applicationConsistentSnapshotFrequencyInHours,
      lastCutMs: this.#lastCutMs ?? lastApplicationConsistentCutMs,
      lastFailureMs: this.#lastFailureMs,
    })
  }

  /** The hook of the policy. @throws {QUIESCE_NOT_CONFIGURED} when there is none */
  require(): QuiesceSettings {
    const { name: machine, policy } = this.#context
    if (policy.quiesce !== null) return policy.quiesce
    const message = `${machine} has no hook that could hold its applications at rest`
    throw new SecondsiteError('QUIESCE_NOT_CONFIGURED', { message, details: { machine } })
  }

  /** Makes the cut by `makeCut` while the applications are at rest. */
  maker(signal: AbortSignal | undefined, makeCut: MakeCut): MakeCut {
    return async (context) => {
      const settings = this.require()
      const { result, report } = await context.work.whileFrozen(settings, () => makeCut(context), signal)
      this.#outcome = { settings, report, cutTimeMs: result.cutTimeMs }
      return report.isConsistent ? { ...result, pointKind: 'application-consistent' } : result
    }
  }

  /** Tells and counts what came of the newest one, once its shipment is recorded. */
  async tell(): Promise<QuiesceReport | null> {
    if (this.#outcome === undefined) return null
    const { settings, report, cutTimeMs } = this.#outcome
    this.#outcome = undefined
    const details = { method: settings.method, cutTimeMs, frozenMs: report.frozenMs }
    if (report.error === null) {
      this.#lastCutMs = cutTimeMs
      this.#lastFailureMs = null
      await this.#context.events.raise(this.#context, 'quiesced', details)
      return report
    }
    this.#lastFailureMs = cutTimeMs
    await this.#monitor.count({ kind: 'quiesce-failure' })
    const { code, message } = report.error
    const event = report.isThawed ? 'quiesceFailed' : 'thawFailed'
    await this.#context.events.raise(this.#context, event, { ...details, code, message })
    return report
  }
}
