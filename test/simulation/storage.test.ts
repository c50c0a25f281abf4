/** Runs in which files fail, too (`run.ts`). A file of their own, so that both kinds run side by side. */

import { describe, it } from 'vitest'
import { RUN_LIMIT_MS, runOf, seedsToRun } from './run.js'

describe('the engine under random faults', () => {
  it.each(seedsToRun())(
    'of transport and storage and deaths converges, seed %i',
    (seed) => runOf(seed, true),
    RUN_LIMIT_MS,
  )
})
