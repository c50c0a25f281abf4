/**
 * Every example of the folder and the ten lines of the README run as they stand.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MIB, Workplace } from './workplace.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const examples = readdirSync(join(root, 'examples')).filter(
  (name) => name.endsWith('.mjs') && name !== 'workplace.mjs',
)

let place: Workplace

beforeEach(() => {
  place = new Workplace()
})

afterEach(() => place.remove())

function run(file: string, cwd: string): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [file], { cwd, encoding: 'utf8' })
  expect(stderr).toBe('')
  expect(status).toBe(0)
  return stdout
}

describe('examples', () => {
  it.each(examples)('%s runs', (name) => {
    expect(run(join(root, 'examples', name), root)).not.toBe('')
  })
})

describe('README.md', () => {
  it('has a first use that runs and ends in equality', () => {
    const [, code = ''] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8')) ?? []
    place.makeDisk('web01-os.raw', MIB)
    place.makeDisk('web01-data.raw', MIB)
    // Node 20 does not know `await using`; the compiler of the tree writes it out.
    const source = place.path('first-use.mts')
    writeFileSync(
      source,
      code.replace("'@secondsite/engine'", `'${import.meta.resolve('@secondsite/engine')}'`),
    )
    const options = ['--ignoreConfig', '--noCheck', '--target', 'es2022', '--module', 'esnext']
    execFileSync(join(root, 'node_modules/.bin/tsc'), [...options, source], { cwd: place.folder })
    expect(run(place.path('first-use.mjs'), place.folder)).toContain('equal: true')
  })
})
