/** Lives of a machine and its replica against arrays of bytes (`recovery-model.ts`). */

import { afterAll, describe, it } from 'vitest'
import { RUN_LIMIT_MS } from './run.js'
import { runOf, seedsToRun } from './recovery-model.js'
import { endThreads } from './recovery-model-world.js'

afterAll(endThreads)

describe('recovery against its model', () => {
  it.each(seedsToRun())('shows every point and loses nothing, seed %i', (seed) => runOf(seed), RUN_LIMIT_MS)
})
