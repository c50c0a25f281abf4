/**
 * Starts the machine of a failover from its export, and stops it: by QEMU, by libvirt, or by commands, as the failover
 * settings say.
 *
 * A run has a folder (`runner-record.ts`) from before anything is started until after everything has ended, so whatever
 * dies, the next process knows what is left. A machine of a real failover whose process has died runs on and waits for its
 * disks: the next run takes it up. That of a test has lost its disks, and is ended.
 */

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { fromSystemError, isSecondsiteError, SecondsiteError } from '../errors.js'
import type { NbdExport, NbdOptions } from '../track/nbd-export.js'
import { SECOND_MS } from '../units.js'
import { identityOf, type RecoveryContext } from './context.js'
import { type FailoverSettings, parseFailoverSettings } from './failover-settings.js'
import { startByCommand, stopByCommand } from './runner-command.js'
import { type Handover, handoverOf, type RunKind } from './runner-handover.js'
import { domainOf, isDomainRunning, startDomain, stopDomain } from './runner-libvirt.js'
import { isRunning, killLeft, type StartedProcess } from './runner-process.js'
import { startQemu, stopQemu } from './runner-qemu.js'
import {
  makeRunFolder,
  readRecord,
  removeRunFolder,
  type RunRecord,
  runFolder,
  writeRecord,
} from './runner-record.js'

const LOOK_MS = 500

/** A machine that was started from an export. */
export interface RunInfo {
  /** That of the test failover, or `failover`. */
  readonly runId: string
  readonly kind: RunKind
  /** Name under which it was started. */
  readonly name: string
  readonly method: 'qemu' | 'libvirt' | 'command'
  readonly startedMs: number
  /** Where its disks are exported. */
  readonly address: string
  /** Where its logs and sockets are; `qemu.log`, `console.log`, `serial.sock`, `qmp.sock` of QEMU. */
  readonly folder: string
  /** Of QEMU, or of a command that is the machine; null where it is no process of ours. */
  readonly processId: number | null
}

/** How a machine is stopped. */
export interface StopOptions {
  /** Asks it to shut itself down first, for as long as the settings say; default true. */
  readonly asks?: boolean
}

/** What is to be started. */
export interface RunRequest {
  readonly runId: string
  readonly kind: RunKind
  /** Name of a test; of a real failover that of the machine. */
  readonly defaultName: string
  readonly point: { readonly number: number; readonly timeMs: number }
  readonly disks: readonly { readonly name: string; readonly sizeBytes: number }[]
  /** Exports the disks at the address that it is told, unless it has an address of its own. */
  readonly exportNbd: (options: NbdOptions) => Promise<NbdExport>
  readonly listen?: string | undefined
}

/** The settings that hold: what was set here, else what the primary said, else the defaults. */
export async function effectiveSettings(context: RecoveryContext): Promise<FailoverSettings> {
  const { primary, replica } = await context.recovery.failoverSettings()
  const json = replica ?? primary
  if (json === null) return parseFailoverSettings({})
  return parseFailoverSettings(JSON.parse(json), `failover settings of the replica in ${context.directory}`)
}

export class MachineRun implements AsyncDisposable {
  readonly #folder: string
  readonly #clock: Clock
  readonly #watch = new AbortController()
  #record: RunRecord
  #ended: Promise<void> | undefined
  #isStopped = false

  private constructor(folder: string, record: RunRecord, clock: Clock) {
    this.#folder = folder
    this.#record = record
    this.#clock = clock
  }

