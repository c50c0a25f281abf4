/** Points that somebody asks for while those that no rule wants are let go. */

import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { FailoverRow, KeptLog } from '../store/recovery-schema.js'
import { RecoveryStore } from '../store/recovery-store.js'
import { ReplicaStore } from '../store/replica-store.js'
import { ManualClock } from '../testing/manual-clock.js'
import { PointKeeper } from './point-keeper.js'
import type { ReplicaWork } from './replica-work.js'

const CYCLE_COUNT = 4
const HOUR_MS = 3_600_000

let directory: string
let clock: ManualClock
let store: ReplicaStore
/** As another process has it, beside the one that applies. */
let beside: ReplicaStore

beforeEach(async () => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-keeper-'))
  clock = new ManualClock()
  store = ReplicaStore.open(directory, clock)
  const os = { diskId: 'd1', name: 'os', imagePath: join(directory, 'os.raw'), sizeBytes: 4096 }
  const disks = [{ ...os, receivedLogId: null, appliedLogId: null }]
  const retention = { hourly: 0, daily: 0, weekly: 0, lockHours: 0 }
  const keepEveryWrite = { hours: 0, bytesMax: 0 }
  const recoveryJson = JSON.stringify({
    recoveryPoints: 1,
    recoveryPointIntervalSeconds: 1,
    retention,
    keepEveryWrite,
  })
  await store.claim({ relationshipId: 'r1', machine: 'web01', fencingNumber: 1, disks, recoveryJson })
  for (let number = 1; number <= CYCLE_COUNT; number += 1) await applied(number)
  beside = ReplicaStore.openBeside(directory, clock)
})

afterEach(async () => {
  await beside.close()
  await store.close()
  fs.rmSync(directory, { recursive: true, force: true })
})

/** A cut that is applied; the state before it is a point. */
async function applied(cycleNumber: number): Promise<void> {
  const times = { cutTimeMs: cycleNumber * HOUR_MS, receivedMs: null, appliedMs: null }
  const point = { pointKind: 'crash-consistent', groupPointId: null, shrinksJson: null } as const
  await store.beginCycle({ cycleNumber, kind: 'delta', state: 'receiving', ...point, ...times }, [])
  await store.markReceived(cycleNumber)
  await new RecoveryStore(store, clock).beginApply([cycleNumber], () => true)
  await store.markApplied([cycleNumber])
}

/** Files of every point are there, nobody has pinned one, and `meanwhile` happens while that is found out. */
function workWith(meanwhile: () => Promise<unknown>): ReplicaWork {
  const merged: number[] = []
  const work: Partial<ReplicaWork> = {
    pinnedPoints: async () => {
      await meanwhile()
      return []
    },
    undoPoints: async () => [1, 2, 3].filter((point) => !merged.includes(point)),
    mergePoint: async ({ point }) => void merged.push(point),
    dropPointsBefore: async () => {},
    compactPoint: async () => {},
    step: () => {},
  }
  return work as ReplicaWork
}

/** What is left of the points 1 to 3, of which the rules want the last. */
async function leftAfter(meanwhile: (recovery: RecoveryStore) => Promise<unknown>): Promise<number[]> {
  const work = workWith(() => meanwhile(new RecoveryStore(beside, clock)))
  await new PointKeeper(store, work, clock).expire()
  return (await new RecoveryStore(store, clock).points()).map(({ pointNumber }) => pointNumber)
}

function keptLog(cycleNumber: number): KeptLog {
  const files = {
    path: join(directory, `${cycleNumber}.hrl`),
    indexPath: join(directory, `${cycleNumber}.hrx`),
  }
  const cut = { cycleNumber, cutTimeMs: cycleNumber * HOUR_MS, kind: 'delta', isCoalesced: 0 } as const
  return { logId: `l${cycleNumber}`, diskId: 'd1', sizeBytes: 4096, ...files, ...cut }
}

function failoverTo(pointNumber: number): FailoverRow {
  const point = { pointNumber, pointTimeMs: pointNumber * HOUR_MS, untilNs: null, untilWriteJson: null }
  const progress = {
    startedMs: 0,
    committedMs: null,
    undoneJson: null,
    reverseJson: null,
    isSettled: 0,
  } as const
  return { onlyRow: 1, kind: 'Unplanned', stateBefore: 'Replicating', ...point, ...progress }
}

describe('expiry', () => {
  it('lets go of what no rule wants', async () => {
    expect(await leftAfter(async () => {})).toEqual([3])
  })

  it('leaves a point that another process holds, to pin it, while readers are looked for', async () => {
    expect(await leftAfter((recovery) => recovery.hold(2, HOUR_MS))).toEqual([2, 3])
  })

  it('leaves a point that another process locks while readers are looked for', async () => {
    expect(await leftAfter((recovery) => recovery.lockPoint(1, clock.nowMs() + HOUR_MS))).toEqual([1, 3])
  })

  it('leaves the point of a failover, and the writes behind it, though it is open nowhere', async () => {
    const logs = [2, 3, 4].map((cycleNumber) => keptLog(cycleNumber))
    const recovery = new RecoveryStore(store, clock)
    await recovery.addKeptLogs(logs)
    await beside.db.insertInto('failover').values(failoverTo(2)).execute()
    expect(await leftAfter(async () => {})).toEqual([2, 3])
    expect((await recovery.keptLogs()).map(({ cycleNumber }) => cycleNumber)).toEqual([3, 4])
    await beside.db.deleteFrom('failover').execute()
    expect(await leftAfter(async () => {})).toEqual([3])
    expect(await recovery.keptLogs()).toEqual([])
  })
})
