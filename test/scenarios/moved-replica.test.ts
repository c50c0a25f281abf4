/**
 * A replica whose folder stands somewhere else than where it was filled: its storage mounted under another path, or
 * brought to another host. It has all it needs inside of it, so everything works there as it did.
 */

import { existsSync, readFileSync, renameSync } from 'node:fs'
import { openReplica, type Replica, SecondsiteError } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { expectShows, type Moment, RecoveryPlace } from './recovery-oracle.js'

const POLICY = { recoveryPoints: 3, recoveryPointIntervalSeconds: 3600, keepEveryWrite: { hours: 24 } }

/** A place whose primary dies with a shipment that was received and not applied. */
class LostPrimary extends RecoveryPlace {
  isDying = false
  #moveCount = 0

  override open(): ReturnType<RecoveryPlace['open']> {
    return super.open({
      clock: this.clock,
      step: (name) => {
        if (this.isDying && name === 'apply.before-marking')
          throw new SecondsiteError('INTERNAL', { message: 'dead' })
      },
    })
  }

  /** Moves the replica's folder to a place where it has never been, and opens it there. */
  async move(): Promise<Replica> {
    await this.replica.close()
    const from = this.replica.directory
    const to = this.path(`elsewhere-${(this.#moveCount += 1)}`)
    renameSync(from, to)
    expect(existsSync(from)).toBe(false)
    this.replica = await openReplica({ directory: to, clock: this.clock })
    return this.replica
  }
}

let place: LostPrimary

beforeEach(() => {
  place = new LostPrimary()
})

afterEach(() => place.end())

/** Three points, the newest state, and on top of it a shipment that nobody has applied. @returns what the disks held last */
async function loseSite(): Promise<Moment> {
  await place.begin(POLICY)
  for (let cycle = 0; cycle < 3; cycle += 1) await place.cycle(60)
  place.isDying = true
  place.clock.advance(60_000)
  await place.scribble(place.machine, 4)
  await place.machine.replicate().catch(() => {})
  const last = place.remember()
  await place.engine.close()
  return last
}

describe('a replica whose folder was moved', () => {
  it('shows all of its points, restores and tests them', async () => {
    await loseSite()
    const replica = await place.move()
    const points = await replica.points({ deep: true })
    expect(points.map(({ damage }) => damage)).toEqual(points.map(() => null))
    expect(points.length).toBeGreaterThan(2)
    for (const { number, cutTimeMs } of points) {
      await using view = await replica.openView({ point: number })
      await expectShows(view, place.momentAt(cutTimeMs))
    }
  })

  it('is failed over to what was received last, moved again in the middle, and committed', async () => {
    const last = await loseSite()
    const failover = await (await place.move()).startFailover({ point: 'Latest' })
    await expectShows(failover, last)
    const bytes = place.random.bytes(4096)
    await failover.disks[0]?.write(8192, bytes)
    await failover.close()
    const again = await (await place.move()).failover()
    await again?.close()
    await place.replica.commitFailover()
    const name = again?.disks[0]?.name ?? ''
    const image = readFileSync(`${place.replica.directory}/${name}.raw`)
    const expected = Buffer.from(last.disks.get(name) ?? [])
    expected.set(bytes, 8192)
    expect(image.equals(expected)).toBe(true)
  })
})
