/** Runs in which the link breaks and the process dies (`run.ts`). */

import { describe, it } from 'vitest'
import { RUN_LIMIT_MS, runOf, seedsToRun } from './run.js'

describe('the engine under random faults', () => {
  it.each(seedsToRun())(
    'of the transport and deaths converges, seed %i',
    (seed) => runOf(seed, false),
    RUN_LIMIT_MS,
  )
})
