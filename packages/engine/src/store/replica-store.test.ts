import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'libsql'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ManualClock } from '../testing/manual-clock.js'
import { openLocked } from './lock.js'
import type { NewReplicaDisk, NewSpooledLog } from './replica-schema.js'
import { RecoveryStore } from './recovery-store.js'
import type { Claim } from './replica-claim.js'
import { ReplicaStore } from './replica-store.js'
import { StateStore } from './state-store.js'

const os: NewReplicaDisk = {
  diskId: 'd1',
  name: 'os',
  imagePath: '/outside/os.raw',
  sizeBytes: 1 << 20,
  receivedLogId: null,
  appliedLogId: null,
}
const claim: Claim = { relationshipId: 'r1', machine: 'web01', fencingNumber: 3, disks: [os] }

function spooled(logId: string, cycleNumber: number): NewSpooledLog {
  return {
    logId,
    diskId: 'd1',
    previousLogId: '0',
    cycleNumber,
    kind: 'delta',
    state: 'spooling',
    path: `${logId}.hrl`,
    indexPath: `${logId}.hrx`,
    logSizeBytes: 1000,
    indexSizeBytes: 100,
  }
}

function receipt(cycleNumber: number) {
  return {
    cycleNumber,
    kind: 'delta',
    state: 'receiving',
    cutTimeMs: 7,
    receivedMs: null,
    appliedMs: null,
    groupPointId: null,
  } as const
}

let directory = ''
let store: ReplicaStore
const clock = new ManualClock()

async function reopen(): Promise<void> {
  await store.close()
  store = ReplicaStore.open(directory, clock)
}

beforeEach(async () => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-replica-'))
  store = ReplicaStore.open(directory, clock)
  await store.claim(claim)
})

afterEach(async () => {
  await store.close()
  fs.rmSync(directory, { recursive: true })
})

