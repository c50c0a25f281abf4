/** What the options of `protect` mean as a policy. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { protectRequest, words } from '../../packages/cli/dist/protect-options.js'

let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'secondsite-options-'))
})

afterEach(() => rmSync(folder, { recursive: true, force: true }))

function policyOf(given: object) {
  const all = { replica: 'r', nbd: 'unix:s', every: 30, ...given }
  return protectRequest(['os.raw'], all as never).machine.policy
}

describe('quiesce options', () => {
  it('are one hook, with its limits, and how often it is used', () => {
    expect(policyOf({ quiesceAgent: '/run/agent.sock', applicationConsistentEvery: 4 * 3600 })).toMatchObject(
      {
        quiesce: { method: 'guest-agent', socketPath: '/run/agent.sock' },
        applicationConsistentSnapshotFrequencyInHours: 4,
      },
    )
    expect(policyOf({ quiesceFsfreeze: ['/srv/a', '/srv/b'], quiesceLimit: 5 })).toMatchObject({
      quiesce: { method: 'fsfreeze', mounts: ['/srv/a', '/srv/b'], frozenLimitSeconds: 5 },
    })
    const command = {
      quiesceFreeze: ['/bin/freeze'],
      quiesceThaw: ['/bin/thaw'],
      quiescePrepare: ['/bin/checkpoint', 'now'],
    }
    expect(policyOf(command)).toMatchObject({
      quiesce: {
        method: 'command',
        freeze: ['/bin/freeze'],
        thaw: ['/bin/thaw'],
        prepare: ['/bin/checkpoint', 'now'],
      },
    })
    expect(policyOf({})).not.toHaveProperty('quiesce')
  })

  it.each([
    [{ quiesceAgent: '/a', quiesceFsfreeze: ['/b'] }, 'guest-agent, fsfreeze'],
    [{ quiescePrepare: ['/bin/checkpoint'] }, ''],
    [{ quiesceLimit: 5 }, ''],
  ])('that are more than one hook, or none with limits, are refused: %j', (given, value) => {
    expect(() => policyOf(given)).toThrow(
      expect.objectContaining({
        code: 'OPTION_OUT_OF_RANGE',
        details: { problems: [expect.objectContaining({ value })] },
      }),
    )
  })

  it('take a command as words, or as a list where a word has a blank', () => {
    expect(words('  /bin/psql -qc  CHECKPOINT ')).toEqual(['/bin/psql', '-qc', 'CHECKPOINT'])
    expect(words('["/bin/sh", "-c", "sync; true"]')).toEqual(['/bin/sh', '-c', 'sync; true'])
    for (const bad of ['["/bin/sh"', '[1]', '[["a"]]']) expect(() => words(bad)).toThrow('JSON list')
  })
})

describe('--failover-settings', () => {
  it('is read and checked before anything is protected', () => {
    const path = join(folder, 'web01.yaml')
    writeFileSync(path, 'memoryMiB: 512\n')
    expect(policyOf({ failoverSettings: path })).toMatchObject({ failoverSettings: { memoryMiB: 512 } })
    writeFileSync(path, 'memoryMiB: 1\n')
    expect(() => policyOf({ failoverSettings: path })).toThrow(
      expect.objectContaining({ code: 'FAILOVER_SETTINGS_INVALID' }),
    )
  })
})
