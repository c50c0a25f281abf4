/**
 * A test failover: disks that may be written to, over a point, beside replication that goes on.
 *
 * What is written lies in a layer in a folder of its own and is thrown away at the end; the replica never sees it. A test
 * lives as long as the process that started it has it open; one that a death left behind is shown and can be stopped.
 */

import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { SecondsiteError } from '../errors.js'
import type { TestFailoverRow } from '../store/recovery-schema.js'
import { NbdExport, type NbdOptions } from '../track/nbd-export.js'
import { type ChosenState, timeOf } from './choice.js'
import { identityOf, type RecoveryContext } from './context.js'
import { RecoveryDevice } from './device.js'
import { applyKept, PointView } from './view.js'

/** A test failover as it is listed. */
export interface TestFailoverInfo {
  readonly id: string
  /** `<machine> - Test`, with a number behind it from the second one on. */
  readonly name: string
  readonly pointNumber: number
  /** Unix milliseconds that its disks began with. */
  readonly pointTimeMs: number
  readonly startedMs: number
  /** Unix milliseconds of its end by itself; null when it has to be stopped. */
  readonly endsMs: number | null
  /** Unix milliseconds of its end; null while it is there. */
  readonly endedMs: number | null
}

export class TestFailover implements AsyncDisposable {
  readonly info: TestFailoverInfo
  readonly disks: readonly RecoveryDevice[]
  readonly #context: RecoveryContext
  readonly #view: PointView
  readonly #exports = new Set<NbdExport>()
  readonly #cancelTimer: () => void
  #isStopped = false

  private constructor(
    context: RecoveryContext,
    row: TestFailoverRow,
    view: PointView,
    disks: readonly RecoveryDevice[],
  ) {
    this.#context = context
    this.info = infoOf(row)
    this.#view = view
    this.disks = disks
    const { clock } = context
    this.#cancelTimer =
      row.endsMs === null
        ? () => {}
        : clock.setTimer(row.endsMs - clock.nowMs(), () => void this.stop().catch(() => {}))
  }

  /** @param lifetimeMs - after which it ends by itself; null for never */
  static async start(
    context: RecoveryContext,
    chosen: ChosenState,
    lifetimeMs: number | null,
  ): Promise<TestFailover> {
    const view = await PointView.open(context, { state: chosen.state })
    const testId = context.random.uuid()
    const directory = join(context.directory, 'tests', testId)
    const disks: RecoveryDevice[] = []
    try {
      for (const row of await context.store.disks()) {
        const base = view.disks.find(({ diskId }) => diskId === row.diskId)
        if (base === undefined) continue
        const layer = await RecoveryDevice.overlay(
          base,
          row.imagePath,
          join(directory, row.name),
          context.pool,
        )
        disks.push(layer)
        if (chosen.untilNs !== undefined) await applyKept(context, layer, { ...chosen, state: view.state })
      }
      const shown = { pointNumber: view.state.number, pointTimeMs: timeOf({ ...chosen, state: view.state }) }
      const row = await addRow(context, { ...shown, testId, directory, lifetimeMs })
      return new TestFailover(context, row, view, disks)
    } catch (error) {
      for (const disk of disks) await disk.close()
      await view.close()
      rmSync(directory, { recursive: true, force: true })
      throw error
    }
  }

  get id(): string {
    return this.info.id
  }

  get name(): string {
    return this.info.name
  }

  /** Exports its disks to NBD clients, each under the name of the disk, until the test is stopped. */
  async exportNbd(options: NbdOptions): Promise<NbdExport> {
    const nbd = await NbdExport.start(this.disks, options, this.#context.pool)
    this.#exports.add(nbd)
    return nbd
  }

  /** Ends its exports and throws away what was written. Calling it again does nothing. */
  async stop(): Promise<void> {
    if (this.#isStopped) return
    this.#isStopped = true
    this.#cancelTimer()
    for (const nbd of this.#exports) await nbd.close()
    for (const disk of this.disks) await disk.close()
    await this.#view.close()
    await removeTest(this.#context, this.id)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

async function addRow(
  context: RecoveryContext,
  {
    lifetimeMs,
    ...shown
  }: Pick<TestFailoverRow, 'testId' | 'directory' | 'pointNumber' | 'pointTimeMs'> & {
    readonly lifetimeMs: number | null
  },
): Promise<TestFailoverRow> {
  const startedMs = context.clock.nowMs()
  const row = {
    ...shown,
    name: await freeName(context),
    startedMs,
    endsMs: lifetimeMs === null ? null : startedMs + lifetimeMs,
    endedMs: null,
  }
  await context.recovery.addTestFailover(row)
  return row
}

async function freeName(context: RecoveryContext): Promise<string> {
  const { machine } = await identityOf(context)
  const taken = (await context.recovery.testFailovers()).filter(({ endedMs }) => endedMs === null)
  const names = new Set(taken.map(({ name }) => name))
  const first = `${machine} - Test`
  if (!names.has(first)) return first
  for (let number = 2; ; number += 1) if (!names.has(`${first} ${number}`)) return `${first} ${number}`
}

/** What a test that nobody has open any more leaves behind goes away. @throws {TEST_FAILOVER_NOT_FOUND} */
export async function removeTest(context: RecoveryContext, testId: string): Promise<void> {
  const row = (await context.recovery.testFailovers()).find((one) => one.testId === testId)
  if (row === undefined) {
    throw new SecondsiteError('TEST_FAILOVER_NOT_FOUND', {
      message: `no test failover ${testId} of the replica in ${context.directory}`,
      details: { path: context.directory, testId },
    })
  }
  rmSync(row.directory, { recursive: true, force: true })
  if (row.endedMs === null) await context.recovery.endTestFailover(testId)
}

export function infoOf({ testId, name, ...row }: TestFailoverRow): TestFailoverInfo {
  const { pointNumber, pointTimeMs, startedMs, endsMs, endedMs } = row
  return { id: testId, name, pointNumber, pointTimeMs, startedMs, endsMs, endedMs }
}
