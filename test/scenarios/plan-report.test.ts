/** What people read of recovery plans: dry runs, reports as text and as a page. */

import {
  continuePlan,
  forecastPlan,
  forecastText,
  type LoadedPlan,
  type PlanReport,
  parsePlan,
  reportHtml,
  reportText,
  SecondsiteError,
  startPlan,
} from '@secondsite/engine'
import { ManualClock } from '@secondsite/engine/testing'
import { describe, expect, it } from 'vitest'
import { CUT_MS, MANUAL, PlanFolder, PlanWorld, shopPlan } from './plan-world.js'

const START_MS = CUT_MS + 300_000

describe('a dry run', () => {
  it('says points, losses, sizes and times, and changes nothing', async () => {
    const targets = new PlanWorld()
    const forecast = await forecastPlan(shopPlan({ top: 'parallelMachines: 2' }), 'Unplanned', { targets })
    // Two at a time, 1.5 s each: db and web1, then web2.
    expect(forecast).toMatchObject({
      plan: 'shop',
      kind: 'Unplanned',
      lossSeconds: 40,
      lossBytes: 4096 * 10,
      copyBytes: 0,
      estimatedMs: 3000,
      isReady: true,
    })
    expect(forecast.machines.map(({ name, forecast: one }) => [name, one?.point?.sequence])).toEqual([
      ['db', 402],
      ['web1', 404],
      ['web2', 404],
    ])
    expect([targets.calls, targets.changes, targets.openCount]).toEqual([[], [], 0])
    expect(forecastText(forecast)).toBe(
      `Dry run of plan shop as Unplanned: nothing was changed.

machine  choice  point                                             loss              to copy  time
db       Latest  402 of 2026-11-21 09:55:00 UTC, crash-consistent  20.0 s, 8.0 KiB   0 B      1.5 s
web1     Latest  404 of 2026-11-21 09:55:00 UTC, crash-consistent  40.0 s, 16.0 KiB  0 B      1.5 s
web2     Latest  404 of 2026-11-21 09:55:00 UTC, crash-consistent  40.0 s, 16.0 KiB  0 B      1.5 s

loses 40.0 s, 40.0 KiB, copies 0 B, failovers take 3.0 s

step  group    what
1     group 1  shutdown web1
               shutdown web2
               shutdown db
2     group 2  failover db
               failover web1
               failover web2
3     group 3  boot db
4     group 4  boot web1
               boot web2
`,
    )
  })

  it('tells what is not ready', async () => {
    const targets = new PlanWorld({ missing: ['web2'] })
    const http = '{ url: "http://127.0.0.1:1/", headers: { A: { environment: SECONDSITE_TEST_UNSET } } }'
    const forecast = await forecastPlan(shopPlan({ last: `    after: [{ http: ${http} }]` }), 'Planned', {
      targets,
    })
    expect(forecast).toMatchObject({ isReady: false, lossSeconds: null, lossBytes: null, estimatedMs: null })
    expect(
      forecast.stages.flat().flatMap(({ step, error }) => (error ? [`${step.id} ${error.code}`] : [])),
    ).toEqual([
      '1.web2 REPLICA_NOT_FOUND',
      '2.web2 REPLICA_NOT_FOUND',
      '4.web2 REPLICA_NOT_FOUND',
      '4.after.1 PLAN_ACTION_FAILED',
    ])
    expect(forecastText(forecast)).toContain('REPLICA_NOT_FOUND: no replica of web2')
  })
})

/** Hostile texts wherever a plan, a program or an error may bring one. */
const hostile = '<script>alert("x")</script>&\u0007'

function hostilePlan(): LoadedPlan {
  return parsePlan(
    JSON.stringify({
      name: 'shop',
      description: hostile,
      machines: { db: { replica: 'db' } },
      groups: [
        {
          name: '<b>one</b>',
          machines: ['db'],
          before: [{ name: '"><img src=x>', command: ['printf', '%s', `out ${hostile}`] }],
          after: [{ manual: `Do ${hostile}` }],
        },
      ],
    }),
  )
}

async function runOf(loaded: LoadedPlan, targets: PlanWorld): Promise<PlanReport> {
  using folder = new PlanFolder()
  const options = {
    directory: folder.path,
    targets,
    clock: new ManualClock(START_MS),
    operator: '<i>ada</i>',
  }
  return startPlan(loaded, 'Unplanned', options)
}

