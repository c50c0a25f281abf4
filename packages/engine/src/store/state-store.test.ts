import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'libsql'
import { sql } from 'kysely'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ManualClock } from '../testing/manual-clock.js'
import type { NewCycle, NewDisk, NewLog, NewMachine } from './state-schema.js'
import { StateStore } from './state-store.js'

const DISK = '00000000-0000-4000-8000-0000000000d1'

function machine(name = 'web01', machineId = 'm1'): NewMachine {
  return {
    machineId,
    name,
    relationshipId: `r-${machineId}`,
    side: 'primary',
    mode: 'Primary',
    state: 'ReadyForInitialReplication',
    policyJson: '{}',
    replicaJson: '{}',
    createdMs: 1,
    resyncReason: null,
    resyncStartMs: null,
    errorJson: null,
    retryAtMs: null,
    lastReceivedMs: null,
    lastAppliedMs: null,
  }
}

function disk(diskId = DISK, machineId = 'm1'): NewDisk {
  return {
    diskId,
    machineId,
    position: 0,
    name: 'os',
    path: `/disks/${diskId}`,
    trackingDirectory: '/disks',
    sizeBytes: 2 ** 42,
  }
}

function log(logId: string, cycleNumber: number, logSizeBytes: number): NewLog {
  return {
    logId,
    diskId: DISK,
    previousLogId: '0',
    firstSequence: cycleNumber * 10,
    nextSequence: cycleNumber * 10 + 9,
    cycleNumber,
    kind: 'delta',
    state: 'sealed',
    path: `/disks/${logId}.hrl`,
    indexPath: `/disks/${logId}.hrx`,
    logSizeBytes,
    indexSizeBytes: 4096,
    entryCount: 9,
    dataBytes: 512,
    cutTimeMs: 5,
  }
}

function cycle(cycleNumber: number): NewCycle {
  return {
    machineId: 'm1',
    cycleNumber,
    kind: 'delta',
    state: 'cut',
    cutTimeMs: 5,
    receivedMs: null,
    appliedMs: null,
    groupPointId: null,
  }
}

const start = {
  machineId: 'm1',
  trigger: 'startInitialReplication',
  from: 'ReadyForInitialReplication',
  to: 'InitialReplicationInProgress',
  operator: 'ann',
  reason: 'asked for',
} as const

let directory = ''
let clock = new ManualClock()
let store: StateStore

async function reopen(): Promise<void> {
  await store.close()
  store = StateStore.open(directory, clock)
}

beforeEach(async () => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-state-'))
  clock = new ManualClock()
  store = StateStore.open(directory, clock)
  await store.addMachine(machine(), [disk()], 'ann', 'enable')
})

afterEach(async () => {
  await store.close()
  fs.rmSync(directory, { recursive: true })
})

describe('opening a state directory', () => {
  it('is refused while another has it, with the process that holds it', () => {
    expect(() => StateStore.open(directory, clock)).toThrow(
      expect.objectContaining({ code: 'STATE_IN_USE', details: { path: directory, processId: process.pid } }),
    )
  })

  it('is possible again after close, and all is still there', async () => {
    await reopen()
    expect((await store.machines()).map((row) => row.name)).toEqual(['web01'])
  })

  it('syncs at every commit and writes ahead', async () => {
    const journal = await sql<{ journal_mode: string }>`PRAGMA journal_mode`.execute(store.db)
    const sync = await sql<{ synchronous: number }>`PRAGMA synchronous`.execute(store.db)
    expect([journal.rows[0]?.journal_mode, sync.rows[0]?.synchronous]).toEqual(['wal', 2])
  })

  it('refuses a newer format, changes nothing, and gives the lock back', async () => {
    await store.close()
    const path = join(directory, 'state.db')
    const raw = new Database(path)
    raw.exec('PRAGMA user_version = 99')
    raw.close()
    for (const attempt of [1, 2]) {
      expect(() => StateStore.open(directory, clock), `attempt ${attempt}`).toThrow(
        expect.objectContaining({
          code: 'STORE_VERSION_NEWER',
          details: { path, version: 99, knownVersion: 6 },
        }),
      )
    }
    const back = new Database(path)
    back.exec('PRAGMA user_version = 6')
    back.close()
    store = StateStore.open(directory, clock)
  })

  it.each([
    ['of random bytes', Buffer.alloc(8192, 0x5a)],
    ['cut in the middle of a page', null],
  ])('refuses a database %s', async (_name, content) => {
    await store.close()
    const path = join(directory, 'state.db')
    if (content === null) fs.truncateSync(path, 5000)
    else fs.writeFileSync(path, content)
    expect(() => StateStore.open(directory, clock)).toThrow(
      expect.objectContaining({ code: 'STORE_CORRUPT' }),
    )
    fs.rmSync(path)
    store = StateStore.open(directory, clock)
  })

  it('refuses a database of another program', async () => {
    await store.close()
    const path = join(directory, 'state.db')
    fs.rmSync(path)
    const raw = new Database(path)
    raw.exec('PRAGMA application_id = 77; CREATE TABLE mine (a)')
    raw.close()
    expect(() => StateStore.open(directory, clock)).toThrow(
      expect.objectContaining({ code: 'STORE_CORRUPT' }),
    )
    fs.rmSync(path)
    store = StateStore.open(directory, clock)
  })

  it('says which folder is missing permission or is a file', () => {
    const file = join(directory, 'plain')
    fs.writeFileSync(file, '')
    expect(() => StateStore.open(file, clock)).toThrow(expect.objectContaining({ name: 'SecondsiteError' }))
  })
})

