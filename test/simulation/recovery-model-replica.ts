/**
 * What the model of recovery asks of a replica that follows its primary: points, views, tests, moments, files.
 *
 * Nothing of it changes the replica; whatever is asked for is compared with the arrays of bytes.
 */

import { readFileSync } from 'node:fs'
import {
  isSecondsiteError,
  type KeptSpan,
  type PointView,
  type RecoveryPoint,
  type RecoveryPointChoice,
  type TestFailover,
} from '@secondsite/engine'
import { expect } from 'vitest'
import {
  change,
  type Content,
  copyOf,
  differingSectors,
  expectBytes,
  expectOrder,
  expectShows,
} from './recovery-model-oracle.js'
import type { World } from './recovery-model-world.js'

const HELD_MAX = 2
const CUT_MARGIN_MS = 60_000
const HOUR_MS = 3_600_000

export class ReplicaChecks {
  readonly #world: World
  #views: { readonly view: PointView; readonly content: Content }[] = []
  #tests: { readonly test: TestFailover; readonly content: Content }[] = []
  #locks = new Map<number, number>()

  constructor(world: World) {
    this.#world = world
  }

  /** Whether somebody reads a point. */
  get isRead(): boolean {
    return this.#views.length + this.#tests.length > 0
  }

  /** Points, views and tests are of the replica that was, and went with it. */
  forget(isNewReplica: boolean): void {
    this.#views = []
    this.#tests = []
    if (isNewReplica) this.#locks.clear()
  }

