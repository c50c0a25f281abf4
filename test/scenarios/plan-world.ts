/**
 * Machines in memory for tests of recovery plans: a world that keeps what was done to it, whoever asks.
 *
 * The world stands for what outlives a process: a session that is killed leaves it as it is. Verbs are idempotent, as the
 * interface demands; each call is kept, and each change that a call has made.
 */

import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  type FailoverFacts,
  type FailoverForecast,
  type LoadedPlan,
  type PlanTarget,
  type PlanTargets,
  parsePlan,
  SecondsiteError,
  type TargetRequest,
  type VerbContext,
} from '@secondsite/engine'

/** When the points of the world were cut. */
export const CUT_MS = Date.UTC(2026, 10, 21, 9, 55)

export interface WorldOptions {
  /** Called in the middle of a verb, before its change; what it throws is the verb's failure. */
  readonly during?: (verb: string, machine: string, context: VerbContext) => Promise<void> | void
  /** Called right after a change of the world. */
  readonly onChange?: (change: string) => void
  /** Machines that are not there. */
  readonly missing?: readonly string[]
}

export class PlanWorld implements PlanTargets {
  /** `verb machine key` of each call, in order. */
  readonly calls: string[] = []
  /** `verb machine` of each change, in order; a repeated verb changes nothing. */
  readonly changes: string[] = []
  /** Verbs that a run has announced for each machine. */
  readonly announced: Record<string, readonly string[]> = {}
  /** `verb machine reference` of the calls that got one. */
  readonly references: string[] = []
  /** Targets that are resolved and not closed. */
  openCount = 0
  readonly #options: WorldOptions

  constructor(options: WorldOptions = {}) {
    this.#options = options
  }

  async resolve({ name, verbs }: TargetRequest): Promise<PlanTarget> {
    this.announced[name] = verbs
    if (this.#options.missing?.includes(name))
      throw new SecondsiteError('REPLICA_NOT_FOUND', { message: `no replica of ${name}` })
    this.openCount += 1
    const verb = (what: string) => (context: VerbContext) => this.#verb(what, name, context)
    const facts = this.factsOf(name)
    return {
      describe: async (): Promise<FailoverForecast> => ({ ...facts, estimatedMs: 1500 }),
      shutdown: verb('shutdown'),
      failover: async (_choice, context) => (await verb('failover')(context), facts),
      failback: async (context) => (await verb('failback')(context), facts),
      reverse: async (context) => (await verb('reverse')(context), { reversed: name }),
      boot: async (context) => (await verb('boot')(context), { started: name }),
      cleanupTest: verb('cleanupTest'),
      close: async () => {
        this.openCount -= 1
      },
    }
  }

  /** What the failover of a machine brings; the longer the name, the more is lost. */
  factsOf(name: string): FailoverFacts {
    const point = { sequence: 400 + name.length, timeMs: CUT_MS, kind: 'crash-consistent' }
    const loss = { lossSeconds: 10 * name.length, lossBytes: 4096 * name.length }
    return { point, ...loss, copyBytes: 0, reference: `copy of ${name}` }
  }

  async #verb(verb: string, machine: string, context: VerbContext): Promise<void> {
    this.calls.push(`${verb} ${machine} ${context.key}`)
    if (context.reference !== undefined) this.references.push(`${verb} ${machine} ${context.reference}`)
    await this.#options.during?.(verb, machine, context)
    const change = `${verb} ${machine}`
    if (this.changes.includes(change)) return
    this.changes.push(change)
    this.#options.onChange?.(change)
  }
}

/** Something for somebody to do, before a group. */
export const MANUAL = '    before: [{ manual: Set the address. }]'

/** Database before web servers, each group with its type; actions are put in by tests. */
export function shopPlan(
  extra: { readonly top?: string; readonly failover?: string; readonly last?: string } = {},
): LoadedPlan {
  return parsePlan(`name: shop
${extra.top ?? ''}
machines:
  db: { replica: db }
  web1: { replica: web1 }
  web2: { replica: web2 }
groups:
  - { type: Shutdown, machines: [web1, web2, db] }
  - machines: [db, web1, web2]
${extra.failover ?? ''}
  - { type: Boot, machines: [db] }
  - type: Boot
    machines: [web1, web2]
${extra.last ?? ''}
`)
}

/** In memory where that is possible: these tests end processes, not machines, so a sync need not be slow. */
const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

/** A folder that goes away with the test. */
export class PlanFolder implements Disposable {
  readonly path: string

  constructor() {
    this.path = mkdtempSync(join(base, 'secondsite-plans-'))
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}