describe('transition', () => {
  it('moves the state and journals who, why, from and to', async () => {
    await clock.advance(250)
    await store.transition(start)
    await reopen()
    expect((await store.machine('m1')).state).toBe('InitialReplicationInProgress')
    const [enabled, started] = await store.journal('m1')
    expect(enabled).toMatchObject({
      trigger: 'enable',
      fromState: 'Disabled',
      toState: 'ReadyForInitialReplication',
    })
    expect(started).toMatchObject({
      operator: 'ann',
      reason: 'asked for',
      fromState: start.from,
      toState: start.to,
    })
    expect((started?.timeMs ?? 0) - (enabled?.timeMs ?? 0)).toBe(250)
  })

  it('lets only one of two deciders win, and journals only that one', async () => {
    const results = await Promise.allSettled([store.transition(start), store.transition(start)])
    expect(results.map((result) => result.status).sort()).toEqual(['fulfilled', 'rejected'])
    expect(results.find((result) => result.status === 'rejected')?.reason).toMatchObject({
      code: 'INVALID_STATE',
    })
    expect(await store.journal('m1')).toHaveLength(2)
  })

  it('takes back state and journal when what belongs to it fails', async () => {
    await expect(store.transition(start, () => Promise.reject(new Error('stop')))).rejects.toThrow('stop')
    expect((await store.machine('m1')).state).toBe('ReadyForInitialReplication')
    expect(await store.journal('m1')).toHaveLength(1)
  })

  it('on a full disk says so as recoverable, changes nothing, and works once there is space', async () => {
    const pages = await sql<{ page_count: number }>`PRAGMA page_count`.execute(store.db)
    await sql`PRAGMA max_page_count = ${sql.lit(pages.rows[0]?.page_count ?? 0)}`.execute(store.db)
    const long = { ...start, reason: 'x'.repeat(100_000) }
    const failure = await store.transition(long).catch((error: unknown) => error)
    expect(failure).toMatchObject({ code: 'STATE_DISK_FULL', retryable: 'recoverable' })
    expect((await store.machine('m1')).state).toBe('ReadyForInitialReplication')
    await sql`PRAGMA max_page_count = 1000000`.execute(store.db)
    await store.transition(long)
    expect((await store.machine('m1')).state).toBe('InitialReplicationInProgress')
  })
})