describe('a report', () => {
  it('is a table of text', async () => {
    using folder = new PlanFolder()
    const clock = new ManualClock(START_MS)
    const targets = new PlanWorld({
      during: async (verb, machine) => {
        await clock.advance(1000)
        if (verb === 'shutdown' && machine === 'db')
          throw new SecondsiteError('TRANSPORT_FAILED', { message: 'nobody answers\nat all' })
      },
    })
    const loaded = shopPlan({ top: 'parallelMachines: 1', last: MANUAL })
    const options = { directory: folder.path, targets, clock, operator: 'ada' }
    const first = await startPlan(loaded, 'Unplanned', options)
    expect(
      reportText(first),
    ).toBe(`Run shop-20261121T100000Z-Unplanned: plan shop as Unplanned, WaitingForInput
started 2026-11-21 10:00:00 UTC, 7.0 s
recovery time -, loss 40.0 s

machine  outcome    recovery time  point                                             loss              protected
db       Recovered  7.0 s          402 of 2026-11-21 09:55:00 UTC, crash-consistent  20.0 s, 8.0 KiB   no
web1     Open       -              404 of 2026-11-21 09:55:00 UTC, crash-consistent  40.0 s, 16.0 KiB  no
web2     Open       -              404 of 2026-11-21 09:55:00 UTC, crash-consistent  40.0 s, 16.0 KiB  no

step        group    what              state    tries  time   remark
1.web1      group 1  shutdown web1     Done     1      1.0 s
1.web2      group 1  shutdown web2     Done     1      1.0 s
1.db        group 1  shutdown db       Failed   1      1.0 s  TRANSPORT_FAILED: nobody answers
2.db        group 2  failover db       Done     1      1.0 s
2.web1      group 2  failover web1     Done     1      1.0 s
2.web2      group 2  failover web2     Done     1      1.0 s
3.db        group 3  boot db           Done     1      1.0 s
4.before.1  group 4  Set the address.  Waiting  1      0 ms
4.web1      group 4  boot web1         Pending  0      -
4.web2      group 4  boot web2         Pending  0      -

Waiting for somebody:
  Set the address.
`)
    await clock.advance(60_000)
    const second = await continuePlan(first.runId, options)
    expect(reportText(second)).toContain(
      'started 2026-11-21 10:00:00 UTC, 1 min 9 s, of it 1 min waiting for somebody',
    )
    expect(reportText(second)).toContain(
      '4.before.1  group 4  Set the address.  Done    1      1 min  by ada',
    )
  })

  it('shows no control character of a plan on a terminal', async () => {
    expect(reportText(await runOf(hostilePlan(), new PlanWorld()))).not.toMatch(/[^\P{Cc}\n]/u)
  })

  it('is a page that is whole by itself and takes no markup from plans and programs', async () => {
    const page = reportHtml(await runOf(hostilePlan(), new PlanWorld()))
    expect(page).not.toMatch(/<script|<img|<b>one|<i>ada|<[^>]*\s(src|href)=|url\(|@import|https?:/)
    expect(page).toContain('out &lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;')
    expect(page).toContain('&lt;i&gt;ada&lt;/i&gt;')
    expect(page).toContain("default-src 'none'; style-src 'unsafe-inline'")
    expect(page).toContain('@media print')
    expectBalanced(page)
  })

  it('draws a bar for each attempt, and shades the time in which nobody worked', async () => {
    using folder = new PlanFolder()
    const clock = new ManualClock(START_MS)
    let isFirst = true
    const targets = new PlanWorld({
      during: async (verb, machine) => {
        await clock.advance(1000)
        if (verb !== 'failover' || machine !== 'db' || !isFirst) return
        isFirst = false
        throw new SecondsiteError('STORE_BUSY', { message: 'busy' })
      },
    })
    const options = { directory: folder.path, targets, clock }
    const first = await startPlan(shopPlan({ top: 'parallelMachines: 1' }), 'Planned', options)
    await clock.advance(6000)
    const page = reportHtml(await continuePlan(first.runId, options))
    // 3 shutdowns, 1 that failed, 6 s of nobody, 3 failovers, 3 boots: 16 s on 652 units.
    expect([...page.matchAll(/<rect class="bar/g)]).toHaveLength(10)
    expect(page).toContain('<rect class="idle" x="463.0" y="0" width="244.5"')
    expect(page).toContain('<rect class="bar Failed machine" x="422.3"')
    expectBalanced(page)
  })

  it('of a run that has just begun has no picture', () => {
    const empty: PlanReport = {
      runId: 'shop-20261121T100000Z-Test',
      plan: 'shop',
      description: null,
      kind: 'Test',
      state: 'InProgress',
      startedMs: START_MS,
      lastMs: START_MS,
      recoveryTimeMs: null,
      waitedMs: 0,
      lossSeconds: null,
      machines: [],
      steps: [],
      sessions: [],
    }
    expect(reportHtml(empty)).not.toContain('<svg')
    expect(reportText(empty)).toContain('recovery time -, loss -')
  })
})

/** Every element that is opened is closed, in order; a page that is not would swallow what follows. */
function expectBalanced(page: string): void {
  const open: string[] = []
  for (const [, close = '', name = '', self = ''] of page.matchAll(/<(\/?)([a-z][a-z0-9]*)[^>]*?(\/?)>/g)) {
    if (name === 'meta' || self === '/') continue
    if (close === '') open.push(name)
    else expect(open.pop()).toBe(name)
  }
  expect(open).toEqual([])
}
