import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { systemClock } from '../clock.js'
import { parseFailoverSettings } from './failover-settings.js'
import { runInfo, stopLeftRun } from './runner.js'
import {
  makeRunFolder,
  readRecord,
  removeRunFolder,
  runFolder,
  type RunRecord,
  writeRecord,
} from './runner-record.js'

let replica: string

beforeEach(() => {
  replica = mkdtempSync(join(tmpdir(), 'secondsite-record-'))
})

afterEach(() => rmSync(replica, { recursive: true, force: true }))

function recordOf(socketDirectory: string): RunRecord {
  const { runner } = parseFailoverSettings({})
  const names = { version: 1, runId: 'test', token: 'token', kind: 'Test', name: 'web01 - Test' } as const
  const rest = { startedMs: 1, address: 'unix:/s', stopLimitSeconds: 1, process: null, domainId: null }
  return { ...names, ...rest, socketDirectory, runner }
}

describe('the folder of a run', () => {
  it('holds its sockets too, unless their paths were too long for a socket', () => {
    const short = runFolder(replica, 'test')
    expect(makeRunFolder(short)).toBe(short)
    const long = runFolder(join(replica, 'x'.repeat(100)), 'test')
    const elsewhere = makeRunFolder(long)
    expect(Buffer.byteLength(join(elsewhere, 'serial.sock'))).toBeLessThan(108)
    removeRunFolder(long, elsewhere)
    expect([existsSync(long), existsSync(elsewhere)]).toEqual([false, false])
  })

  it('says what was started, whole', () => {
    const folder = runFolder(replica, 'test')
    expect([readRecord(folder), runInfo(replica, 'test')]).toEqual([undefined, undefined])
    const record = recordOf(makeRunFolder(folder))
    writeRecord(folder, record)
    expect(readRecord(folder)).toEqual(record)
    expect(readdirSync(folder)).toEqual(['run.json'])
    expect(runInfo(replica, 'test')).toMatchObject({ name: 'web01 - Test', method: 'qemu', processId: null })
  })

  it.each([
    '',
    '{"version":1',
    '[]',
    'null',
    '{"version":2,"token":"t","runner":{}}',
    '{"version":1,"token":"","runner":{}}',
  ])('with a record that is no record is not taken for one without: %j', async (text) => {
    const folder = runFolder(replica, 'test')
    makeRunFolder(folder)
    writeFileSync(join(folder, 'run.json'), text)
    await expect(stopLeftRun(replica, 'test', systemClock)).rejects.toMatchObject({
      code: 'RUNNER_STOP_FAILED',
      details: { path: join(folder, 'run.json') },
    })
    expect(existsSync(folder)).toBe(true)
    expect(runInfo(replica, 'test')).toBeUndefined()
  })
})