  /** Every point, or one of them, and everything that is open shows what it must. */
  async expectAll(isEveryPoint: boolean): Promise<void> {
    const points = await this.#world.open.points()
    expectOrder(points)
    const chosen = isEveryPoint
      ? points
      : points.slice(this.#world.random.below(points.length + 1)).slice(0, 1)
    for (const point of chosen) await this.#expectPoint(point)
    for (const { view, content } of this.#views)
      await expectShows(view, content, `the open view of ${view.state.number}`)
    for (const { test, content } of this.#tests) await expectShows(test, content, test.name)
    const nowMs = this.#world.clock.nowMs()
    for (const [number, untilMs] of this.#locks) {
      if (untilMs > nowMs) expect(points.map((point) => point.number)).toContain(number)
    }
  }

  async #expectPoint({ number, cutTimeMs, isLatest, kind }: RecoveryPoint): Promise<void> {
    const content = this.#world.history.at(cutTimeMs)
    if (kind === 'application-consistent')
      expect(this.#world.restCutsMs, 'cuts at which the applications were at rest').toContain(cutTimeMs)
    try {
      await using view = await this.#world.open.openView({ point: number })
      await expectShows(view, content, `point ${number}`)
    } catch (error) {
      // An image that a death left in the middle of an apply shows no state until that is done again.
      if (!(isLatest && isSecondsiteError(error, 'POINT_NOT_FOUND'))) throw error
    }
  }

  /** A state that can be asked for. */
  async choose(): Promise<RecoveryPointChoice> {
    const { random, history, open, settings } = this.#world
    const points = await open.points()
    const point = points[random.below(points.length)]?.number
    const timeMs = history.timesMs[random.below(history.timesMs.length)]
    switch (random.below(5)) {
      case 0:
        return settings.hasHook ? 'LatestApplicationConsistent' : 'Latest'
      case 1:
        return 'LatestProcessed'
      case 2:
        return timeMs === undefined ? 'Latest' : { timeMs }
      default:
        return point === undefined ? 'Latest' : { point }
    }
  }

  /** What a choice comes to by the model; a code where it is refused; undefined where the answer itself says which cut it is. */
  async expected(choice: RecoveryPointChoice): Promise<Content | string | undefined> {
    const { history, open } = this.#world
    if (choice === 'LatestApplicationConsistent') {
      const consistent = (await open.points()).findLast(({ kind }) => kind === 'application-consistent')
      return consistent ? history.at(consistent.cutTimeMs) : 'POINT_NOT_FOUND'
    }
    if (typeof choice === 'string') return undefined
    const points = await open.points()
    if ('point' in choice) {
      const point = points.find(({ number }) => number === choice.point)
      return point ? history.at(point.cutTimeMs) : 'POINT_NOT_FOUND'
    }
    if (!('timeMs' in choice)) throw new Error('the model asks for times in milliseconds')
    const { timeMs } = choice
    const span = await open.keptSpan()
    // What a cut is told to be may be that much older than the cut, so a gap at the end holds for that long.
    const mayBeInside = span && isInside({ fromMs: span.fromMs, toMs: span.toMs + CUT_MARGIN_MS }, timeMs)
    if (mayBeInside && span.gaps.some((gap) => isInside(gap, timeMs))) return 'POINT_NOT_EXACT'
    if (span && isInside(span, timeMs)) return history.at(timeMs)
    const point = points.findLast(({ cutTimeMs }) => cutTimeMs <= timeMs)
    return point ? history.at(point.cutTimeMs) : 'POINT_NOT_FOUND'
  }

  /** Opens something over a choice; what is refused must be what the model refuses. */
  async over<Opened>(
    choice: RecoveryPointChoice,
    open: () => Promise<Opened>,
    timeMsOf: (opened: Opened) => number,
  ): Promise<{ readonly opened: Opened; readonly content: Content } | undefined> {
    const expected = await this.expected(choice)
    if (typeof expected === 'string') {
      await expect(open()).rejects.toMatchObject({ code: expected })
      return undefined
    }
    const opened = await open()
    return { opened, content: expected ?? this.#world.history.at(timeMsOf(opened)) }
  }

  /** Opens a view and keeps it open, or closes the oldest that is. */
  async view(): Promise<void> {
    if (this.#views.length === HELD_MAX) return this.#views.shift()?.view.close()
    const choice = await this.choose()
    const found = await this.over(
      choice,
      () => this.#world.open.openView(choice),
      ({ timeMs }) => timeMs,
    )
    if (found) this.#views.push({ view: found.opened, content: found.content })
  }

  /** Starts a test failover, or writes into those that are there, or stops one. */
  async test(): Promise<void> {
    const { random, open } = this.#world
    if (this.#tests.length === HELD_MAX) {
      const test = this.#tests.shift()?.test
      return random.below(2) === 0 ? test?.stop() : open.stopTestFailover(test?.id ?? '')
    }
    const choice = await this.choose()
    const found = await this.over(
      choice,
      () => open.startTestFailover({ point: choice }),
      ({ info }) => info.pointTimeMs,
    )
    if (found) this.#tests.push({ test: found.opened, content: copyOf(found.content) })
    for (const { test, content } of this.#tests) await change(random, test.disks, content)
  }

  async closeAll(): Promise<void> {
    for (const { view } of this.#views) await view.close()
    for (const { test } of this.#tests) await test.stop()
    this.forget(false)
  }

  /** Writes a state out as files. */
  async restore(): Promise<void> {
    const choice = await this.choose()
    const directory = this.#world.freshFolder('restored')
    const found = await this.over(
      choice,
      async () => {
        // The report names no cut; nothing is applied meanwhile.
        await using view = await this.#world.open.openView(choice)
        return { restored: await this.#world.open.restore(choice, { directory }), timeMs: view.timeMs }
      },
      ({ timeMs }) => timeMs,
    )
    for (const { name, path } of found?.opened.restored ?? [])
      expectBytes(readFileSync(path), found?.content.get(name), `restored ${name}`)
  }

  /** Whatever differs between two points is among the ranges told. */
  async diff(): Promise<void> {
    const points = await this.#world.open.points()
    const from = points[this.#world.random.below(points.length)]
    const to = points.at(-1)
    if (from === undefined || to === undefined) return
    const [older, newer] = [from, to].map(({ cutTimeMs }) => this.#world.history.at(cutTimeMs))
    for (const { disk, ranges } of await this.#world.open.diff({ point: from.number })) {
      const untold = differingSectors(older!.get(disk)!, newer!.get(disk)!).filter((at) =>
        ranges.every(({ offset, lengthBytes }) => at < offset || at >= offset + lengthBytes),
      )
      expect(untold, `${disk}: changed after ${from.number} and not told`).toEqual([])
    }
  }

  /** Locks a point for some hours; a lock is never made shorter. */
  async lock(): Promise<void> {
    const { random, clock, open } = this.#world
    const point = (await open.points())[0]
    if (point === undefined) return
    const untilMs = clock.nowMs() + HOUR_MS * (1 + random.below(4))
    try {
      await open.lockPoint(point.number, untilMs)
    } catch (error) {
      if (!(point.isLatest && isSecondsiteError(error, 'POINT_NOT_FOUND'))) throw error
      return
    }
    this.#locks.set(point.number, Math.max(untilMs, this.#locks.get(point.number) ?? 0))
  }

  /** Whether something that a commit would remove is locked. */
  async isLocked(): Promise<boolean> {
    const nowMs = this.#world.clock.nowMs()
    return (await this.#world.open.points()).some(({ lockedUntilMs }) => (lockedUntilMs ?? 0) > nowMs)
  }

  /** Moments of which every write is kept, some of them. */
  async moments(): Promise<void> {
    const { history, random, open } = this.#world
    const span = await open.keptSpan()
    if (span === undefined) return
    const inside = history.timesMs.filter((timeMs) => isInside(span, timeMs))
    for (let count = 0; count < 3 && inside.length > 0; count += 1) {
      const choice = { timeMs: inside[random.below(inside.length)] ?? 0 }
      const found = await this.over(
        choice,
        () => open.openView(choice),
        ({ timeMs }) => timeMs,
      )
      if (found) await expectShows(found.opened, found.content, `the moment ${choice.timeMs}`)
      await found?.opened.close()
    }
  }
}

function isInside({ fromMs, toMs }: Pick<KeptSpan, 'fromMs' | 'toMs'>, timeMs: number): boolean {
  return fromMs <= timeMs && timeMs < toMs
}
