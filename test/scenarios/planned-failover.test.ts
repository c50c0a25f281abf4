/**
 * A planned failover that reverses replication at once: the new primary owes nothing, what would stop it between its two
 * steps is refused before the first, and whatever dies in the middle, the same call goes on.
 */

import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import {
  Engine,
  explainPlannedFailover,
  plannedFailover,
  type PlannedFailoverRequest,
  type ProtectedMachine,
} from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { run, runHere, start as serve } from './cli-command.js'
import { DISKS, RecoveryPlace } from './recovery-oracle.js'
import { KIB, MIB } from './workplace.js'

let place: RecoveryPlace
/** The engine of the second site. */
let away: Engine

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4 })
  await place.cycle(60)
  away = await openAway()
})

afterEach(async () => {
  await away.close()
  await place.end()
})

function openAway(): Promise<Engine> {
  return Engine.open({ stateDirectory: place.path('away-state'), clock: place.clock })
}

const request = (): PlannedFailoverRequest => ({
  engine: away,
  former: { engine: place.engine },
  directory: place.path('home-store'),
})

/** Nothing is owed, and what is written at the new primary reaches home. */
async function expectAway(machine: ProtectedMachine): Promise<void> {
  expect([machine.state, away.machines.length, place.engine.machines.length]).toEqual(['Replicating', 1, 0])
  const [disk] = machine.disks
  await disk?.write(64 * KIB, place.random.bytes(8 * KIB))
  await machine.replicate()
  for (const name of DISKS) {
    const active = readFileSync(place.path(`replica/${name}.raw`))
    expect(active.equals(readFileSync(place.path(name))), name).toBe(true)
  }
  expect(await machine.verify()).toMatchObject({ equal: true })
}

/** Both sides are as they were. */
async function expectUntouched(): Promise<void> {
  expect(await place.replica.failoverInfo()).toBeUndefined()
  expect(await place.replica.state()).toBe('Replicating')
  expect(place.engine.machines).toHaveLength(1)
}

describe('a planned failover that reverses', () => {
  it('leads to a primary that replicates home and owes nothing; again, it does no harm', async () => {
    await place.scribble(place.machine, 4)
    await place.machine.prepareFailover()
    const outlook = await explainPlannedFailover(place.replica, request())
    expect(outlook).toMatchObject({
      next: 'failover',
      failover: { point: { kind: 'planned' }, undoneBytes: 0 },
      reverse: { candidateBytes: 0, primary: { bytes: 0 }, replica: { bytes: 0 } },
    })
    await expectUntouched()
    const { machine, candidateBytes, lostLogs } = await plannedFailover(place.replica, request())
    expect([candidateBytes, lostLogs]).toEqual([0, []])
    await expectAway(machine)
    expect(await explainPlannedFailover(place.replica, request())).toMatchObject({ next: null })
    expect((await plannedFailover(place.replica, request())).machine).toBe(machine)
    const elsewhere = { ...request(), directory: place.path('elsewhere') }
    await expect(plannedFailover(place.replica, elsewhere)).rejects.toMatchObject({ code: 'INVALID_STATE' })
  })

  it('is refused before anything has changed where the primary was not prepared', async () => {
    for (const verb of [explainPlannedFailover, plannedFailover])
      await expect(verb(place.replica, request())).rejects.toMatchObject({ code: 'NOT_PREPARED' })
    await expectUntouched()
  })

  it('is refused where the primary has written since it was prepared', async () => {
    await place.machine.prepareFailover()
    await place.machine.cancelFailover()
    await place.machine.disks[0]?.write(0, place.random.bytes(4 * KIB))
    await expect(plannedFailover(place.replica, request())).rejects.toMatchObject({ code: 'SPLIT_BRAIN' })
    await expectUntouched()
  })

  it('is refused where the folder at home holds the replica of another machine', async () => {
    const disk = place.makeDisk('other.raw', MIB)
    const replica = { directory: place.path('home-store') }
    await place.engine.enable({ name: 'db01', disks: [disk], replica })
    await place.engine.machine('db01').startInitialReplication()
    await place.machine.prepareFailover()
    for (const verb of [explainPlannedFailover, plannedFailover])
      await expect(verb(place.replica, request())).rejects.toMatchObject({ code: 'STORE_FOREIGN' })
    expect(await place.replica.failoverInfo()).toBeUndefined()
    expect(place.machine.state).toBe('PreparedForFailover')
  })

  it('is refused where the engine over there has a machine of that name', async () => {
    const disks = [place.makeDisk('stranger.raw', MIB)]
    await away.enable({ name: 'web01', disks, replica: { directory: place.path('stranger') } })
    await place.machine.prepareFailover()
    await expect(plannedFailover(place.replica, request())).rejects.toMatchObject({ code: 'MACHINE_EXISTS' })
    expect(await place.replica.failoverInfo()).toBeUndefined()
    expect(place.engine.machines).toHaveLength(1)
  })

  it('takes no failover for its own that was not planned', async () => {
    await place.replica.startFailover({ fencePrimary: true })
    for (const verb of [explainPlannedFailover, plannedFailover])
      await expect(verb(place.replica, request())).rejects.toMatchObject({
        code: 'INVALID_STATE',
        details: { state: 'FailedOverWaitingCompletion' },
      })
    expect(place.engine.machines).toHaveLength(1)
  })

  it.each([
    'failover.before-layers',
    'failover.before-started',
    'planned-failover.before-reversing',
    'reverse.before-retiring',
    'reverse.before-ending',
  ])('that dies at %s is carried through by the next call', async (step) => {
    await place.machine.prepareFailover()
    await place.replica.close()
    await using dying = await place.openReplica((name) => {
      if (name === step) throw new Error('died')
    })
    await expect(plannedFailover(dying, request())).rejects.toThrow('died')
    await dying.close()
    await away.abandon()
    await place.engine.abandon()
    place.engine = await place.open({ clock: place.clock })
    away = await openAway()
    place.replica = await place.openReplica()
    expect((await explainPlannedFailover(place.replica, request())).next).toBe('reverse')
    const { machine } = await plannedFailover(place.replica, request())
    await expectAway(machine)
  })
})

