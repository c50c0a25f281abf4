/**
 * `protect DISK… --replica DIR --nbd ADDRESS`: one foreground process that exports the disks of a machine to its guest,
 * copies them while the guest runs, and keeps the cycles going until it is stopped.
 *
 * It takes up where the last process left the machine, by whatever that ended. The guest is served before anything else
 * is done; no failure of replication ends the process.
 */

import { closeSync, writeSync } from 'node:fs'
import { resolve } from 'node:path'
import {
  type CycleReport,
  Engine,
  isSecondsiteError,
  type MachineEvent,
  type NbdExport,
  notifyService,
  type ProtectedMachine,
  SecondsiteError,
} from '@secondsite/engine'
import type { Invocation } from './command.js'
import { EXIT, type ExitCode } from './exit-codes.js'
import { type ProtectGiven, type ProtectRequest, protectRequest } from './protect-options.js'
import { type Look, Painter, statusText } from './protect-status.js'

/** How often the table is drawn, and how often a line is written where there is no terminal. */
const DRAW_MS = 1000
const LINE_MS = 10_000

export async function protect(
  invocation: Invocation,
  disks: string[],
  given: Record<string, unknown>,
): Promise<ExitCode> {
  const request = protectRequest(disks, given as unknown as ProtectGiven)
  const show = new Display(invocation)
  await using engine = await Engine.open({
    stateDirectory: request.stateDirectory,
    onEvent: (event) => show.event(event),
  })
  const machine = await takeMachine(engine, request)
  await using nbd = await machine.exportNbd(request.nbd)
  show.exported(machine, nbd)
  sayReady(request.readyFd)
  startCopy(machine)
  const cut = (): void => void cutNow(machine, show)
  process.on('SIGUSR2', cut)
  if (request.recreateImages) recreateImages(machine).catch(isShown)
  await show.untilStopped(machine, nbd, (now) => acceptAnnounced(machine, request, now))
  process.removeListener('SIGUSR2', cut)
  notifyService('STOPPING=1')
  return EXIT.ok
}

/** The machine of that name, with the settings given now; it is enabled when there is none. */
async function takeMachine(
  engine: Engine,
  { machine: wanted, acceptShrink }: ProtectRequest,
): Promise<ProtectedMachine> {
  const known = engine.machines.find((one) => one.name === wanted.name)
  if (known === undefined) return engine.enable(wanted)
  refuseOther(known, wanted)
  await known.configure(wanted.policy ?? {})
  if (Object.keys(acceptShrink).length > 0) await known.acceptShrink(acceptShrink)
  if (known.disks.length === 0) await known.resume()
  return known
}

/** Another list of disks under a name that is taken is a mistake, not a wish. */
function refuseOther(known: ProtectedMachine, wanted: ProtectRequest['machine']): void {
  const paths = wanted.disks.map((disk) => resolve(typeof disk === 'string' ? disk : disk.path))
  const isSame =
    paths.length === known.diskPaths.length && paths.every((path, n) => path === known.diskPaths[n])
  if (isSame && resolve(wanted.replica.directory) === known.replicaDirectory) return
  throw new SecondsiteError('MACHINE_EXISTS', {
    message: `${known.name} is protected already, with ${known.diskPaths.join(', ')} to ${known.replicaDirectory}`,
    details: { machine: known.name, disks: known.diskPaths, replica: known.replicaDirectory },
  })
}

function startCopy(machine: ProtectedMachine): void {
  if (machine.state === 'ReadyForInitialReplication') machine.startInitialReplication().catch(isShown)
}

/** Failures stand in the events and in the status, and are tried again. */
function isShown(error: unknown): void {
  if (!isSecondsiteError(error)) throw error
}

/** SIGUSR2: a cut on demand, with the applications at rest where there is a hook. The state directory is this process's alone. */
async function cutNow(machine: ProtectedMachine, show: Display): Promise<void> {
  const applicationConsistent = machine.policy.quiesce !== null
  try {
    show.cut(await machine.replicate({ applicationConsistent }))
  } catch (error) {
    if (!isSecondsiteError(error)) throw error
    show.refused(error)
  }
}

