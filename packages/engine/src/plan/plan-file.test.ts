import fs from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { SeededRandom } from '../random.js'
import { type PlanProblem, parsePlan, planJsonSchema, readPlan } from './plan-file.js'

const root = join(import.meta.dirname, '../../../..')
const folders: string[] = []

afterEach(() => {
  for (const folder of folders.splice(0)) fs.rmSync(folder, { recursive: true, force: true })
})

function folderOfTest(): string {
  const folder = fs.mkdtempSync(join(os.tmpdir(), 'secondsite-plan-'))
  folders.push(folder)
  return folder
}

function problemsOf(text: string): readonly PlanProblem[] {
  try {
    parsePlan(text)
  } catch (error) {
    if (isSecondsiteError(error, 'PLAN_INVALID')) return error.details['problems'] as unknown as PlanProblem[]
    throw error
  }
  return expect.unreachable('accepted')
}

/** Line:column path, and the text where it is short enough to pin. */
function placesOf(text: string): string[] {
  return problemsOf(text).map(({ line, column, path }) => `${line}:${column} ${path}`)
}

const GOOD = `name: shop
machines:
  db01: { replica: /r/db01 }
groups:
  - machines: [db01]
  - type: Boot
    machines: [db01]
`

describe('a plan file', () => {
  it('that is the example is read without a warning', () => {
    const { plan, directory, warnings } = readPlan(join(root, 'examples/plan.yaml'))
    expect(warnings).toEqual([])
    expect(directory).toBe(join(root, 'examples'))
    expect(plan.groups.map(({ name, type, machines }) => [name, type, machines.length])).toEqual([
      ['stop what still runs', 'Shutdown', 3],
      ['fail over', 'Failover', 3],
      ['start the database', 'Boot', 1],
      ['start the web servers', 'Boot', 2],
    ])
    expect(plan.groups[0]?.before[0]?.http).toMatchObject({
      method: 'PUT',
      headers: { Authorization: { environment: 'LB_TOKEN' } },
      body: { state: 'maintenance' },
      expect: [200, 204],
    })
  })

  it('gets its defaults filled in', () => {
    const { plan } = parsePlan(GOOD)
    expect(plan).toEqual({
      name: 'shop',
      point: 'Latest',
      parallelMachines: 10,
      testCleanup: 'Wait',
      machines: { db01: { replica: '/r/db01', timeoutSeconds: 300, fencePrimary: false } },
      groups: [
        { type: 'Failover', machines: ['db01'], before: [], after: [] },
        { type: 'Boot', machines: ['db01'], before: [], after: [] },
      ],
    })
  })

  it('may be JSON, may use anchors, and takes a point by time or sequence', () => {
    const text = JSON.stringify({
      name: 'shop',
      machines: {
        a: { replica: 'a', point: { sequence: 17 } },
        b: { replica: 'b', state: 's', point: { time: '2026-11-21T10:00:00+01:00' } },
      },
      groups: [{ machines: ['a', 'b'] }, { type: 'Boot', machines: ['a', 'b'] }],
    })
    const { plan } = parsePlan(text)
    expect(plan.machines['a']?.point).toEqual({ sequence: 17 })
    expect(plan.machines['b']?.point).toEqual({ time: '2026-11-21T10:00:00+01:00' })
    const anchored = GOOD.replace('[db01]', '&all [db01]').replace('machines: [db01]', 'machines: *all')
    expect(parsePlan(anchored).plan.groups[1]?.machines).toEqual(['db01'])
  })

  it('has its JSON Schema in docs (vitest -u renders it anew)', async () => {
    const text = `${JSON.stringify(planJsonSchema(), null, 2)}\n`
    await expect(text).toMatchFileSnapshot(join(root, 'docs/plan.schema.json'))
  })
})