describe('a replica store', () => {
  it('is its first claimant for ever', async () => {
    await reopen()
    expect(await store.identity()).toMatchObject({
      relationshipId: 'r1',
      state: 'WaitingForInitialReplication',
    })
    await expect(store.claim({ ...claim, relationshipId: 'r2', machine: 'db' })).rejects.toMatchObject({
      code: 'STORE_FOREIGN',
      details: { machine: 'db', heldFor: 'web01', path: directory },
    })
  })

  it('takes disks that join those it has, under a name that is free', async () => {
    const [first] = claim.disks
    const joining = { ...os, diskId: 'd2', name: 'data', imagePath: join(directory, 'data.raw') }
    const namesake = { ...os, diskId: '0123456789', imagePath: join(directory, 'os.raw') }
    await store.claim({ ...claim, disks: [first ?? os, joining, namesake] })
    const rows = (await store.disks()).map(({ diskId, name, isImageCreated }) => [
      diskId,
      name,
      isImageCreated,
    ])
    expect(rows).toEqual([
      ['d2', 'data', 0],
      [os.diskId, os.name, 0],
      ['0123456789', `${os.name}-01234567`, 0],
    ])
    await store.claim({ ...claim, disks: [namesake] })
    expect(await store.disks()).toHaveLength(3)
  })

  it('shrinks with a shipment that is applied, by no claim, and once: whatever comes late or again', async () => {
    const [small, middle] = [os.sizeBytes / 2, os.sizeBytes / 2 + 4096]
    const shrink = { diskId: 'd1', shrinkId: 's1', fromBytes: os.sizeBytes, toBytes: small }
    const shrinking = (sizeBytes: number, shrinkId = 's1'): Claim => ({
      ...claim,
      disks: [{ ...os, sizeBytes }],
      shrinks: new Map([['d1', { shrinkId, fromBytes: os.sizeBytes }]]),
    })
    const sizeBytes = async (): Promise<number | undefined> => (await store.disks())[0]?.sizeBytes
    const applied = async (number: number): Promise<void> => {
      await store.beginCycle({ ...receipt(number), shrinksJson: JSON.stringify([shrink]) }, [])
      await store.markReceived(number)
      await new RecoveryStore(store, clock).beginApply([number], () => false)
      expect(await sizeBytes(), 'not before it is applied').toBe(
        number === 1 ? os.sizeBytes : os.sizeBytes + 512,
      )
      await store.markApplied([number])
    }
    await store.claim(shrinking(small))
    await store.claim(shrinking(small))
    const foreign = { ...shrinking(small), relationshipId: 'r2' }
    await expect(store.claim(foreign)).rejects.toMatchObject({ code: 'STORE_FOREIGN' })
    await expect(store.claim({ ...shrinking(small), fencingNumber: 2 })).rejects.toMatchObject({
      code: 'FENCED',
    })
    await applied(1)
    await reopen()
    expect(await sizeBytes()).toBe(small)
    // Its primary has not learned yet that it is carried out, and the disk has grown.
    await store.claim(shrinking(middle))
    expect(await sizeBytes()).toBe(middle)
    await store.claim({ ...claim, disks: [{ ...os, sizeBytes: os.sizeBytes + 512 }] })
    await applied(2)
    expect(await sizeBytes(), 'the same shrink again').toBe(os.sizeBytes + 512)
    await expect(store.claim(shrinking(small, 's2'))).rejects.toMatchObject({ code: 'STORE_FOREIGN' })
  })

  it.each([
    ['another disk', { ...os, diskId: 'd2', name: 'other' }],
    ['a disk that has shrunk', { ...os, sizeBytes: os.sizeBytes - 512 }],
  ])('refuses %s and keeps what it has', async (_name, disk) => {
    await expect(store.claim({ ...claim, disks: [disk] })).rejects.toMatchObject({ code: 'STORE_FOREIGN' })
    expect(await store.disks()).toMatchObject([os])
  })

  it('remembers the size of a disk that has grown', async () => {
    await store.claim({ ...claim, disks: [{ ...os, sizeBytes: os.sizeBytes + 512 }] })
    expect(await store.disks()).toMatchObject([{ ...os, sizeBytes: os.sizeBytes + 512 }])
  })

  it('refuses a primary that was overtaken, also after a restart', async () => {
    await store.claim({ ...claim, fencingNumber: 4 })
    await reopen()
    await expect(store.claim(claim)).rejects.toMatchObject({
      code: 'FENCED',
      details: { fencingNumber: 3, heldNumber: 4 },
    })
    expect((await store.identity())?.fencingNumber).toBe(4)
  })

  it('is refused to a second opener and to the opener of a state directory', async () => {
    expect(() => ReplicaStore.open(directory, clock)).toThrow(
      expect.objectContaining({ code: 'STORE_IN_USE' }),
    )
    await store.close()
    fs.copyFileSync(join(directory, 'store.db'), join(directory, 'state.db'))
    expect(() => StateStore.open(directory, clock)).toThrow(
      expect.objectContaining({ code: 'STORE_CORRUPT' }),
    )
    store = ReplicaStore.open(directory, clock)
  })

  it('moves received and applied each on its own, and applied only after applying was announced', async () => {
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    await store.markApplied([1])
    expect(await store.disks()).toMatchObject([{ receivedLogId: null, appliedLogId: null }])
    await store.markReceived(1)
    expect(await store.disks()).toMatchObject([{ receivedLogId: 'a', appliedLogId: null }])
    await new RecoveryStore(store, clock).beginApply([1], () => false)
    await reopen()
    expect((await store.openCycles()).map((row) => row.state)).toEqual(['applying'])
    await store.markApplied([1])
    await store.markReceived(1)
    expect(await store.openCycles()).toEqual([])
    expect(await store.disks()).toMatchObject([{ receivedLogId: 'a', appliedLogId: 'a' }])
  })

  it('begins no apply once it was failed over, whatever it had received before', async () => {
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    await store.markReceived(1)
    await store.db.updateTable('identity').set({ state: 'RecoveryInProgress' }).execute()
    const begun = new RecoveryStore(store, clock).beginApply([1], () => false)
    await expect(begun).rejects.toMatchObject({ code: 'REPLICA_FAILED_OVER' })
    expect((await store.openCycles()).map((row) => row.state)).toEqual(['received'])
  })

  it('lets nobody write between what one of its decisions reads and what it writes', async () => {
    const beside = ReplicaStore.openBeside(directory, clock)
    const write = (): Promise<unknown> =>
      beside.db.updateTable('identity').set({ state: 'RecoveryInProgress' }).execute()
    await store.exclusively(async () => {
      await expect(write()).rejects.toMatchObject({ code: 'STORE_BUSY' })
    })
    // Who was refused writes durably afterwards: it is there for others, and stays behind a close.
    await write()
    expect((await store.identity())?.state).toBe('RecoveryInProgress')
    await beside.close()
    expect((await store.identity())?.state).toBe('RecoveryInProgress')
  })

  it('writes again after a refusal behind which the database could not be opened for a while', async () => {
    const beside = ReplicaStore.openBeside(directory, clock)
    const write = (): Promise<unknown> =>
      beside.db.updateTable('identity').set({ state: 'RecoveryInProgress' }).execute()
    const elsewhere = `${directory}-elsewhere`
    await store.exclusively(async () => {
      fs.renameSync(directory, elsewhere)
      await expect(write()).rejects.toMatchObject({ code: 'STORE_BUSY' })
      await expect(write()).rejects.toMatchObject({ details: { path: join(directory, 'store.db') } })
      fs.renameSync(elsewhere, directory)
    })
    await write()
    await beside.close()
    expect((await store.identity())?.state).toBe('RecoveryInProgress')
  })

  it('moves no watermark without what the shipment says of its disks', async () => {
    const unreadable = { ...receipt(1), shrinksJson: '[{' }
    await store.beginCycle(unreadable, [spooled('a', 1)])
    await store.markReceived(1)
    await new RecoveryStore(store, clock).beginApply([1], () => false)
    await expect(store.markApplied([1])).rejects.toThrow(SyntaxError)
    await reopen()
    expect((await store.openCycles()).map((row) => row.state)).toEqual(['applying'])
    expect(await store.disks()).toMatchObject([{ appliedLogId: null }])
    expect((await store.watermarks()).appliedShipment).toBe(0)
  })

  it('keeps the progress of a log when the cycle is begun again after a cut connection', async () => {
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    await store.setProgress('a', { logDurableBytes: 600, indexDurableBytes: 0 })
    await reopen()
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    expect(await store.unfinishedLogs()).toMatchObject([{ logId: 'a', logDurableBytes: 600 }])
  })

  it('does not believe progress past the end of a log', async () => {
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    const tooMuch = { logDurableBytes: 1001, indexDurableBytes: 0 }
    await expect(store.setProgress('a', tooMuch)).rejects.toThrow(/CHECK/)
    expect(await store.unfinishedLogs()).toMatchObject([{ logDurableBytes: 0 }])
  })

  it('remembers what a cut was, and of which group', async () => {
    const point = { pointKind: 'application-consistent', groupPointId: 'g1' } as const
    await store.beginCycle({ ...receipt(1), ...point }, [spooled('a', 1)])
    await reopen()
    expect(await store.openCycles()).toMatchObject([{ cycleNumber: 1, ...point }])
    const unknown = { ...receipt(2), pointKind: 'tested' as never }
    await expect(store.beginCycle(unknown, [])).rejects.toThrow(/CHECK/)
  })

  it('of version 1 is taken over: its cycles were crash-consistent cuts of the machine alone', async () => {
    await store.beginCycle(receipt(1), [spooled('a', 1)])
    await store.close()
    const raw = new Database(join(directory, 'store.db'))
    raw.exec('ALTER TABLE "cycles" DROP COLUMN "pointKind"; ALTER TABLE "cycles" DROP COLUMN "groupPointId"')
    raw.exec('ALTER TABLE "logs" DROP COLUMN "isCoalesced"')
    for (const table of ['points', 'keptLogs', 'testFailovers', 'failover', 'churn', 'notices'])
      raw.exec(`DROP TABLE "${table}"`)
    for (const column of ['recoveryJson', 'failoverSettingsJson'])
      raw.exec(`ALTER TABLE "identity" DROP COLUMN "${column}"`)
    for (const column of ['imageSizeBytes', 'isImageWhole', 'lastShrinkId'])
      raw.exec(`ALTER TABLE "disks" DROP COLUMN "${column}"`)
    raw.exec('ALTER TABLE "cycles" DROP COLUMN "shrinksJson"')
    raw.exec('PRAGMA user_version = 1')
    raw.close()
    store = ReplicaStore.open(directory, clock)
    const point = { pointKind: 'crash-consistent', groupPointId: null }
    expect(await store.openCycles()).toMatchObject([{ cycleNumber: 1, cutTimeMs: 7, ...point }])
  })

  it('a batch of initial replication does not move the chain', async () => {
    await store.beginCycle({ ...receipt(1), kind: 'initial' }, [{ ...spooled('a', 1), kind: 'initial' }])
    await store.markReceived(1)
    await new RecoveryStore(store, clock).beginApply([1], () => false)
    await store.markApplied([1])
    expect(await store.disks()).toMatchObject([{ receivedLogId: null, appliedLogId: null }])
  })

  it('changes state only from the state named', async () => {
    const change = {
      trigger: 'suspend',
      from: 'Replicating',
      to: 'Suspended',
      operator: 'ann',
      reason: '',
    } as const
    await expect(store.transition(change)).rejects.toMatchObject({ code: 'INVALID_STATE' })
    await store.transition({
      ...change,
      trigger: 'initialReplicationComplete',
      from: 'WaitingForInitialReplication',
      to: 'Replicating',
    })
    await store.transition(change)
    expect((await store.identity())?.state).toBe('Suspended')
    expect(await store.db.selectFrom('journal').select('trigger').execute()).toEqual([
      { trigger: 'initialReplicationComplete' },
      { trigger: 'suspend' },
    ])
  })
})

describe('the lock of a folder', () => {
  it('names the holder, and a killed holder leaves nothing behind', async () => {
    const folder = join(directory, 'locked')
    fs.mkdirSync(folder)
    const file = join(folder, 'lock')
    const holder = spawn('flock', ['-n', '-o', file, 'sh', '-c', 'echo held; sleep 1'], { stdio: 'pipe' })
    await once(holder.stdout, 'data')
    fs.writeFileSync(file, String(holder.pid))
    expect(() => openLocked(folder, 'STATE_IN_USE')).toThrow(
      expect.objectContaining({ code: 'STATE_IN_USE', details: { path: folder, processId: holder.pid } }),
    )
    holder.kill('SIGKILL')
    await once(holder, 'exit')
    const lock = openLocked(folder, 'STATE_IN_USE')
    lock.close()
    lock.close()
  })
})