/** A disk that shrinks while this runs, to the size that was announced. One of another size has stopped the machine for good. */
async function acceptAnnounced(
  machine: ProtectedMachine,
  { acceptShrink }: ProtectRequest,
  { measurement }: Look,
): Promise<void> {
  const isStopped = measurement.lastError?.code === 'DISK_SIZE_DIFFERS'
  if (!isStopped || Object.keys(acceptShrink).length === 0) return
  await machine.acceptShrink(acceptShrink).catch(isShown)
}

/**
 * Only where images are lost, as nothing else is to be compared as a whole; and only now, as one that is lost later is
 * another matter. Whether one is lost is known once the replica was asked.
 */
async function recreateImages(machine: ProtectedMachine): Promise<void> {
  await machine.replicate().catch(isShown)
  const { lastError } = await machine.measure()
  if (lastError?.code === 'REPLICA_IMAGE_LOST') await machine.resynchronize({ recreateImages: true })
}

function sayReady(readyFd: number | undefined): void {
  notifyService('READY=1')
  if (readyFd === undefined) return
  writeSync(readyFd, 'READY=1\n')
  closeSync(readyFd)
}

/** The last lets a guest wait while this command is started again; without it QEMU fails its requests at once. */
const DRIVE_OPTIONS = 'format=raw,if=virtio,cache=none,discard=unmap,file.reconnect-delay=300'

/** A table on a terminal, lines elsewhere, objects with `--json`. */
class Display {
  readonly #invocation: Invocation
  readonly #painter: Painter | undefined

  constructor(invocation: Invocation) {
    this.#invocation = invocation
    const isTable = process.stdout.isTTY && !invocation.isJson
    this.#painter = isTable ? new Painter(process.stdout) : undefined
  }

  exported(machine: ProtectedMachine, nbd: NbdExport): void {
    const uris = machine.disks.map((disk) => nbd.uri(disk))
    const { output, isJson } = this.#invocation
    if (isJson) return output.json({ exported: { machine: machine.name, address: nbd.address, uris } })
    output.say(`${machine.name} is served at ${nbd.address}:`)
    for (const uri of uris) output.say(`  -drive file=${uri},${DRIVE_OPTIONS}`)
  }

  event(event: MachineEvent): void {
    const { output, isJson } = this.#invocation
    this.#painter?.clear()
    if (isJson) return output.json({ event })
    const details = Object.entries(event.details).map(([name, value]) => `${name} ${JSON.stringify(value)}`)
    const rest = details.length === 0 ? '' : ` (${details.join(', ')})`
    output.say(`${new Date(event.timeMs).toISOString()} ${event.level} ${event.id} ${event.text}${rest}`)
  }

  /** A cut that was asked for. */
  cut({ pointKind, cutTimeMs, quiesce }: CycleReport): void {
    const { output, isJson } = this.#invocation
    this.#painter?.clear()
    if (isJson) return output.json({ cut: { pointKind, cutTimeMs, quiesce } })
    output.say(`${new Date(cutTimeMs).toISOString()} cut on demand, ${pointKind}`)
  }

  /** Why a cut that was asked for was not made. */
  refused(error: SecondsiteError): void {
    this.#painter?.clear()
    this.#invocation.output.warn(`no cut: ${error.code}: ${error.message}`)
  }

  /** Shows the machine until the command is stopped. @param onLook - called with each look */
  async untilStopped(
    machine: ProtectedMachine,
    nbd: NbdExport,
    onLook: (now: Look) => Promise<void>,
  ): Promise<void> {
    const { signal } = this.#invocation
    let before = await look(machine, nbd)
    while (!signal.aborted) {
      const now = await look(machine, nbd)
      this.#status(now, before)
      await onLook(now)
      before = now
      await pause(this.#painter ? DRAW_MS : LINE_MS, signal)
    }
    this.#painter?.clear()
  }

  #status(now: Look, before: Look): void {
    const { output, isJson } = this.#invocation
    if (this.#painter) return this.#painter.draw(statusText(now, before))
    if (isJson) output.json({ status: { ...now.measurement, atMs: now.atMs, nbd: now.counters } })
  }
}

async function look(machine: ProtectedMachine, nbd: NbdExport): Promise<Look> {
  return { atMs: Date.now(), measurement: await machine.measure(), counters: nbd.counters() }
}

/** Waits, and holds the process; ends at once when it is stopped. */
function pause(durationMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, durationMs)
    signal.addEventListener('abort', () => (clearTimeout(timer), done()), { once: true })
  })
}
