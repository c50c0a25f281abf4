/**
 * Verbs of a whole consistency group: a member that refuses refuses for all of them, by its name; one that dies in the middle
 * leaves what the same call carries through.
 */

import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import {
  cancelGroupFailover,
  changeGroupPoint,
  commitGroupFailover,
  type GroupFailover,
  openReplica,
  type Replica,
  startGroupFailover,
  startGroupTestFailover,
  stopGroupTestFailover,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { run, runHere, start } from './cli-command.js'
import { GroupPlace, MEMBERS } from './group-place.js'
import { expectShows, type Moment } from './recovery-oracle.js'
import { KIB } from './workplace.js'

let place: GroupPlace

beforeEach(async () => {
  place = new GroupPlace()
  await place.begin()
  await place.commonCut()
  await place.commonCut()
})

afterEach(() => place.end())

/** The primary's site is gone, and all are failed over to the newest cut. */
async function failOver(): Promise<Replica[]> {
  await place.engine.abandon()
  const replicas = await place.openReplicas()
  await startGroupFailover(replicas)
  return replicas
}

/** The group's older cut. */
const older = () => ({ point: { groupPointId: place.groupPointIds[0] ?? '' } })

/** Replicas that die at a step of one member. */
async function dyingAt(machine: string, step: string): Promise<Replica[]> {
  return place.openReplicas((at, name) => {
    if (name === machine && at === step) throw new Error('died')
  })
}

/** One member is committed by itself. */
async function commit(machine: string): Promise<void> {
  await place.replicas[MEMBERS.indexOf(machine as (typeof MEMBERS)[number])]?.commitFailover()
}

const refusal = (machine: string, reason: string, done: string[] = []) => ({
  code: 'GROUP_MEMBER_REFUSES',
  details: { machine, reason, done },
})

async function expectAt(
  { members }: GroupFailover,
  moment: Record<string, Moment> | undefined,
): Promise<void> {
  expect(members.map(({ machine }) => machine)).toEqual(MEMBERS)
  for (const { machine, failover } of members) await expectShows(failover, moment![machine]!)
}

async function expectAllAt(moment: Record<string, Moment> | undefined): Promise<void> {
  for (const [index, replica] of place.replicas.entries())
    await expectShows((await replica.failover())!, moment![MEMBERS[index] ?? '']!)
}

const ALL = (state: string): string[] => MEMBERS.map(() => state)

describe('a change of the common point', () => {
  it('brings all members to the cut, and leaves those that stand at it as they are', async () => {
    const replicas = await failOver()
    await expectAt(await changeGroupPoint(replicas, older()), place.moments[0])
    expect(await place.states()).toEqual(ALL('FailedOverWaitingCompletion'))
    const bytes = place.random.bytes(4 * KIB)
    const disk = (await replicas[0]?.failover())?.disks[0] ?? expect.unreachable('no disk')
    await disk.write(0, bytes)
    const again = await changeGroupPoint(replicas, older())
    expect(Buffer.from(await again.members[0]!.failover.disks[0]!.read(0, 4 * KIB)).equals(bytes)).toBe(true)
    await expectAt(await changeGroupPoint(replicas), place.moments[1])
  })

  it('is refused by the second member, and the first keeps its point and its writes', async () => {
    const replicas = await failOver()
    await commit('db01')
    await expect(changeGroupPoint(replicas, older())).rejects.toMatchObject(refusal('db01', 'INVALID_STATE'))
    await expectShows((await replicas[0]!.failover())!, place.moments[1]!['web01']!)
  })

  it('is refused where they share no such cut, with nothing changed', async () => {
    const replicas = await failOver()
    const point = 'LatestMultiVmApplicationConsistent'
    await expect(changeGroupPoint(replicas, { point })).rejects.toMatchObject({
      code: 'GROUP_POINT_NOT_FOUND',
    })
    await expectAllAt(place.moments[1])
  })

  it('that dies at the second member cannot be committed, and is carried through by the same call', async () => {
    await failOver()
    const dying = await dyingAt('db01', 'change.before-layers')
    await expect(changeGroupPoint(dying, older())).rejects.toMatchObject(
      refusal('db01', 'INTERNAL', ['web01']),
    )
    const replicas = await place.openReplicas()
    await expect(commitGroupFailover(replicas)).rejects.toMatchObject(refusal('db01', 'INVALID_STATE'))
    await expectAt(await changeGroupPoint(replicas, older()), place.moments[0])
  })
})

describe('a cancel of the group', () => {
  it('takes all members back, and is refused when nobody is failed over', async () => {
    const replicas = await failOver()
    await cancelGroupFailover(replicas)
    expect(await place.states()).toEqual(ALL('Replicating'))
    await expect(cancelGroupFailover(replicas)).rejects.toMatchObject(refusal('web01', 'INVALID_STATE'))
    await expectAt(await startGroupFailover(replicas), place.moments[1])
  })

  it('is refused whole by a member that is committed', async () => {
    const replicas = await failOver()
    await commit('mail01')
    await expect(cancelGroupFailover(replicas)).rejects.toMatchObject(refusal('mail01', 'INVALID_STATE'))
    expect(await place.states()).toEqual([
      'FailedOverWaitingCompletion',
      'FailedOverWaitingCompletion',
      'FailedOver',
    ])
  })

  it.each(['cancel.before-moving', 'cancel.before-files'])(
    'that dies at the second member at %s is carried through by the same call',
    async (step) => {
      await failOver()
      const dying = await dyingAt('db01', step)
      await expect(cancelGroupFailover(dying)).rejects.toMatchObject(refusal('db01', 'INTERNAL', ['web01']))
      const replicas = await place.openReplicas()
      await cancelGroupFailover(replicas)
      expect(await place.states()).toEqual(ALL('Replicating'))
    },
  )
})

describe('a commit of the group', () => {
  it('makes all final with what their disks show, and does no harm again', async () => {
    const replicas = await failOver()
    for (let count = 0; count < 2; count += 1) await commitGroupFailover(replicas)
    expect(await place.states()).toEqual(ALL('FailedOver'))
    for (const name of MEMBERS) {
      const image = readFileSync(`${place.replicaOf(name)}/${name}.raw.raw`)
      expect(image.equals(place.moments[1]![name]!.disks.get(`${name}.raw`)!), name).toBe(true)
    }
  })

  it('is refused whole by a locked point, and by one that is being read', async () => {
    const replicas = await failOver()
    const [point] = await replicas[1]!.points()
    await replicas[1]!.lockPoint(point!.number, place.clock.nowMs() + 60_000)
    await expect(commitGroupFailover(replicas)).rejects.toMatchObject(refusal('db01', 'POINT_LOCKED'))
    await using reader = await openReplica({ directory: place.replicaOf('mail01'), clock: place.clock })
    const view = await reader.openView()
    const dropLocked = true
    await expect(commitGroupFailover(replicas, { dropLocked })).rejects.toMatchObject(
      refusal('mail01', 'POINT_IN_USE'),
    )
    expect(await place.states()).toEqual(ALL('FailedOverWaitingCompletion'))
    await view.close()
    await commitGroupFailover(replicas, { dropLocked })
    expect(await place.states()).toEqual(ALL('FailedOver'))
  })

  it('is refused where members stand at different cuts', async () => {
    const replicas = await failOver()
    const [first] = (await replicas[2]!.points()).filter(
      ({ groupPointId }) => groupPointId === place.groupPointIds[0],
    )
    await replicas[2]!.changeRecoveryPoint({ point: first!.number })
    await expect(commitGroupFailover(replicas)).rejects.toMatchObject(refusal('mail01', 'INVALID_STATE'))
    expect(await place.states()).toEqual(ALL('FailedOverWaitingCompletion'))
  })

  it.each(['commit.before-settling', 'commit.before-settled'])(
    'that dies at the second member at %s is carried through by the same call',
    async (step) => {
      await failOver()
      const dying = await dyingAt('db01', step)
      await expect(commitGroupFailover(dying)).rejects.toMatchObject(refusal('db01', 'INTERNAL', ['web01']))
      const replicas = await place.openReplicas()
      await commitGroupFailover(replicas)
      expect(await place.states()).toEqual(ALL('FailedOver'))
    },
  )
})

describe('a test failover of the group', () => {
  it('shows one cut beside replication, and ends with all its copies, but with none of others', async () => {
    const replicas = await place.openReplicas()
    const single = await replicas[0]!.startTestFailover()
    const { groupTestId, point, members } = await startGroupTestFailover(replicas, older())
    expect([point.groupPointId, members.map(({ machine }) => machine)]).toEqual([
      place.groupPointIds[0],
      MEMBERS,
    ])
    for (const { machine, test } of members) await expectShows(test, place.moments[0]![machine]!)
    await place.commonCut()
    const other = await startGroupTestFailover(replicas)
    // By the real clock, as it waits for the holder.
    await using beside = await openReplica({ directory: place.replicaOf('db01') })
    expect((await beside.testFailovers()).map((test) => test.groupTestId)).toEqual([
      groupTestId,
      other.groupTestId,
    ])
    // Asked from beside, as by another process: who holds the copy ends it.
    expect(await stopGroupTestFailover([beside], groupTestId)).toHaveLength(1)
    await members[1]!.test.ended()
    expect(await stopGroupTestFailover(replicas, groupTestId)).toHaveLength(2)
    expect(await stopGroupTestFailover(replicas, groupTestId)).toEqual([])
    expect(await stopGroupTestFailover(replicas)).toHaveLength(3)
    expect(single.info).toMatchObject({ endedMs: null, isHeld: true, groupTestId: null })
    expect(existsSync(`${place.replicaOf('db01')}/tests/${members[1]!.test.id}`)).toBe(false)
  })

  it('is refused by the second member, and leaves no copy of the first', async () => {
    const replicas = await place.openReplicas()
    await replicas[1]!.startFailover({ fencePrimary: true })
    await expect(startGroupTestFailover(replicas)).rejects.toMatchObject(refusal('db01', 'INVALID_STATE'))
    expect(await replicas[0]!.testFailovers()).toEqual([])
  })

  it('that fails at its last member takes those before it back', async () => {
    const dying = await dyingAt('mail01', 'test.before-recording')
    await expect(startGroupTestFailover(dying)).rejects.toMatchObject(refusal('mail01', 'INTERNAL'))
    const tests = await Promise.all(dying.map((replica) => replica.testFailovers()))
    expect(tests.flat().every(({ endedMs }) => endedMs !== null)).toBe(true)
    expect(await stopGroupTestFailover(dying)).toEqual([])
  })
})

function folders(): string[] {
  return MEMBERS.map((name) => place.replicaOf(name))
}

/** The line with which a command says where it serves; what it says later is read and dropped. */
async function serving(child: ReturnType<typeof start>): Promise<Record<string, unknown>> {
  let printed = ''
  return new Promise((resolve, reject) => {
    child.once('close', () => reject(new Error(`it ended: ${printed}`)))
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      printed += text
      const line = printed
        .split('\n')
        .slice(0, -1)
        .find((one) => one.includes('"uris"'))
      if (line !== undefined) resolve(JSON.parse(line))
    })
  })
}

