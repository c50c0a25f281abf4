/**
 * One process has the disks of a failover open; others that end it, move it or make it final come to an understanding with it.
 */

import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type Failover, openReplica, type Replica, systemClock } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { run, start } from './cli-command.js'
import { qemuIo } from './clients.js'
import { expectShows, type Moment, RecoveryPlace, SetClock } from './recovery-oracle.js'
import { hasTool } from './tools.js'
import { KIB } from './workplace.js'

let place: RecoveryPlace
let moments: Moment[]
/** A replica opened a second time, as another process would. */
let other: Replica

beforeEach(async () => {
  place = new RecoveryPlace()
  await place.begin({ recoveryPoints: 4, recoveryPointIntervalSeconds: 60 }, systemClock)
  moments = []
  for (let cycle = 0; cycle < 2; cycle += 1) {
    await place.scribble(place.machine, 4)
    await place.machine.prepareFailover({ verify: false })
    moments.push(place.remember())
    await place.machine.cancelFailover()
  }
  await place.engine.close()
  other = await openReplica({ directory: place.path('replica') })
})

afterEach(async () => {
  await other.close()
  await place.end()
})

const holderFiles = (): string[] => readdirSync(place.path('replica/failover-holder'))

async function writeTo(failover: Failover, offset: number): Promise<Buffer> {
  const bytes = place.random.bytes(8 * KIB)
  await failover.disks[0]?.write(offset, bytes)
  return Buffer.from(bytes)
}

describe('a failover that somebody has open', () => {
  it('is opened by nobody else', async () => {
    await place.replica.startFailover()
    const refusal = { code: 'FAILOVER_IN_USE', details: { processId: process.pid } }
    await expect(other.failover()).rejects.toMatchObject(refusal)
    await place.replica.closeFailover()
    expect((await other.failover())?.disks).toHaveLength(2)
    await expect(place.replica.failover()).rejects.toMatchObject(refusal)
  })

  it('is committed by its holder where another asks for that, and takes writes before and after', async () => {
    const failover = await place.replica.startFailover()
    const before = await writeTo(failover, 0)
    await other.requireCommit()
    await other.commitFailover()
    expect(await other.state()).toBe('FailedOver')
    const after = await writeTo(failover, 64 * KIB)
    await place.replica.closeFailover()
    const image = readFileSync(place.path(`replica/${failover.disks[0]?.name}.raw`))
    expect(image.subarray(0, before.length).equals(before)).toBe(true)
    expect(image.subarray(64 * KIB, 64 * KIB + after.length).equals(after)).toBe(true)
    await other.commitFailover()
    expect(holderFiles()).toEqual(['lock'])
  })

  it('is left by its holder before another cancels it', async () => {
    const failover = await place.replica.startFailover()
    await writeTo(failover, 0)
    await other.cancelFailover()
    expect(failover.isClosed).toBe(true)
    await failover.ended()
    await expect(failover.disks[0]?.write(0, new Uint8Array(4096))).rejects.toBeDefined()
    expect(await other.state()).toBe('Replicating')
    await expectShows(await other.openView(), moments.at(-1)!)
    expect(holderFiles()).toEqual(['lock'])
  })

  it('is left by its holder before another goes to an older point', async () => {
    const failover = await place.replica.startFailover()
    await writeTo(failover, 0)
    const [first] = moments
    const changed = await other.changeRecoveryPoint({ timeMs: first?.timeMs ?? 0 })
    expect(failover.isClosed).toBe(true)
    await expectShows(changed, first!)
  })

  it('answers why it cannot be committed, and goes on', async () => {
    await place.replica.lockPoint((await place.replica.points())[0]?.number ?? 0, Date.now() + 3_600_000)
    const failover = await place.replica.startFailover()
    await expect(other.commitFailover()).rejects.toMatchObject({ code: 'POINT_LOCKED' })
    expect(await other.state()).toBe('FailedOverWaitingCompletion')
    await writeTo(failover, 0)
    await other.commitFailover({ dropLocked: true })
    expect(await other.state()).toBe('FailedOver')
  })

  it('is not taken from a holder that does not react', async () => {
    const failover = await place.replica.startFailover()
    // Its clock runs ahead of everybody: nobody gets to answer.
    const hurried = await openReplica({ directory: place.path('replica'), clock: new SetClock() })
    const refusal = { code: 'FAILOVER_IN_USE', details: { processId: process.pid } }
    await expect(hurried.cancelFailover()).rejects.toMatchObject(refusal)
    await hurried.close()
    expect([failover.isClosed, await other.state()]).toEqual([false, 'FailedOverWaitingCompletion'])
    await writeTo(failover, 0)
    expect(holderFiles()).toEqual(['lock'])
  })
})

/** The replica as a process has it that does something in the middle of a verb. */
function interrupted(at: string, action: () => Promise<unknown>): Promise<Replica> {
  const step = async (name: string): Promise<void> => {
    if (name === at) await action()
  }
  return openReplica({ directory: place.path('replica'), step })
}

