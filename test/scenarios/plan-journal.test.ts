/** The journal of a run of a recovery plan, damaged, torn, and on disks that fail. */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { continuePlan, listPlanRuns, planReport, startPlan } from '@secondsite/engine'
import { FaultyFileSystem } from '@secondsite/engine/testing'
import { describe, expect, it } from 'vitest'
import { MANUAL, PlanFolder, PlanWorld, shopPlan as plan } from './plan-world.js'

function journalOf(folder: PlanFolder, runId: string): string {
  return join(folder.path, 'shop', `${runId}.jsonl`)
}

async function waitingRun(folder: PlanFolder): Promise<string> {
  const options = { directory: folder.path, targets: new PlanWorld() }
  return (await startPlan(plan({ last: MANUAL }), 'Planned', options)).runId
}

describe('the journal of a run', () => {
  it.each<[string, (text: string) => string, object]>([
    [
      'a flipped bit',
      (text) => text.replace('"started"', '"stbrted"'),
      { line: 3, reason: 'its checksum is wrong' },
    ],
    ['a line less', (text) => text.split('\n').toSpliced(4, 1).join('\n'), { line: 5 }],
    [
      'a line twice',
      (text) =>
        text
          .split('\n')
          .flatMap((line, at) => (at === 4 ? [line, line] : [line]))
          .join('\n'),
      { line: 6 },
    ],
    ['a line of somebody', (text) => text.replace('\n', '\nhello\n'), { line: 2 }],
  ])(
    'with %s before its last line is refused, and stands in nobody’s way',
    async (_what, change, details) => {
      using folder = new PlanFolder()
      const runId = await waitingRun(folder)
      const path = journalOf(folder, runId)
      writeFileSync(path, change(readFileSync(path, 'utf8')))
      const options = { directory: folder.path, targets: new PlanWorld() }
      await expect(continuePlan(runId, options)).rejects.toMatchObject({
        code: 'PLAN_RUN_DAMAGED',
        details: { path, offset: expect.any(Number), ...details },
      })
      expect(listPlanRuns(options)).toEqual([{ runId, plan: 'shop', code: 'PLAN_RUN_DAMAGED' }])
      expect(await startPlan(plan(), 'Planned', options)).toMatchObject({ state: 'Completed' })
    },
  )

  it.each([
    ['zeros behind its end', Buffer.alloc(700)],
    ['a line that was not finished', Buffer.from('0123abcd {"n":99,"type":"do')],
    [
      'a line whose middle never came',
      Buffer.concat([Buffer.from('0123abcd {"n"'), Buffer.alloc(40), Buffer.from('\n')]),
    ],
  ])('with %s goes on', async (_what, tail) => {
    using folder = new PlanFolder()
    const runId = await waitingRun(folder)
    writeFileSync(journalOf(folder, runId), tail, { flag: 'a' })
    const options = { directory: folder.path, targets: new PlanWorld() }
    const report = await continuePlan(runId, options)
    expect(report.state).toBe('Completed')
    expect(planReport(runId, options)).toEqual(report)
  })

  it('that meets a full disk stops the run, which goes on when there is room', async () => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const options = { directory: folder.path, targets: world }
    using system = new FaultyFileSystem()
    const fault = system.fail({
      path: folder.path,
      suffix: '.jsonl',
      operation: 'write',
      error: 'ENOSPC',
      afterBytes: 1700,
    })
    await expect(startPlan(plan(), 'Planned', options)).rejects.toMatchObject({ code: 'STATE_DISK_FULL' })
    fault.disarm()
    const [run] = listPlanRuns(options)
    expect(run).toMatchObject({ state: 'InProgress' })
    expect(world.changes.length).toBeLessThan(9)
    expect(await continuePlan(run?.runId ?? '', options)).toMatchObject({ state: 'Completed' })
    expect([...world.changes].sort()).toEqual([...new Set(world.changes)].sort())
    expect(world.changes).toHaveLength(9)
  })

  it('whose sync fails takes nothing more', async () => {
    using folder = new PlanFolder()
    const world = new PlanWorld()
    const options = { directory: folder.path, targets: world }
    using system = new FaultyFileSystem()
    const fault = system.fail({
      path: folder.path,
      suffix: '.jsonl',
      operation: 'sync',
      error: 'EIO',
      afterCalls: 4,
      times: 1,
    })
    await expect(startPlan(plan(), 'Planned', options)).rejects.toMatchObject({ code: 'IO_FAILED' })
    fault.disarm()
    expect(fault.strikes).toBe(1)
    expect(world.changes.length).toBeLessThan(4)
  })
})