describe('a bad plan file names every problem at its line', () => {
  it.each<[string, string, string[]]>([
    ['is empty', '', ['1:1 ']],
    ['is a list', '- a\n- b\n', ['1:1 ']],
    ['is a word', 'hello', ['1:1 ']],
    ['has only a name', 'name: shop\n', ['1:1 machines', '1:1 groups']],
    [
      'misspells a setting',
      GOOD.replace('type:', 'tipe:'),
      ['6:5 groups.1.tipe', '7:16 groups.1.machines.0'],
    ],
    ['misspells one at the top', `${GOOD}pont: Latest\n`, ['8:1 pont']],
    ['names a type that is not there', GOOD.replace('Boot', 'Start'), ['6:11 groups.1.type']],
    ['has a name with a slash', GOOD.replace('name: shop', 'name: ../shop'), ['1:7 name']],
    ['has a number for a name', GOOD.replace('name: shop', 'name: 17'), ['1:7 name']],
    ['has a machine that is a text', GOOD.replace('{ replica: /r/db01 }', '/r/db01'), ['3:9 machines.db01']],
    ['has a machine of no place', GOOD.replace('{ replica: /r/db01 }', '{}'), ['3:9 machines.db01.replica']],
    [
      'starts a machine by a shell',
      GOOD.replace('/r/db01 }', '/r/db01, start: virsh start }'),
      ['3:36 machines.db01.start'],
    ],
    [
      'exports a test copy nowhere',
      GOOD.replace('/r/db01 }', '/r/db01, testNbd: "10809" }'),
      ['3:38 machines.db01.testNbd'],
    ],
    [
      'reverses to nowhere',
      GOOD.replace('/r/db01 }', '/r/db01, state: s, reverse: { state: t } }'),
      ['3:48 machines.db01.reverse.home'],
    ],
    [
      'reverses a primary that nobody can ask',
      GOOD.replace('/r/db01 }', '/r/db01, reverse: { state: t, home: h } }'),
      ['3:29 machines.db01.reverse'],
    ],
    [
      'has a machine with the name of an action',
      GOOD.replace('db01:', 'before.1:').replaceAll('[db01]', '[before.1]'),
      ['3:3 machines.before.1'],
    ],
    [
      'has a machine with a strange name',
      GOOD.replace('db01:', '"db 01":').replaceAll('[db01]', '["db 01"]'),
      ['3:3 machines.db 01', '5:16 groups.0.machines.0', '7:16 groups.1.machines.0'],
    ],
    [
      'names an unknown machine',
      GOOD.replace('  - machines: [db01]', '  - machines: [db01, db02]'),
      ['5:22 groups.0.machines.1'],
    ],
    [
      'names a machine twice in a group',
      GOOD.replace('- machines: [db01]', '- machines: [db01, db01]'),
      ['5:22 groups.0.machines.1'],
    ],
    [
      'starts before it fails over',
      GOOD.replace('  - machines: [db01]', '  - { type: Boot, machines: [db01] }').replace(
        'Boot\n',
        'Failover\n',
      ),
      ['7:16 groups.1.machines.0'],
    ],
    [
      'has a point by time and sequence',
      GOOD.replace('/r/db01 }', '/r/db01, point: { time: 2026-11-21T10:00:00Z, sequence: 1 } }'),
      ['3:36 machines.db01.point'],
    ],
    [
      'has a point with a time of no zone',
      GOOD.replace('/r/db01 }', '/r/db01, point: { time: 2026-11-21T10:00:00 } }'),
      ['3:44 machines.db01.point.time'],
    ],
    [
      'has a point that is a word of its own',
      GOOD.replace('/r/db01 }', '/r/db01, point: Newest }'),
      ['3:36 machines.db01.point'],
    ],
    ['has a group of nothing', `${GOOD}  - name: nothing\n`, ['8:5 groups.2']],
    ['has no groups', GOOD.slice(0, GOOD.indexOf('groups')).concat('groups: []\n'), ['4:9 groups']],
    ['has an empty group list', `${GOOD}  -\n`, ['8:4 groups.2']],
  ])('%s', (_what, text, places) => {
    expect(placesOf(text)).toEqual(places)
  })

  const withAction = (action: string): string =>
    GOOD.replace('  - type', `    after:\n      - ${action}\n  - type`)

  it.each<[string, string, string[]]>([
    ['is a text', 'reboot now', ['7:9 groups.0.after.0']],
    ['does nothing', 'name: nothing', ['7:9 groups.0.after.0']],
    ['does two things', '{ command: [x], manual: y }', ['7:9 groups.0.after.0']],
    ['is a command line for a shell', '{ command: "rm -rf /" }', ['7:20 groups.0.after.0.command']],
    ['is a command of nothing', '{ command: [] }', ['7:20 groups.0.after.0.command']],
    ['has a number as argument', '{ command: [wait, 5] }', ['7:27 groups.0.after.0.command.1']],
    ['has a zero byte in an argument', '{ command: ["a\\0b"] }', ['7:21 groups.0.after.0.command.0']],
    [
      'has a timeout of text',
      '{ command: [x], timeoutSeconds: 5m }',
      ['7:41 groups.0.after.0.timeoutSeconds'],
    ],
    ['waits for ever', '{ command: [x], timeoutSeconds: 0 }', ['7:41 groups.0.after.0.timeoutSeconds']],
    [
      'waits for a manual step only so long',
      '{ manual: x, timeoutSeconds: 5 }',
      ['7:22 groups.0.after.0.timeoutSeconds'],
    ],
    [
      'gives a call an environment',
      '{ http: { url: "http://h/" }, environment: { A: b } }',
      ['7:39 groups.0.after.0.environment'],
    ],
    [
      'has an environment of numbers',
      '{ command: [x], environment: { A: 5 } }',
      ['7:43 groups.0.after.0.environment.A'],
    ],
    [
      'has a strange variable',
      '{ command: [x], environment: { "A=B": c } }',
      ['7:40 groups.0.after.0.environment.A=B'],
    ],
    ['calls no address', '{ http: { url: shop } }', ['7:24 groups.0.after.0.http.url']],
    ['calls a file', '{ http: { url: "file:///etc/passwd" } }', ['7:24 groups.0.after.0.http.url']],
    [
      'has a body in a GET',
      '{ http: { method: GET, url: "http://h/", body: x } }',
      ['7:50 groups.0.after.0.http.body'],
    ],
    [
      'splits a header',
      '{ http: { url: "http://h/", headers: { A: "b\\r\\nC: d" } } }',
      ['7:51 groups.0.after.0.http.headers.A'],
    ],
    [
      'has a header of two words',
      '{ http: { url: "http://h/", headers: { "A B": c } } }',
      ['7:48 groups.0.after.0.http.headers.A B'],
    ],
    [
      'expects status 99',
      '{ http: { url: "http://h/", expect: [99] } }',
      ['7:46 groups.0.after.0.http.expect.0'],
    ],
    ['is for a kind in lower case', '{ manual: x, on: [planned] }', ['7:27 groups.0.after.0.on.0']],
    ['is for no kind', '{ manual: x, on: [] }', ['7:26 groups.0.after.0.on']],
  ])('an action that %s', (_what, action, places) => {
    expect(placesOf(withAction(action))).toEqual(places)
  })

  it.each<[string, string, number]>([
    ['a key twice', `${GOOD}name: other\n`, 8],
    ['a tab as indentation', GOOD.replace('  db01', '\tdb01'), 3],
    ['a bracket left open', GOOD.replace('[db01]', '[db01'), 6],
    ['a tag of another program', GOOD.replace('shop', '!!js/function shop'), 1],
    ['two documents', `${GOOD}---\n${GOOD}`, 8],
    ['an alias of nothing', GOOD.replace('[db01]', '*nothing'), 5],
  ])('YAML with %s', (_what, text, line) => {
    expect(problemsOf(text)[0]).toMatchObject({ line })
  })

  it('tells all of them at once, in the order of the file', () => {
    const text = `name: a b
machines:
  db01: { replica: /r, point: Oldest }
groups:
  - type: Reboot
    machines: [db02]
    after: [{ command: [], on: [Drill] }]
    more: true
`
    expect(
      problemsOf(text).map(({ line, column, path, text: says }) => `${line}:${column} ${path}: ${says}`),
    ).toEqual([
      '1:7 name: is "a b", must be a name of 1 to 64 letters, digits, ".", "_" or "-", starting with a letter or digit',
      '3:31 machines.db01.point: is "Oldest", must be one of Latest, LatestProcessed, LatestApplicationConsistent, LatestMultiVmProcessed, LatestMultiVmApplicationConsistent, or a map with time or sequence',
      '5:11 groups.0.type: is "Reboot", must be one of Shutdown, Failover, Boot',
      '6:16 groups.0.machines.0: is "db02", must be a name under machines: db01',
      '7:24 groups.0.after.0.command: is [], must be a list of texts: the program, then its arguments (no shell reads them)',
      '7:33 groups.0.after.0.on.0: is "Drill", must be one of Planned, Unplanned, Test, Failback',
      '8:5 groups.0.more: there is no such setting',
    ])
  })

  it('is refused before an alias bomb goes off', () => {
    const lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    for (let level = 1; level < 10; level += 1)
      lines.push(`a${level}: &a${level} [${Array.from({ length: 10 }, () => `*a${level - 1}`).join(', ')}]`)
    expect(problemsOf(lines.join('\n'))[0]?.text).toMatch(/alias/i)
  })

  it('cannot reach the prototype of anything', () => {
    const text = GOOD.replace('{ replica: /r/db01 }', '{ replica: /r, __proto__: { point: Latest } }')
    expect(placesOf(text)).toEqual(['3:24 machines.db01.__proto__'])
    const command = '{ command: [x], environment: { constructor: y } }'
    const { plan } = parsePlan(withAction(command))
    expect(Object.entries(plan.groups[0]?.after[0]?.environment ?? {})).toEqual([['constructor', 'y']])
    expect(placesOf(withAction(command.replace('constructor', '__proto__')))).toEqual([
      '7:40 groups.0.after.0.environment.__proto__',
    ])
  })

  it('is refused with its path when it is no text, too large or missing', () => {
    const folder = folderOfTest()
    const file = join(folder, 'plan.yaml')
    const codeOf = (): unknown => {
      try {
        return readPlan(file)
      } catch (error) {
        return isSecondsiteError(error) && `${error.code} ${error.message.includes(file)}`
      }
    }
    expect(codeOf()).toBe('PATH_NOT_FOUND true')
    fs.writeFileSync(file, Buffer.from([0x6e, 0xff, 0xfe]))
    expect(codeOf()).toBe('PLAN_INVALID true')
    fs.writeFileSync(file, `name: shop\n#${'x'.repeat(4 << 20)}\n`)
    expect(codeOf()).toBe('PLAN_INVALID true')
  })
})