describe('two who want something of one failover', () => {
  it('who begins it serves nothing once another has cancelled', async () => {
    await using first = await interrupted('failover.before-layers', () => other.cancelFailover())
    await expect(first.startFailover()).rejects.toMatchObject({ code: 'FAILOVER_NOT_FOUND' })
    expect(await other.state()).toBe('Replicating')
    expect(existsSync(place.path('replica/failover'))).toBe(false)
    await writeTo(await other.startFailover(), 0)
  })

  it('a cancel removes no files of a failover that began after it', async () => {
    await using first = await interrupted('cancel.before-files', async () => {
      await other.startFailover().catch(() => {})
    })
    await (await first.startFailover()).close()
    await first.cancelFailover()
    expect(await other.state()).toBe('RecoveryInProgress')
    const failover = await other.failover()
    const written = await writeTo(failover!, 0)
    await other.closeFailover()
    const again = await other.failover()
    expect(Buffer.from((await again?.disks[0]?.read(0, written.length))!).equals(written)).toBe(true)
  })

  it('it is opened at no other point than its row names', async () => {
    await using first = await interrupted('change.before-layers', async () => {
      await expect(other.failover()).rejects.toMatchObject({ code: 'FAILOVER_IN_USE' })
    })
    await first.startFailover()
    await expectShows(await first.changeRecoveryPoint({ timeMs: moments[0]?.timeMs ?? 0 }), moments[0]!)
    expect(await other.state()).toBe('FailedOverWaitingCompletion')
  })

  it('is committed once where two ask for it', async () => {
    const failover = await place.replica.startFailover()
    const before = await writeTo(failover, 0)
    await using third = await openReplica({ directory: place.path('replica') })
    await Promise.all([other.commitFailover(), third.commitFailover(), place.replica.commitFailover()])
    expect(await other.state()).toBe('FailedOver')
    await place.replica.closeFailover()
    const image = readFileSync(place.path(`replica/${failover.disks[0]?.name}.raw`))
    expect(image.subarray(0, before.length).equals(before)).toBe(true)
  })

  it('goes on with a commit that its holder began and did not survive', async () => {
    const back = new AbortController()
    const first = await interrupted('commit.before-opening', async () => {
      await first.closeFailover()
      await once(back.signal, 'abort')
    })
    const before = await writeTo(await first.startFailover(), 0)
    await other.commitFailover()
    expect(await other.state()).toBe('FailedOver')
    const failover = await other.failover()
    expect(Buffer.from((await failover?.disks[0]?.read(0, before.length))!).equals(before)).toBe(true)
    await other.closeFailover()
    back.abort()
    await first.close()
  })

  it('a request to leave that comes behind a commit takes nothing from the guest', async () => {
    const request = place.path('replica/failover-holder/request-late')
    await using first = await interrupted('commit.before-settling', async () => {
      writeFileSync(request, JSON.stringify({ verb: 'leave' }))
      await expect.poll(() => existsSync(request)).toBe(false)
    })
    const failover = await first.startFailover()
    await first.commitFailover()
    const answer = place.path('replica/failover-holder/answer-late')
    await expect.poll(() => existsSync(answer)).toBe(true)
    expect(JSON.parse(readFileSync(answer, 'utf8'))).toMatchObject({ error: { code: 'INVALID_STATE' } })
    expect(failover.isClosed).toBe(false)
    await writeTo(failover, 0)
  })
})

/** Starts a command that serves a failover. */
async function serve(...args: string[]) {
  const child = start('failover', ...args, '--nbd', `unix:${place.path('web01.sock')}`, '--json')
  let text = ''
  child.stdout.on('data', (piece: Buffer) => (text += piece.toString()))
  await expect.poll(() => text, { timeout: 100_000 }).toContain('"uris"')
  const { uris } = JSON.parse(text.split('\n').find((line) => line.includes('"uris"')) ?? '') as {
    uris: string[]
  }
  return { child, ended: once(child, 'exit'), uri: uris[0] ?? '' }
}

describe('a command that serves a failover', () => {
  it('lets another one commit beneath its client, and ends when another one cancels', async () => {
    if (!hasTool('qemu-io', 'failover holder: writes to disks that are served')) return
    await place.replica.close()
    const folder = place.path('replica')
    const first = await serve('start', folder, '--yes')
    await qemuIo(first.uri, 'write -P 5 0 64k', 'flush')
    expect(run('failover', 'cancel', folder, '--yes').status).toBe(0)
    expect(await first.ended).toEqual([0, null])
    expect(existsSync(place.path('replica/failover'))).toBe(false)
    const second = await serve('start', folder, '--yes')
    await qemuIo(second.uri, 'write -P 6 0 64k', 'flush')
    expect(run('failover', 'serve', folder, '--nbd', `unix:${place.path('second.sock')}`).stderr).toContain(
      'FAILOVER_IN_USE',
    )
    expect(run('failover', 'commit', folder, '--yes').status).toBe(0)
    await qemuIo(second.uri, 'read -P 6 0 64k', 'write -P 7 64k 64k', 'flush')
    second.child.kill('SIGKILL')
    await second.ended
    const third = await serve('serve', folder)
    await qemuIo(third.uri, 'read -P 6 0 64k', 'read -P 7 64k 64k')
    third.child.kill('SIGTERM')
    expect(await third.ended).toEqual([0, null])
  })
})
