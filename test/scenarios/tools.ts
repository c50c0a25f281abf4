/**
 * Tools of the system that a test needs. A test without its tool says so in the list of skips and passes over; in CI
 * that is a failure unless test/allowed-skips.json has it.
 */

import { spawnSync } from 'node:child_process'
import { appendFileSync } from 'node:fs'

/** Whether `tool` is installed; if not, the skip of `test` is recorded. */
export function hasTool(tool: string, test: string): boolean {
  const missing = missingTool(tool)
  if (missing !== undefined) skip(test, missing)
  return missing === undefined
}

/** What is not installed of `tools`, as the reason of a skip; undefined when all are. */
export function missingTool(...tools: readonly string[]): string | undefined {
  const missing = tools.find((tool) => spawnSync('which', [tool], { stdio: 'ignore' }).status !== 0)
  return missing && `${missing} is not installed`
}

/** Records that a test did not run, and why. */
export function skip(test: string, reason: string): void {
  const list = process.env['SECONDSITE_SKIP_LOG']
  if (list) appendFileSync(list, `${test}\t${reason}\n`)
  process.stderr.write(`skipped: ${test}: ${reason}\n`)
}
