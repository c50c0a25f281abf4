/**
 * A test failover: disks that may be written to, over a point, beside replication that goes on.
 *
 * What is written lies in a layer in a folder of its own and is thrown away at the end; the replica never sees it. A test
 * lives as long as the process that started it, which holds the lock of that folder and ends the test when somebody puts the
 * file `stop` there. One that a death left behind is shown and can be stopped by anybody; it is removed by itself when its
 * lifetime has passed.
 */

import { type FSWatcher, rmSync, watch } from 'node:fs'
import { join } from 'node:path'
import { type LockedDirectory, openLocked } from '../store/lock.js'
import type { TestFailoverRow } from '../store/recovery-schema.js'
import { NbdExport, type NbdOptions } from '../track/nbd-export.js'
import { type ChosenState, timeOf } from './choice.js'
import { identityOf, type RecoveryContext } from './context.js'
import { RecoveryDevice } from './device.js'
import { MachineRun, type StopOptions } from './runner.js'
import { plainInfo, removeTest, STOP_FILE, type TestFailoverInfo } from './test-life.js'
import { applyKept, PointView } from './view.js'

export class TestFailover implements AsyncDisposable {
  readonly disks: readonly RecoveryDevice[]
  readonly #context: RecoveryContext
  readonly #row: TestFailoverRow
  readonly #view: PointView
  readonly #exports = new Set<NbdExport>()
  readonly #lock: LockedDirectory
  readonly #ended: Promise<void>
  #setEnded: () => void = () => {}
  #cancelTimer: () => void = () => {}
  readonly #watcher: FSWatcher | undefined
  #run: MachineRun | undefined
  #stopping: Promise<void> | undefined

  private constructor(context: RecoveryContext, row: TestFailoverRow, { view, disks, lock }: OpenedTest) {
    this.#context = context
    this.#row = row
    this.#view = view
    this.disks = disks
    this.#lock = lock
    this.#ended = new Promise((resolve) => {
      this.#setEnded = resolve
    })
    const { clock } = context
    if (row.endsMs !== null) this.#cancelTimer = clock.setTimer(row.endsMs - clock.nowMs(), this.#end)
    this.#watcher = this.#watchForStop()
  }

  readonly #end = (): void => {
    // Nobody waits: what could not be ended is still listed, and is tried again by the next opening.
    void this.stop().catch(() => {})
  }

  /** Without a watch, which the system may refuse, only this process can end it; who asks is told so. */
  #watchForStop(): FSWatcher | undefined {
    try {
      const watcher = watch(this.#row.directory, { persistent: false }, (_event, name) => {
        if (name === STOP_FILE) this.#end()
      })
      return watcher.on('error', () => {})
    } catch {
      return undefined
    }
  }

  /** @param options.lifetimeMs - after which it ends by itself; null for never */
  static async start(
    context: RecoveryContext,
    chosen: ChosenState,
    { lifetimeMs, groupTestId }: { readonly lifetimeMs: number | null; readonly groupTestId: string | null },
  ): Promise<TestFailover> {
    const testId = context.random.uuid()
    const directory = join(context.directory, 'tests', testId)
    const disks: RecoveryDevice[] = []
    const lock = openLocked(directory, 'TEST_FAILOVER_IN_USE')
    let view: PointView | undefined
    try {
      view = await PointView.open(context, { state: chosen.state }, chosen.untilNs !== undefined)
      await context.step('test.before-layers')
      for (const row of await context.store.disks()) {
        const base = view.disks.find(({ diskId }) => diskId === row.diskId)
        if (base === undefined) continue
        const layer = await RecoveryDevice.overlay(
          base,
          row.imagePath,
          join(directory, 'disks', row.name),
          context.pool,
        )
        disks.push(layer)
        if (chosen.untilNs !== undefined) await applyKept(context, layer, { ...chosen, state: view.state })
      }
      const shown = { pointNumber: view.state.number, pointTimeMs: timeOf({ ...chosen, state: view.state }) }
      await context.step('test.before-recording')
      const row = await addRow(context, { ...shown, testId, directory, lifetimeMs, groupTestId })
      return new TestFailover(context, row, { view, disks, lock })
    } catch (error) {
      for (const disk of disks) await disk.close()
      await view?.close()
      lock.close()
      rmSync(directory, { recursive: true, force: true })
      throw error
    }
  }

  get info(): TestFailoverInfo {
    return { ...plainInfo(this.#row), isHeld: this.#stopping === undefined, run: this.#run?.info ?? null }
  }

  get id(): string {
    return this.#row.testId
  }

  get name(): string {
    return this.#row.name
  }

  /** Exports its disks to NBD clients, each under the name of the disk, until the test is stopped. */
  async exportNbd(options: NbdOptions): Promise<NbdExport> {
    const nbd = await NbdExport.start(this.disks, options, this.#context.pool)
    this.#exports.add(nbd)
    return nbd
  }

  /**
   * Exports its disks and starts the machine from them, as the failover settings say; it ends with the test.
   * @param options.listen - where they are exported; default a socket in the folder of the run
   * @throws {FAILOVER_SETTINGS_INVALID, RUNNER_NOT_FOUND, RUNNER_FAILED, RUNNER_DOMAIN_UNFIT} and those of {@link exportNbd}
   */
  async run({ listen }: { readonly listen?: string | undefined } = {}): Promise<MachineRun> {
    const { testId: runId, name: defaultName, pointNumber: number, pointTimeMs: timeMs } = this.#row
    const named = { runId, kind: 'Test' as const, defaultName, point: { number, timeMs } }
    const exportNbd = (options: NbdOptions): Promise<NbdExport> => this.exportNbd(options)
    this.#run = await MachineRun.start(this.#context, { ...named, disks: this.disks, exportNbd, listen })
    return this.#run
  }

  /** Resolves when it has ended: stopped here, by somebody else, or because its lifetime has passed. */
  ended(): Promise<void> {
    return this.#ended
  }

  /**
   * Ends its machine and its exports and throws away what was written. Calling it again does nothing.
   * @param options.asks - whether the machine is asked to shut itself down; default false, as nothing of it is kept
   * @throws {RUNNER_STOP_FAILED} when the machine does not end; the test is still listed, and can be stopped again
   */
  stop(options: StopOptions = {}): Promise<void> {
    this.#stopping ??= this.#stop(options)
    return this.#stopping
  }

  async #stop({ asks = false }: StopOptions): Promise<void> {
    this.#cancelTimer()
    this.#watcher?.close()
    try {
      await this.#run?.stop({ asks })
    } finally {
      // Whatever became of the machine: its disks are gone with this process at the latest.
      for (const nbd of this.#exports) await nbd.close()
      for (const disk of this.disks) await disk.close()
      await this.#view.close()
      this.#lock.close()
      this.#setEnded()
    }
    await this.#context.step('test.before-removing')
    await removeTest(this.#context, this.#row)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

interface OpenedTest {
  readonly view: PointView
  readonly disks: readonly RecoveryDevice[]
  readonly lock: LockedDirectory
}

async function addRow(
  context: RecoveryContext,
  {
    lifetimeMs,
    ...shown
  }: Pick<TestFailoverRow, 'testId' | 'directory' | 'pointNumber' | 'pointTimeMs' | 'groupTestId'> & {
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
