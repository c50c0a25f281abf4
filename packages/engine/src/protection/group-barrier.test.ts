import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../random.js'
import { ManualClock } from '../testing/index.js'
import { GroupBarrier } from './group-barrier.js'
import type { MachineContext } from './machine-context.js'

function contextOf(): MachineContext {
  const work = { cut: async () => {} }
  return {
    random: new SeededRandom(1),
    clock: new ManualClock(),
    work,
    disks: [],
  } as unknown as MachineContext
}

describe('a round of two members', () => {
  it('is not over when one fails to ship while the other is still recording the cut', async () => {
    const context = contextOf()
    const barrier = new GroupBarrier(context, 'shop', ['web', 'db'])
    const [web, db] = [barrier.of('web'), barrier.of('db')]
    await Promise.all([web.gather(), db.gather()])
    const [point] = await Promise.all([web.cut(context), db.cut(context)])
    let isOver = false
    const ended = barrier.ended.then(() => {
      isOver = true
    })
    db.recorded()
    db.left(new Error('its replica is gone'))
    await new Promise(setImmediate)
    expect(isOver).toBe(false)
    web.recorded()
    await ended
    expect(barrier.point).toEqual(point)
    expect(point.groupPointId).not.toBeNull()
  })

  it('has no point when one could not record it', async () => {
    const context = contextOf()
    const barrier = new GroupBarrier(context, 'shop', ['web', 'db'])
    const [web, db] = [barrier.of('web'), barrier.of('db')]
    await Promise.all([web.gather(), db.gather()])
    await Promise.all([web.cut(context), db.cut(context)])
    db.left(new Error('the state is full'))
    web.recorded()
    await barrier.ended
    expect(barrier.point).toBeNull()
  })
})
