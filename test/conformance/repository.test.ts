/**
 * What the documents and manifests say about the tree, held against the tree.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import * as engine from '@secondsite/engine'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))

function read(path: string): string {
  return readFileSync(`${root}/${path}`, 'utf8')
}

interface CargoPackage {
  readonly name: string
  readonly dependencies: readonly { readonly name: string; readonly kind: string | null }[]
}

describe('crates', () => {
  const metadata = execFileSync('cargo', ['metadata', '--format-version', '1', '--no-deps', '--offline'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  })
  const packages = (JSON.parse(metadata) as { packages: CargoPackage[] }).packages

  it('import downwards only: node, nbd, disk, hrl', () => {
    const edges = packages.flatMap((one) =>
      one.dependencies
        .filter((dependency) => dependency.name.startsWith('secondsite-') && dependency.kind === null)
        .map((dependency) => `${one.name} -> ${dependency.name}`),
    )
    expect(edges.sort()).toEqual([
      'secondsite-disk -> secondsite-hrl',
      'secondsite-nbd -> secondsite-disk',
      'secondsite-node -> secondsite-disk',
      'secondsite-node -> secondsite-hrl',
      'secondsite-node -> secondsite-nbd',
    ])
  })

  it('know Node in one place', () => {
    const napi = packages.filter((one) => one.dependencies.some((dependency) => dependency.name === 'napi'))
    expect(napi.map((one) => one.name)).toEqual(['secondsite-node'])
  })
})

describe('the public package', () => {
  it('exports these values and no others', () => {
    expect(Object.keys(engine).sort()).toEqual([
      'Engine',
      'FAILBACK_STEPS',
      'ReplicaTargets',
      'SecondsiteError',
      'abandonPlan',
      'applyLogs',
      'cancelFailback',
      'cancelGroupFailover',
      'changeGroupPoint',
      'chooseGroupPoint',
      'commitGroupFailover',
      'continuePlan',
      'digestDisk',
      'explainFailback',
      'explainPlannedFailover',
      'explainReverse',
      'exportLog',
      'failback',
      'failoverSettingsJsonSchema',
      'forecastPlan',
      'forecastText',
      'formatBytes',
      'formatDuration',
      'groupPoints',
      'isSecondsiteError',
      'listPlanRuns',
      'notifyService',
      'openReplica',
      'parsePlan',
      'planJsonSchema',
      'planReport',
      'planStages',
      'plannedFailover',
      'readEntries',
      'readFailoverSettings',
      'readPlan',
      'reportHtml',
      'reportText',
      'reverseReplication',
      'showLog',
      'startGroupFailover',
      'startGroupTestFailover',
      'startPlan',
      'stopGroupTestFailover',
      'syncDisks',
      'systemClock',
      'verifyDisks',
      'verifyLogs',
    ])
  })
})

describe('SPECIFICATION.md', () => {
  const promises = [...read('SPECIFICATION.md').matchAll(/^(\d+)\. \*\*.*$/gm)]

  it('numbers its promises without a gap', () => {
    expect(promises.map((promise) => Number(promise[1]))).toEqual(promises.map((_, index) => index + 1))
  })

  it.each(promises.map((promise) => [Number(promise[1]), promise[0]] as const))(
    'promise %i names tests that exist, or says that they are pending',
    (_number, text) => {
      const tests = [...text.matchAll(/`([\w./-]+)(?:::([\w]+))?`/g)].filter(([, path]) =>
        /\.(rs|ts)$/.test(path ?? ''),
      )
      if (tests.length === 0) expect(text).toContain('[test pending]')
      for (const [, path = '', name] of tests) {
        expect(existsSync(`${root}/${path}`), path).toBe(true)
        if (name !== undefined) expect(read(path)).toContain(name)
      }
    },
  )
})
