/** Recovery plans at the command line: files that are checked, runs that are begun, continued and looked at. */

import { spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { openReplica, startPlan } from '@secondsite/engine'
import { describe, expect, it } from 'vitest'
import { main, run } from './cli-command.js'
import { MANUAL, PlanFolder, PlanWorld, shopPlan } from './plan-world.js'
import { MIB, Workplace } from './workplace.js'

const example = fileURLToPath(new URL('../../examples/plan.yaml', import.meta.url))

describe('plan check', () => {
  it('says of a good plan what it is', () => {
    expect(run('plan', 'check', example)).toEqual({
      status: 0,
      stdout: `${example}: plan shop, 3 machines in 4 groups: good\n`,
      stderr: '',
    })
    const { stdout } = run('plan', 'check', example, '--json')
    expect(JSON.parse(stdout)).toMatchObject({ plan: { name: 'shop' }, warnings: [] })
  })

  it('names every problem of a bad one at its place, with a hint', () => {
    using folder = new PlanFolder()
    const file = join(folder.path, 'bad.yaml')
    writeFileSync(
      file,
      'name: shop\nmachines: { db: { replica: r } }\ngroups:\n  - machines: [db, web]\n  - typ: Boot\n',
    )
    const { status, stdout, stderr } = run('plan', 'check', file)
    expect({ status, stdout }).toEqual({ status: 3, stdout: '' })
    expect(stderr.split('\n').slice(0, 4)).toEqual([
      'error PLAN_INVALID: 3 problems in a plan',
      `${file}:4:20 groups.0.machines.1: is "web", must be a name under machines: db`,
      `${file}:5:5 groups.1.typ: there is no such setting`,
      `${file}:5:5 groups.1: has neither machines nor actions`,
    ])
    expect(stderr).toMatch(/^hint: /m)
    const { error } = JSON.parse(run('plan', 'check', file, '--json').stdout)
    expect(error.details.problems[0]).toMatchObject({ line: 4, column: 20, path: 'groups.0.machines.1' })
  })

  it('tells warnings and is content', () => {
    using folder = new PlanFolder()
    const file = join(folder.path, 'plan.yaml')
    writeFileSync(file, 'name: p\nmachines:\n  db: { replica: r }\ngroups: [{ machines: [db] }]\n')
    const { status, stdout } = run('plan', 'check', file)
    expect(status).toBe(0)
    expect(stdout).toContain(`${file}:3:3: warning: "db" is started in no Boot group`)
  })

  it('of a file that is not there', () => {
    const { status, stderr } = run('plan', 'check', '/nowhere/plan.yaml')
    expect(status).toBe(3)
    expect(stderr).toMatch(/^error PATH_NOT_FOUND: .*\/nowhere\/plan\.yaml/)
  })
})

async function waitingRun(folder: PlanFolder): Promise<string> {
  const options = { directory: folder.path, targets: new PlanWorld() }
  return (await startPlan(shopPlan({ last: MANUAL }), 'Planned', options)).runId
}

describe('plan list, report and abandon', () => {
  it('show a run that waits, as text, JSON and page, and end it', async () => {
    using folder = new PlanFolder()
    const runs = ['--runs', folder.path]
    const runId = await waitingRun(folder)
    expect(run('plan', 'list', ...runs).stdout).toContain(`${runId} │ WaitingForInput`)
    expect(JSON.parse(run('plan', 'list', ...runs, '--json').stdout).runs).toMatchObject([
      { runId, kind: 'Planned' },
    ])
    const text = run('plan', 'report', runId, ...runs).stdout
    expect(text).toContain(`Run ${runId}: plan shop as Planned, WaitingForInput`)
    expect(text).toContain('Waiting for somebody:\n  Set the address.\n')
    const page = join(folder.path, 'report.html')
    expect(run('plan', 'report', runId, ...runs, '--html', page).stdout).toBe(`${page}\n`)
    expect(readFileSync(page, 'utf8')).toMatch(/^<!doctype html>[\s\S]*<\/html>\n$/)
    expect(run('plan', 'report', runId, ...runs, '--html', page)).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/^error PATH_EXISTS: /),
    })
    expect(run('plan', 'abandon', runId, ...runs).stdout).toBe(`${runId}: Abandoned; nothing was undone\n`)
    expect(JSON.parse(run('plan', 'report', runId, ...runs, '--json').stdout).state).toBe('Abandoned')
    expect(run('plan', 'abandon', runId, ...runs)).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/^error PLAN_RUN_FINISHED: /),
    })
  })

  it('refuse a run that is not there, and make nothing', () => {
    using folder = new PlanFolder()
    const runs = join(folder.path, 'runs')
    const { status, stderr } = run('plan', 'report', 'shop-20261121T101500Z-Test', '--runs', runs)
    expect(status).toBe(3)
    expect(stderr).toMatch(/^error PLAN_RUN_NOT_FOUND: /)
    expect(run('plan', 'list', '--runs', runs).stdout).toBe(`no runs in ${runs}\n`)
    expect(existsSync(runs)).toBe(false)
  })

  it('say that a damaged journal is damaged', async () => {
    using folder = new PlanFolder()
    const runId = await waitingRun(folder)
    const path = join(folder.path, 'shop', `${runId}.jsonl`)
    writeFileSync(path, readFileSync(path, 'utf8').replace('"started"', '"stopped"'))
    const { status, stderr } = run('plan', 'report', runId, '--runs', folder.path)
    expect(status).toBe(1)
    expect(stderr).toMatch(/^error PLAN_RUN_DAMAGED: .*line 3 at offset \d+: its checksum is wrong/)
  })
})