/** The command line. */
function start(...args: string[]): string[] {
  const verb = ['failover', 'start', place.path('replica'), '--planned', '--reverse']
  const sides = ['--state', place.path('away-state'), '--former-state', place.path('state')]
  return [...verb, ...sides, '--home', place.path('home-store'), ...args]
}

/** The command that was printed takes the machine up and exports its disks. */
async function expectServes(command: string): Promise<void> {
  const socket = place.path('web01.sock')
  const child = serve(...command.replace('ADDRESS', `unix:${socket}`).split(' '))
  const closed = once(child, 'close')
  child.stdout.resume()
  child.stderr.resume()
  while (!existsSync(socket) && child.exitCode === null)
    await new Promise((resolve) => {
      setTimeout(resolve, 20)
    })
  child.kill('SIGTERM')
  expect((await closed)[0]).toBe(0)
}

describe('the command of it', () => {
  beforeEach(async () => {
    await place.machine.prepareFailover()
    await place.replica.close()
    await place.engine.close()
    await away.close()
  })

  it('says both outlooks, then does both, and says how the disks are served', async () => {
    const asked = await runHere(start('--json'))
    expect(asked).toMatchObject({
      exitCode: 3,
      objects: [
        { outlook: { next: 'failover', failover: { undoneBytes: 0 }, reverse: { candidateBytes: 0 } } },
        { done: false },
      ],
    })
    const said = (await runHere(start())).said.join('\n')
    expect(said).toMatch(/disks would begin with[^]*then replication is reversed:/)
    const done = run(...start('--yes'))
    expect([done.status, done.stdout]).toEqual([0, expect.stringContaining('secondsite protect ')])
    await expectServes(/secondsite (protect .*)$/m.exec(done.stdout)?.[1] ?? '')
    expect(await runHere(start('--yes', '--json'))).toMatchObject({
      exitCode: 0,
      objects: [{ outlook: { next: null } }, { machine: 'web01', state: 'Replicating' }],
    })
    place.engine = await place.open({ clock: place.clock })
    away = await openAway()
    await expectAway(away.machine('web01'))
  })

  it('that was killed between the two goes on by itself called again', async () => {
    await using replica = await place.openReplica()
    await replica.startFailover({ kind: 'Planned' })
    await replica.close()
    expect(await runHere(start('--json'))).toMatchObject({
      exitCode: 3,
      objects: [{ outlook: { next: 'reverse', failover: null, reverse: { candidateBytes: 0 } } }, {}],
    })
    expect(await runHere(start('--yes', '--json'))).toMatchObject({
      exitCode: 0,
      objects: [{}, { machine: 'web01', state: 'Replicating', candidateBytes: 0 }],
    })
  })

  it.each([[['--nbd', 'unix:web01.sock']], [['--run']], [['--point', '1']]])(
    'takes no %j, and nothing has changed',
    async (option) => {
      expect(await runHere(start(...option, '--yes'))).toMatchObject({
        exitCode: 2,
        failures: [{ code: 'OPTION_OUT_OF_RANGE' }],
      })
      await using replica = await place.openReplica()
      expect(await replica.state()).toBe('Replicating')
    },
  )
})