describe('the commands of a group', () => {
  it('test it until they are stopped, by another process as well', async () => {
    const child = start('group', 'test-failover', ...folders(), '--nbd', place.path('sockets'), '--json')
    const { groupTestId, groupPointId, uris } = await serving(child)
    expect([groupPointId, Object.keys(uris as object)]).toEqual([place.groupPointIds[1], MEMBERS])
    const closed = once(child, 'close')
    const stopped = JSON.parse(run('group', 'test-failover', ...folders(), '--stop', '--json').stdout)
    expect(stopped).toMatchObject({ stopped: MEMBERS.map((machine) => ({ machine })) })
    expect((await closed)[0]).toBe(0)
    expect(groupTestId).toMatch(/^[0-9a-f-]{36}$/)
    await place.openReplicas()
    expect(await stopGroupTestFailover(place.replicas)).toEqual([])
  })

  it('say what they would do, do it, and do no harm again', async () => {
    await failOver()
    await place.closeReplicas()
    const point = ['--point', place.groupPointIds[0] ?? '']
    const change = ['group', 'change-point', ...folders(), ...point, '--nbd', place.path('sockets'), '--json']
    expect(await runHere(change)).toMatchObject({
      exitCode: 3,
      objects: [{ outlook: { point: { groupPointId: place.groupPointIds[0] } } }, { done: false }],
    })
    for (const verb of ['cancel', 'commit'])
      expect(await runHere(['group', verb, ...folders(), '--json'])).toMatchObject({
        exitCode: 3,
        objects: [{ members: MEMBERS.map((machine) => ({ machine })) }, { done: false }],
      })
    const done = { members: MEMBERS.map((machine) => ({ machine, state: 'FailedOver' })) }
    for (let count = 0; count < 2; count += 1)
      expect(await runHere(['group', 'commit', ...folders(), '--yes', '--json'])).toMatchObject({
        exitCode: 0,
        objects: [done],
      })
    expect(await runHere(['group', 'cancel', ...folders(), '--yes'])).toMatchObject({
      exitCode: 3,
      failures: [{ code: 'GROUP_MEMBER_REFUSES', details: { machine: 'web01' } }],
    })
  })

  it('serve the disks of another cut, and take all of it back', async () => {
    await failOver()
    await place.closeReplicas()
    const point = ['--point', place.groupPointIds[0] ?? '', '--nbd', place.path('sockets')]
    const child = start('group', 'change-point', ...folders(), ...point, '--yes', '--json')
    await serving(child)
    expect(MEMBERS.every((name) => existsSync(place.path(`sockets/${name}.sock`)))).toBe(true)
    const closed = once(child, 'close')
    child.kill('SIGTERM')
    await closed
    expect(await runHere(['group', 'cancel', ...folders(), '--yes', '--json'])).toMatchObject({
      exitCode: 0,
      objects: [{ members: MEMBERS.map((machine) => ({ machine, state: 'Replicating' })) }],
    })
  })
})