/** Pieces that mean something in YAML or in a plan, so that random changes reach beyond the first line. */
const PIECES = [
  '\n',
  '  ',
  '- ',
  ': ',
  '{',
  '}',
  '[',
  ']',
  '"',
  "'",
  '&a ',
  '*a',
  '!!x ',
  '|',
  '#',
  '\t',
  '\0',
  '---\n',
  'null',
  '~',
  '1e999',
  '<<: ',
  'machines',
  'groups',
  '\u{1f4be}',
]

function changed(text: string, random: SeededRandom): string {
  const at = random.below(text.length + 1)
  const removed = random.below(3) === 0 ? 0 : random.below(40)
  const piece = random.below(3) === 0 ? '' : (PIECES[random.below(PIECES.length)] ?? '')
  return text.slice(0, at) + piece + text.slice(at + removed)
}

describe('any text', () => {
  it('is a plan or PLAN_INVALID with places inside of the file', () => {
    const example = fs.readFileSync(join(root, 'examples/plan.yaml'), 'utf8')
    const random = new SeededRandom(20_261_121)
    let [good, bad] = [0, 0]
    for (let round = 0; round < 400; round += 1) {
      let text = example
      for (let count = 1 + random.below(4); count > 0; count -= 1) text = changed(text, random)
      const lineCount = text.split('\n').length
      try {
        good += parsePlan(text).plan.name === '' ? 0 : 1
      } catch (error) {
        if (!isSecondsiteError(error, 'PLAN_INVALID'))
          throw new Error(`round ${round}: ${text}`, { cause: error })
        const problems = error.details['problems'] as unknown as PlanProblem[]
        expect(problems.length).toBeGreaterThan(0)
        for (const { line, column } of problems) {
          expect(line).toBeGreaterThanOrEqual(1)
          expect(line).toBeLessThanOrEqual(lineCount)
          expect(column).toBeGreaterThanOrEqual(1)
        }
        bad += 1
      }
    }
    expect(good).toBeGreaterThan(10)
    expect(bad).toBeGreaterThan(10)
  })
})

describe('warnings', () => {
  it('say where a plan is larger than the original allows, and what is left out', () => {
    const names = Array.from({ length: 101 }, (_, index) => `m${index}`)
    const text = [
      'name: large',
      'machines:',
      ...names.map((name) => `  ${name}: { replica: /r/${name} }`),
      'groups:',
      `  - machines: [${names.slice(1).join(', ')}]`,
      ...Array.from({ length: 7 }, (_, index) => `  - { type: Boot, machines: [m${index + 2}] }`),
    ].join('\n')
    const { warnings } = parsePlan(text)
    const said = warnings.map(({ line, text: says }) => `${line} ${says.replace(/;.*|,.*/, '')}`)
    expect(said.slice(0, 4)).toEqual([
      '2 101 machines',
      '3 "m0" is failed over in no group',
      '4 "m1" is started in no Boot group',
      '12 "m9" is started in no Boot group',
    ])
    expect(said.at(-1)).toBe('104 8 groups')
  })
})