describe('plan run', () => {
  it('dry, says what would happen and changes nothing', async () => {
    await using site = await ReplicaSite.open()
    const { status, stdout, stderr } = run(
      'plan',
      'run',
      site.plan(),
      '--kind',
      'unplanned',
      '--dry-run',
      ...site.runs,
    )
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    expect(stdout).toContain('Dry run of plan shop as Unplanned: nothing was changed.')
    expect(stdout).toMatch(/^web01 +Latest +\d+ of .* UTC, crash-consistent/m)
    expect(existsSync(site.place.path('runs'))).toBe(false)
  })

  it('fails over, waits with an exit code of its own, and is continued', async () => {
    await using site = await ReplicaSite.open()
    const file = site.plan({ before: [{ manual: 'Set the address.' }] })
    const first = run('plan', 'run', file, '--kind', 'unplanned', '--yes', ...site.runs)
    expect(first.status).toBe(6)
    expect(first.stdout).toContain('Waiting for somebody:\n  Set the address.')
    expect(first.stderr).toMatch(/^\d\d:\d\d:\d\d {2}Done {9}failover web01$/m)
    const [, runId = ''] = /^Run (\S+): /m.exec(first.stdout) ?? []
    const second = run('plan', 'continue', runId, '--json', ...site.runs)
    expect({ status: second.status, stderr: second.stderr }).toEqual({ status: 0, stderr: '' })
    expect(JSON.parse(second.stdout)).toMatchObject({
      state: 'Completed',
      machines: [{ outcome: 'Recovered' }],
    })
    expect(existsSync(site.place.path('started'))).toBe(true)
    expect(run('plan', 'continue', runId, ...site.runs)).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/^error PLAN_RUN_FINISHED: /),
    })
  })

  it('holds test copies until a line comes, and then removes them', async () => {
    await using site = await ReplicaSite.open()
    const file = site.plan({}, { testNbd: `unix:${site.place.path('test.sock')}` })
    const child = spawn(process.execPath, [main, 'plan', 'run', file, '--kind', 'test', ...site.runs])
    const status = new Promise((resolve) => child.once('exit', resolve))
    const output = new Promise<string>((resolve) => {
      let text = ''
      child.stdout.setEncoding('utf8').on('data', (part: string) => (text += part))
      child.stdout.once('end', () => resolve(text))
    })
    await Promise.race([untilThere(site.place.path('test.sock')), status])
    child.stdin.end('\n')
    expect(await status).toBe(0)
    expect(await output).toMatch(/WaitingForInput[\s\S]*Completed/)
    await using replica = await openReplica({ directory: site.place.path('replica') })
    expect((await replica.testFailovers()).map(({ endedMs }) => endedMs !== null)).toEqual([true])
  })

  it('does not begin what nobody has agreed to', async () => {
    await using site = await ReplicaSite.open()
    const { status, stderr } = run('plan', 'run', site.plan(), '--kind', 'unplanned', ...site.runs)
    expect(status).toBe(2)
    expect(stderr).toMatch(/^error OPTION_OUT_OF_RANGE: nobody can be asked .* --yes/)
    expect(existsSync(site.place.path('runs'))).toBe(false)
  })

  it.each([
    [['run', example]],
    [['run', example, '--kind', 'drill']],
    [['continue', 'shop-20261121T101500Z-Test', '--redo', '--skip']],
  ])('refuses %j', (args) => {
    expect(run('plan', ...args)).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/^error OPTION_OUT_OF_RANGE: /),
    })
  })
})

async function untilThere(path: string): Promise<void> {
  while (!existsSync(path)) await new Promise((resolve) => setTimeout(resolve, 20))
}

/** A replica whose primary is gone, and plans for it. */
class ReplicaSite implements AsyncDisposable {
  readonly place = new Workplace(3)
  readonly runs: readonly string[]

  private constructor() {
    this.runs = ['--runs', this.place.path('runs')]
  }

  static async open(): Promise<ReplicaSite> {
    const site = new ReplicaSite()
    const disk = site.place.makeDisk('os.raw', MIB)
    await using engine = await site.place.open()
    const machine = await site.place.enable(engine, [disk])
    await machine.startInitialReplication()
    return site
  }

  /** A file with a plan of two groups; `boot` is added to the second, `machine` to its machine. */
  plan(boot: object = {}, machine: object = {}): string {
    const file = this.place.path('plan.yaml')
    const web01 = { replica: 'replica', start: ['sh', '-c', 'echo >started'], ...machine }
    const groups = [{ machines: ['web01'] }, { type: 'Boot', machines: ['web01'], ...boot }]
    writeFileSync(file, JSON.stringify({ name: 'shop', machines: { web01 }, groups }))
    return file
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.place.remove()
  }
}
