/** The commands of recovery, as an operator types them whose primary is gone: the folder of the replica is all there is. */

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { run, start } from './cli-command.js'
import { qemuIo } from './clients.js'
import { DISKS, type Moment, RecoveryPlace } from './recovery-oracle.js'
import { hasTool } from './tools.js'
import { KIB } from './workplace.js'

let place: RecoveryPlace
let moments: Moment[]
let folder: string

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4, recoveryPointIntervalSeconds: 60 })
  moments = [await place.cycle(60), await place.cycle(60)]
  await place.replica.close()
  await place.engine.close()
  folder = place.path('replica')
})

afterEach(() => place.remove())

const json = (...args: string[]) => {
  const { status, stdout, stderr } = run(...args, '--json')
  return {
    status,
    objects: stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line)),
    stderr,
  }
}

/** Starts a command that serves disks; resolves with the URIs that it prints. */
async function serving(...args: string[]) {
  const child = start(...args, '--json')
  let text = ''
  for await (const chunk of child.stdout) {
    text += String(chunk)
    const line = text.split('\n').find((one) => one.includes('"uris"') && one.endsWith('}'))
    if (line === undefined) continue
    const { uris } = JSON.parse(line) as { uris: string[] }
    await expectServed(uris)
    return { child, uris }
  }
  throw new Error(`ended with: ${text}`)
}

/** Exit codes of a client that reads a block of each disk. */
function readable(uris: readonly string[]): (number | null)[] {
  return uris.map((uri) => spawnSync('qemu-io', ['-r', '-f', 'raw', '-c', 'read 0 4k', uri]).status)
}

/** What is known to be written by that, in chunks of 64 KiB. */
const WRITTEN_BYTES = DISKS.length * 64 * KIB

/** The command still has the disks open that it says it serves. */
async function expectServed(uris: readonly string[]): Promise<void> {
  if (!hasTool('qemu-io', 'cli: writes to disks that are served')) return
  for (const uri of uris) await qemuIo(uri, 'write -P 7 0 4k', 'flush', 'read -P 7 0 4k')
}

async function stop(child: ReturnType<typeof start>): Promise<number | null> {
  return new Promise((resolve) => {
    child.once('close', (code) => resolve(code))
    child.stdout?.resume()
    child.kill('SIGTERM')
  })
}