  /**
   * Exports the disks and starts the machine; one that a process which died has left running is taken up.
   * @throws {FAILOVER_SETTINGS_INVALID, RUNNER_NOT_FOUND, RUNNER_FAILED, RUNNER_DOMAIN_UNFIT} and what `exportNbd` throws;
   *   nothing runs then
   */
  static async start(context: RecoveryContext, request: RunRequest): Promise<MachineRun> {
    const { directory, clock } = context
    const folder = runFolder(directory, request.runId)
    const left = readRecord(folder)
    if (left !== undefined && (await isMachineRunning(folder, left, clock))) {
      await request.exportNbd({ listen: left.address })
      return new MachineRun(folder, left, clock)
    }
    if (left !== undefined) await stopLeftRun(directory, request.runId, clock, { asks: false })
    const settings = await effectiveSettings(context)
    const socketDirectory = makeRunFolder(folder)
    const listen = request.listen ?? `unix:${join(socketDirectory, 'nbd.sock')}`
    let nbd: NbdExport | undefined
    try {
      nbd = await request.exportNbd({ listen })
      const run = await MachineRun.#prepare(context, request, settings, { folder, socketDirectory, nbd })
      await context.step('run.before-starting')
      await run.#begin(context, settings)
      return run
    } catch (error) {
      await nbd?.close()
      await stopLeftRun(directory, request.runId, clock, { asks: false }).catch(ignore)
      if (socketDirectory !== folder) removeRunFolder(socketDirectory)
      throw error
    }
  }

