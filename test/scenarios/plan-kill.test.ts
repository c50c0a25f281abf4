/** A process that works on a recovery plan is ended with SIGKILL while a command of the plan runs. */

import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { continuePlan, listPlanRuns, type PlanReport, planReport } from '@secondsite/engine'
import { afterEach, describe, expect, it } from 'vitest'
import { PlanFolder, PlanWorld } from './plan-world.js'

const child = fileURLToPath(new URL('plan-child.mjs', import.meta.url))

/** Leaves its number, waits for the test's word, and leaves a mark that it was through. */
const SCRIPT =
  'echo "$$" >pid.new; mv pid.new pid; until [ -e word ]; do sleep 0.02; done; echo through >>marks'

function planText(rest: string): string {
  return `name: shop
machines: { db: { replica: db } }
groups:
  - machines: [db]
    before:
      - command: [sh, -c, ${JSON.stringify(SCRIPT)}]
${rest}
`
}

const started: ChildProcess[] = []

afterEach(() => {
  for (const one of started.splice(0)) one.kill('SIGKILL')
})

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 10))
}

/** A run whose process was killed while its command waits for the word; the number of the command's process. */
async function killedRun(folder: PlanFolder, rest = ''): Promise<{ runId: string; command: number }> {
  const file = join(folder.path, 'plan.yaml')
  writeFileSync(file, planText(rest))
  const runs = join(folder.path, 'runs')
  const one = spawn(process.execPath, [child, runs, file, 'Planned'], { stdio: 'inherit' })
  started.push(one)
  await until(() => existsSync(join(folder.path, 'pid')))
  const command = Number(readFileSync(join(folder.path, 'pid'), 'utf8'))
  const [run] = listPlanRuns({ directory: runs })
  const runId = run?.runId ?? expect.unreachable('no run')
  // The command may be quicker than the line about its process.
  await until(() => readFileSync(join(runs, 'shop', `${runId}.jsonl`), 'utf8').includes('"spawned"'))
  const gone = new Promise((resolve) => one.once('exit', resolve))
  one.kill('SIGKILL')
  await gone
  return { runId, command }
}

/** Lets the orphaned command come to its end. */
async function letThrough(folder: PlanFolder, command: number): Promise<void> {
  writeFileSync(join(folder.path, 'word'), '')
  await until(() => existsSync(join(folder.path, 'marks')))
  await until(() => !isRunning(command))
}

/** A container's first process may collect nobody, so a zombie counts as gone. */
function isRunning(processId: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${processId}/status`, 'utf8'))
  } catch {
    return false
  }
}

const targets = new PlanWorld()

describe('a run killed while its command runs', () => {
  it('starts the command no second time beside the first, and then asks', async () => {
    using folder = new PlanFolder()
    const { runId, command } = await killedRun(folder)
    const options = { directory: join(folder.path, 'runs'), targets }
    expect(planReport(runId, options)).toMatchObject({ state: 'InProgress' })
    for (const decision of [undefined, 'redo'] as const)
      await expect(continuePlan(runId, { ...options, ...(decision && { decision }) })).rejects.toMatchObject({
        code: 'PLAN_ACTION_RUNNING',
        details: { processId: command, step: '1.before.1' },
      })
    await letThrough(folder, command)
    await expect(continuePlan(runId, options)).rejects.toMatchObject({ code: 'PLAN_DECISION_NEEDED' })
    const report = await continuePlan(runId, { ...options, decision: 'skip' })
    expect(stateOf(report)).toEqual(['Completed', 'Skipped', 1])
    expect(readFileSync(join(folder.path, 'marks'), 'utf8')).toBe('through\n')
  })

  it('repeats the command when somebody says so', async () => {
    using folder = new PlanFolder()
    const { runId, command } = await killedRun(folder)
    await letThrough(folder, command)
    const options = { directory: join(folder.path, 'runs'), targets }
    expect(stateOf(await continuePlan(runId, { ...options, decision: 'redo' }))).toEqual([
      'Completed',
      'Done',
      2,
    ])
    expect(readFileSync(join(folder.path, 'marks'), 'utf8')).toBe('through\nthrough\n')
  })

  it('repeats it by itself when it is idempotent and runs no more', async () => {
    using folder = new PlanFolder()
    const { runId, command } = await killedRun(folder, '        idempotent: true')
    const options = { directory: join(folder.path, 'runs'), targets }
    await expect(continuePlan(runId, options)).rejects.toMatchObject({ code: 'PLAN_ACTION_RUNNING' })
    await letThrough(folder, command)
    expect(stateOf(await continuePlan(runId, options))).toEqual(['Completed', 'Done', 2])
  })
})

function stateOf(report: PlanReport): unknown[] {
  const [step] = report.steps
  return [report.state, step?.state, step?.attempts.length]
}