describe('machines', () => {
  it('refuses a name or a disk that is protected already', async () => {
    await expect(store.addMachine(machine('web01', 'm2'), [], 'ann', '')).rejects.toMatchObject({
      code: 'MACHINE_EXISTS',
    })
    const same = { ...disk('other', 'm2'), path: disk().path }
    await expect(store.addMachine(machine('db', 'm2'), [same], 'ann', '')).rejects.toMatchObject({
      code: 'MACHINE_EXISTS',
    })
    expect(await store.journal('m2')).toEqual([])
  })

  it('leaves nothing but the journal when disabled', async () => {
    await store.addCycle(cycle(1), [log('a', 1, 1)])
    await store.removeMachine({ ...start, trigger: 'disable', to: 'Disabled' })
    expect(await store.machines()).toEqual([])
    for (const table of ['disks', 'logs', 'cycles'] as const) {
      expect(await store.db.selectFrom(table).selectAll().execute(), table).toEqual([])
    }
    expect((await store.journal('m1')).map((row) => row.trigger)).toEqual(['enable', 'disable'])
    await expect(store.machine('m1')).rejects.toMatchObject({ code: 'MACHINE_NOT_FOUND' })
  })
})

describe('cycles and logs', () => {
  it('queue in order and are forgotten last', async () => {
    await store.addCycle(cycle(1), [log('a', 1, 1000)])
    await store.addCycle(cycle(2), [log('b', 2, 500)])
    expect((await store.queuedLogs('m1')).map((row) => row.logId)).toEqual(['a', 'b'])
    await store.markReceived('m1', 1, 700)
    await reopen()
    expect((await store.openCycles('m1')).map((row) => [row.cycleNumber, row.state, row.sentBytes])).toEqual([
      [1, 'received', 700],
      [2, 'cut', 0],
    ])
    await store.markApplied('m1', 1)
    expect((await store.queuedLogs('m1')).map((row) => row.logId)).toEqual(['b'])
    expect((await store.logsOfCycle('m1', 1)).map((row) => row.state)).toEqual(['applied'])
    await store.forgetLogs(['a'])
    expect(await store.logsOfCycle('m1', 1)).toEqual([])
    expect((await store.machine('m1')).nextCycleNumber).toBe(3)
  })

  it('never move back when an answer comes twice or late', async () => {
    await store.addCycle(cycle(1), [log('a', 1, 1000)])
    await store.markApplied('m1', 1)
    await clock.advance(10)
    await store.markApplied('m1', 1)
    await store.markReceived('m1', 1, 99)
    expect((await store.logsOfCycle('m1', 1)).map((row) => row.state)).toEqual(['applied'])
    expect((await store.machine('m1')).lastAppliedMs).toBe(clock.nowMs() - 10)
  })

  it('remember the newest application-consistent cut that arrived, however many others follow', async () => {
    await store.addCycle({ ...cycle(1), cutTimeMs: 10, pointKind: 'application-consistent' }, [])
    await store.addCycle({ ...cycle(2), cutTimeMs: 20, groupPointId: 'g1' }, [])
    expect((await store.machine('m1')).lastApplicationConsistentCutMs).toBeNull()
    await store.markApplied('m1', 1)
    await store.markApplied('m1', 2)
    const times = { lastApplicationConsistentCutMs: 10, lastAppliedCutMs: 20 }
    expect(await store.machine('m1')).toMatchObject(times)
  })

  it('a cut that cannot be recorded in full is not recorded at all', async () => {
    await expect(store.addCycle(cycle(1), [log('a', 1, 1), log('a', 1, 1)])).rejects.toMatchObject({
      code: 'INTERNAL',
    })
    expect(await store.openCycles('m1')).toEqual([])
    expect((await store.machine('m1')).nextCycleNumber).toBe(1)
  })
})

describe('numbers', () => {
  it.each([2 ** 53, -1, 1.5, Number.NaN])('%s is refused, never rounded', async (sizeBytes) => {
    await expect(store.db.updateTable('disks').set({ sizeBytes }).execute()).rejects.toThrow()
    expect((await store.disks('m1'))[0]?.sizeBytes).toBe(2 ** 42)
  })

  it('2^53 - 1 comes back exactly', async () => {
    await store.db.updateTable('disks').set({ sizeBytes: Number.MAX_SAFE_INTEGER }).execute()
    expect((await store.disks('m1'))[0]?.sizeBytes).toBe(9007199254740991)
  })

  it('a boolean is stored as 0 or 1 and does not end the process', async () => {
    await store.db
      .updateTable('disks')
      .set({ isInitialDone: true as unknown as number })
      .execute()
    expect((await store.disks('m1'))[0]?.isInitialDone).toBe(1)
  })
})