  static async #prepare(
    context: RecoveryContext,
    { runId, kind, defaultName, point, disks }: RunRequest,
    settings: FailoverSettings,
    { folder, socketDirectory, nbd }: { folder: string; socketDirectory: string; nbd: NbdExport },
  ): Promise<MachineRun> {
    const { clock, random, directory } = context
    const { machine } = await identityOf(context)
    const shown = disks.map(({ name, sizeBytes }) => ({ name, sizeBytes, uri: nbd.uri(name) }))
    const facts = {
      kind,
      machine,
      replica: directory,
      run: folder,
      point,
      address: nbd.address,
      disks: shown,
    }
    const handover = handoverOf(settings, { ...facts, defaultName }, random)
    writeHandover(folder, handover)
    const { runner, stopLimitSeconds } = settings
    const place = { address: nbd.address, socketDirectory }
    const started = { version: 1 as const, runId, token: random.uuid(), kind, startedMs: clock.nowMs() }
    const rest = { name: handover.name, runner, stopLimitSeconds, process: null, domainId: null }
    const record = { ...started, ...place, ...rest }
    writeRecord(folder, record)
    return new MachineRun(folder, record, clock)
  }

  async #begin({ random }: RecoveryContext, { startLimitSeconds }: FailoverSettings): Promise<void> {
    const { runner, token, socketDirectory } = this.#record
    const [folder, clock, limitMs] = [this.#folder, this.#clock, startLimitSeconds * SECOND_MS]
    const handover = readHandover(folder)
    const onStarted = ({ processId, identity }: StartedProcess): void =>
      this.#note({ process: { processId, identity } })
    const how = { token, limitMs, clock, onStarted }
    if (runner.method === 'qemu') return startQemu(runner, handover, { folder, socketDirectory }, how)
    if (runner.method === 'command') return startByCommand(runner, handover, how)
    const { xml, domainId } = domainOf(runner, handover, { token, random })
    this.#note({ domainId })
    await startDomain(runner.uri, xml, folder, { limitMs, clock })
  }

  #note(changed: Partial<RunRecord>): void {
    this.#record = { ...this.#record, ...changed }
    writeRecord(this.#folder, this.#record)
  }

  get info(): RunInfo {
    return infoOf(this.#folder, this.#record)
  }

  /**
   * Resolves when the machine has ended, by itself or by {@link stop}; that of a command which is not the machine ends by `stop`
   * alone. Waiting for it keeps the process alive.
   */
  ended(): Promise<void> {
    this.#ended ??= this.#untilEnded()
    return this.#ended
  }

  async #untilEnded(): Promise<void> {
    const { signal } = this.#watch
    while (!signal.aborted && (await isMachineRunning(this.#folder, this.#record, this.#clock)))
      await this.#clock.sleep(LOOK_MS, signal).catch(ignore)
  }

  /**
   * Stops the machine and removes the folder of the run; its export is not closed. Calling it again does nothing.
   * @throws {RUNNER_STOP_FAILED} when it does not end; the run is still recorded, and can be stopped again
   */
  async stop({ asks = true }: StopOptions = {}): Promise<void> {
    if (this.#isStopped) return
    this.#watch.abort()
    await stopMachine(this.#folder, this.#record, this.#clock, asks)
    removeRunFolder(this.#folder, this.#record.socketDirectory)
    this.#isStopped = true
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}

function ignore(): void {
  // What is told is the failure before; or a wait that was ended.
}

/** What is known of a run without taking it up; undefined when there is none, or its record is damaged. */
export function runInfo(replicaDirectory: string, runId: string): RunInfo | undefined {
  const folder = runFolder(replicaDirectory, runId)
  try {
    const record = readRecord(folder)
    return record && infoOf(folder, record)
  } catch (error) {
    // Who stops it is told; a list is not kept from being shown.
    if (isSecondsiteError(error, 'RUNNER_STOP_FAILED')) return undefined
    throw error
  }
}

/**
 * Stops what a run has left, whoever has started it, and removes its folder. Without a run it does nothing.
 * @throws {RUNNER_STOP_FAILED}
 */
export async function stopLeftRun(
  replicaDirectory: string,
  runId: string,
  clock: Clock,
  { asks = true }: StopOptions = {},
): Promise<void> {
  const folder = runFolder(replicaDirectory, runId)
  const record = readRecord(folder)
  if (record) await stopMachine(folder, record, clock, asks)
  removeRunFolder(folder, record?.socketDirectory)
}

async function stopMachine(folder: string, record: RunRecord, clock: Clock, asks: boolean): Promise<void> {
  const { runner, token, process, domainId, socketDirectory } = record
  const limitMs = record.stopLimitSeconds * SECOND_MS
  if (runner.method === 'libvirt') {
    if (domainId !== null) await stopDomain({ uri: runner.uri, domainId, token }, { asks, limitMs, clock })
    return
  }
  if (runner.method === 'qemu' && process)
    await stopQemu(process, { folder, socketDirectory }, { asks, limitMs, clock })
  if (runner.method === 'command')
    await stopByCommand(runner, readHandover(folder), process, { token, limitMs, clock, asks })
  // Started, and died before it was recorded.
  const isProcess = runner.method === 'qemu' || runner.isMachine
  if (process === null && isProcess) killLeft(token)
}

async function isMachineRunning(folder: string, record: RunRecord, clock: Clock): Promise<boolean> {
  const { runner, process, domainId, token } = record
  if (process !== null) return isRunning(process)
  if (runner.method === 'command') return !runner.isMachine && existsSync(folder)
  if (domainId === null || runner.method !== 'libvirt') return false
  try {
    return await isDomainRunning({ uri: runner.uri, domainId, token }, clock)
  } catch (error) {
    // Nobody can tell without virsh; who wants to start another one needs it, too.
    if (isSecondsiteError(error, 'RUNNER_NOT_FOUND')) return false
    throw error
  }
}

function infoOf(folder: string, record: RunRecord): RunInfo {
  const { runId, kind, name, runner, startedMs, address, process } = record
  return {
    runId,
    kind,
    name,
    method: runner.method,
    startedMs,
    address,
    folder,
    processId: process?.processId ?? null,
  }
}

const HANDOVER_FILE = 'handover.json'

function writeHandover(folder: string, handover: Handover): void {
  const path = join(folder, HANDOVER_FILE)
  try {
    writeFileSync(path, JSON.stringify(handover), { mode: 0o600 })
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'REPLICA_DISK_FULL' })
  }
}

function readHandover(folder: string): Handover {
  const path = join(folder, HANDOVER_FILE)
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Handover
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new SecondsiteError('RUNNER_STOP_FAILED', {
        message: `${path} is damaged: ${error.message}`,
        details: { path, reason: error.message },
      })
    throw fromSystemError(error, { operation: 'read', path })
  }
}