describe('the commands of recovery', () => {
  it('list points, write them out and tell what differs', () => {
    const { status, objects } = json('points', folder)
    expect([status, objects[0].machine, objects[0].state]).toEqual([0, 'web01', 'Replicating'])
    const points = objects[0].points as { number: number; cutTimeMs: number; isLatest: boolean }[]
    expect(points.map(({ isLatest }) => isLatest)).toEqual([false, false, true])
    const older = points.find(({ cutTimeMs }) => cutTimeMs === moments[0]?.timeMs)
    const out = place.path('out')
    expect(run('restore', folder, '--point', String(older?.number), '--to', out).status).toBe(0)
    for (const name of DISKS) {
      expect(readFileSync(`${out}/${name}`).equals(moments[0]!.disks.get(name)!), name).toBe(true)
    }
    const difference = json('diff', folder, '--from', String(older?.number))
    expect(difference.status).toBe(1)
    expect(difference.objects[0].changedBytes).toBeGreaterThan(0)
    expect(run('points', place.path('nowhere')).stderr).toContain('REPLICA_NOT_FOUND')
    expect(run('restore', folder, '--point', 'yesterday', '--to', out).status).toBe(2)
  })

  it('test a failover beside everything else', async () => {
    const socket = place.path('test.sock')
    const { child, uris } = await serving('test-failover', 'start', folder, '--nbd', `unix:${socket}`)
    expect(uris).toHaveLength(DISKS.length)
    expect(json('test-failover', 'list', folder).objects[0].tests).toMatchObject([
      { name: 'web01 - Test', endedMs: null },
    ])
    expect(await stop(child)).toBe(0)
    const [test] = json('test-failover', 'list', folder).objects[0].tests as {
      id: string
      endedMs: number | null
    }[]
    expect(test?.endedMs).not.toBeNull()
    expect(existsSync(place.path(`replica/tests/${test?.id}`))).toBe(false)
  })

  it('say what a failover would do, do it, serve it again, commit it and reverse it', async () => {
    const socket = ['--nbd', `unix:${place.path('web01.sock')}`]
    const asked = json('failover', 'start', folder, ...socket)
    expect(asked.status).toBe(3)
    expect(asked.objects[0].outlook).toMatchObject({ state: 'Replicating', receivedBytes: 0 })
    expect(json('points', folder).objects[0].state).toBe('Replicating')
    const first = await serving('failover', 'start', folder, ...socket, '--yes')
    expect(readable(first.uris)).toEqual(DISKS.map(() => 0))
    await stop(first.child)
    expect(json('points', folder).objects[0].state).toBe('FailedOverWaitingCompletion')
    const again = await serving('failover', 'serve', folder, ...socket)
    expect(again.uris).toEqual(first.uris)
    expect(readable(again.uris)).toEqual(DISKS.map(() => 0))
    await stop(again.child)
    expect(run('failover', 'commit', folder).status).toBe(3)
    expect(run('failover', 'commit', folder, '--yes').status).toBe(0)
    expect(run('failover', 'cancel', folder, '--yes').stderr).toContain('INVALID_STATE')
    const states = ['--state', place.path('away'), '--former-state', place.path('state')]
    const home = ['--home', place.path('home')]
    const wouldReverse = json('reverse', folder, ...states, ...home)
    expect([wouldReverse.status, wouldReverse.objects[0].outlook.candidateBytes]).toEqual([3, WRITTEN_BYTES])
    const reversed = json('reverse', folder, ...states, ...home, '--yes')
    expect(reversed.status).toBe(0)
    expect(reversed.objects[0]).toMatchObject({
      machine: 'web01',
      candidateBytes: WRITTEN_BYTES,
      lostLogs: [],
    })
  })

  it('bring a machine home, say before what that means, and stop where they are told to', async () => {
    const socket = ['--nbd', `unix:${place.path('web01.sock')}`]
    await stop((await serving('failover', 'start', folder, ...socket, '--yes')).child)
    const states = ['--state', place.path('away'), '--home-state', place.path('state')]
    const trip = ['failback', folder, ...states, '--home', place.path('home')]
    const asked = json(...trip)
    expect([asked.status, asked.objects[0].outlook]).toMatchObject([
      3,
      {
        machine: 'web01',
        next: 'reverse',
        copyBytes: WRITTEN_BYTES,
        reverse: { primary: { bytes: 0 }, replica: { bytes: WRITTEN_BYTES }, pointCount: 3 },
      },
    ])
    expect(run(...trip).stdout).toContain('next reverse')
    expect(json('points', folder).objects[0].state).toBe('FailedOverWaitingCompletion')
    const halfway = json(...trip, '--until', 'synchronize', '--yes')
    expect(halfway.status, halfway.stderr).toBe(0)
    expect(halfway.objects.at(-1)).toMatchObject({ next: 'finalize', protected: null })
    expect(halfway.objects.at(-1).sentBytes).toBeLessThan(WRITTEN_BYTES)
    expect(json('points', place.path('home')).objects[0].state).toBe('FailbackInProgress')
    const arrived = json(...trip, '--yes')
    expect(arrived.objects.map(({ step, progress }) => step && `${step} ${progress}`)).toEqual([
      'finalize begun',
      'finalize done',
      'return begun',
      'return done',
      undefined,
    ])
    expect(arrived.objects.at(-1)).toMatchObject({
      next: null,
      sentBytes: 0,
      protected: { state: 'Replicating', replica: folder },
    })
    expect(json(...trip).objects[0].outlook).toMatchObject({ next: null })
    expect(run(...trip, '--cancel', '--yes').stderr).toContain('INVALID_STATE')
  })

  it('cancel a failover as if it had never been', async () => {
    const socket = ['--nbd', `unix:${place.path('web01.sock')}`]
    await stop((await serving('failover', 'start', folder, ...socket, '--yes')).child)
    expect(run('failover', 'cancel', folder, '--yes').status).toBe(0)
    expect(json('points', folder).objects[0].state).toBe('Replicating')
    expect(run('failover', 'serve', folder, ...socket).stderr).toContain('FAILOVER_NOT_FOUND')
  })
})
