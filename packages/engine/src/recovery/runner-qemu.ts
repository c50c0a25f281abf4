/**
 * Machines that we start by QEMU itself: its arguments from the settings, its disks from the export, and the conversation
 * by which it is asked to end.
 *
 * A machine of a real failover waits for its disks when the process that exports them has gone, and goes on when another
 * one exports them at the same address; that of a test has lost them for good. Boot programs of network adapters are left
 * out: the machine starts from its disks. An isolated network is QEMU's own with `restrict`: it hands out an address and
 * reaches nobody.
 */

import { accessSync, constants } from 'node:fs'
import { arch } from 'node:process'
import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { asSecondsiteError, SecondsiteError } from '../errors.js'
import { nbdPlaceOf } from '../track/nbd-export.js'
import { SECOND_MS } from '../units.js'
import type { QemuSettings } from './failover-settings.js'
import { environmentOf, type Handover, type RunAdapter, type RunDisk } from './runner-handover.js'
import {
  awaitEnd,
  endText,
  isRunning,
  outputOf,
  processFailed,
  type ProcessEnd,
  type RunningProcess,
  signalProcess,
  type StartedProcess,
  startProcess,
} from './runner-process.js'
import { qmp } from './runner-qmp.js'

/** Seconds for which the disks of a real failover are waited for. */
export const RECONNECT_SECONDS = 300
/** What a machine has where neither settings nor domain say. */
const DEFAULT_SIZE = { processorCount: 1, memoryMiB: 1024 }

const LOOK_MS = 50
const ANSWER_LIMIT_MS = 10 * SECOND_MS
/** After `quit`, and after SIGTERM. */
const QUIT_LIMIT_MS = 10 * SECOND_MS
/** Bytes of a serial number of a disk that a guest sees. */
const SERIAL_LENGTH_MAX = 20

/** Where files and sockets of a run are. */
export interface RunPlaces {
  readonly folder: string
  readonly socketDirectory: string
}

/** The arguments of a machine, the program first. @param hasKvm - whether this user may use KVM */
export function qemuArguments(
  settings: QemuSettings,
  handover: Handover,
  places: RunPlaces,
  hasKvm: boolean,
): string[] {
  const { processorCount, memoryMiB } = handover
  const accelerator = settings.accelerator === 'auto' ? (hasKvm ? 'kvm' : 'tcg') : settings.accelerator
  const valued = [
    ['-name', escaped(handover.name)],
    ['-machine', settings.machine ?? (arch === 'arm64' ? 'virt' : 'q35')],
    ['-accel', accelerator],
    ['-cpu', settings.processor ?? (accelerator === 'kvm' ? 'host' : 'max')],
    ['-smp', String(processorCount ?? DEFAULT_SIZE.processorCount)],
    ['-m', `${memoryMiB ?? DEFAULT_SIZE.memoryMiB}M`],
    ['-display', 'none'],
    ...(arch === 'x64' ? [['-vga', 'std']] : []),
    ...bootArguments(settings),
    ['-fw_cfg', `name=opt/org.secondsite/failover,file=${escaped(join(places.folder, 'handover.json'))}`],
    ...channelArguments(places),
    ...handover.disks.flatMap((disk, index) => diskArguments(settings, handover, disk, index)),
    ...handover.networkAdapters.flatMap((adapter, index) => adapterArguments(settings, adapter, index)),
  ]
  const program = settings.program ?? `qemu-system-${arch === 'arm64' ? 'aarch64' : 'x86_64'}`
  const controller = settings.diskBus === 'scsi' ? ['-device', 'virtio-scsi-pci,id=disks'] : []
  return [program, '-nodefaults', '-no-user-config', ...controller, ...valued.flat(), ...settings.arguments]
}

/** A comma inside a value of QEMU's is written twice. */
function escaped(text: string): string {
  return text.replaceAll(',', ',,')
}

function bootArguments({ firmware, kernel, initrd, kernelCommandLine }: QemuSettings): string[][] {
  const given = { '-bios': firmware, '-kernel': kernel, '-initrd': initrd, '-append': kernelCommandLine }
  return Object.entries(given).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]]))
}

function channelArguments({ folder, socketDirectory }: RunPlaces): string[][] {
  const socket = (name: string): string => `path=${escaped(join(socketDirectory, name))},server=on,wait=off`
  const log = escaped(join(folder, 'console.log'))
  return [
    ['-chardev', `socket,id=qmp,${socket('qmp.sock')}`],
    ['-mon', 'chardev=qmp,mode=control'],
    ['-chardev', `socket,id=serial,${socket('serial.sock')},logfile=${log}`],
    ['-serial', 'chardev:serial'],
  ]
}

function diskArguments(settings: QemuSettings, handover: Handover, disk: RunDisk, index: number): string[][] {
  const node = {
    driver: 'raw',
    'node-name': `disk${index}`,
    discard: 'unmap',
    file: {
      driver: 'nbd',
      server: serverOf(handover.address),
      export: disk.name,
      discard: 'unmap',
      'reconnect-delay': handover.kind === 'Test' ? 0 : RECONNECT_SECONDS,
    },
  }
  const serial = escaped(disk.name.slice(0, SERIAL_LENGTH_MAX))
  const device = { virtio: 'virtio-blk-pci', scsi: 'scsi-hd,bus=disks.0', sata: `ide-hd,bus=ide.${index}` }
  const place = `drive=disk${index},serial=${serial},bootindex=${index + 1}`
  return [
    ['-blockdev', JSON.stringify(node)],
    ['-device', `${device[settings.diskBus]},${place}`],
  ]
}

function serverOf(address: string): object {
  const place = nbdPlaceOf(address)
  return { type: 'path' in place ? 'unix' : 'inet', ...place }
}

/** An adapter without a network is there and unplugged. */
function adapterArguments(settings: QemuSettings, adapter: RunAdapter, index: number): string[][] {
  const id = `net${index}`
  const device = `${settings.adapterModel},mac=${adapter.macAddress},romfile=`
  const backend = backendOf(adapter, id)
  if (backend === undefined) return [['-device', device]]
  return [
    ['-netdev', backend],
    ['-device', `${device},netdev=${id}`],
  ]
}

function backendOf({ network, name }: RunAdapter, id: string): string | undefined {
  const [kind, place] = network.split(':')
  if (kind === 'none') return undefined
  if (kind === 'isolated') return `user,id=${id},restrict=on`
  if (kind === 'user') return `user,id=${id}`
  if (kind === 'bridge') return `bridge,id=${id},br=${place}`
  throw new SecondsiteError('FAILOVER_SETTINGS_INVALID', {
    message: `QEMU alone knows no ${network}, which ${name} is to be plugged into`,
    details: {
      path: 'failover settings',
      problems: [
        { path: `networkAdapters.${name}`, value: network, range: 'none, isolated, user or bridge:NAME' },
      ],
    },
  })
}

function hasKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/**
 * Starts a machine; resolves when it runs.
 * @param onStarted - told the process as soon as there is one
 * @throws {RUNNER_NOT_FOUND} without QEMU; {RUNNER_FAILED} with what it said
 */
export async function startQemu(
  settings: QemuSettings,
  handover: Handover,
  places: RunPlaces,
  {
    token,
    limitMs,
    clock,
    onStarted,
  }: {
    readonly token: string
    readonly limitMs: number
    readonly clock: Clock
    readonly onStarted: (started: StartedProcess) => void
  },
): Promise<void> {
  const logPath = join(places.folder, 'qemu.log')
  const started = await startProcess({
    words: qemuArguments(settings, handover, places, hasKvm()),
    directory: '/',
    environment: environmentOf(handover, token),
    logPath,
  })
  onStarted(started)
  await answering(started, join(places.socketDirectory, 'qmp.sock'), logPath, limitMs, clock)
}

/** QEMU answers once the machine has its devices, the disks among them. */
async function answering(
  started: RunningProcess,
  socketPath: string,
  logPath: string,
  limitMs: number,
  clock: Clock,
): Promise<void> {
  let end: ProcessEnd | undefined
  void started.ended.then((value) => {
    end = value
  })
  const deadlineMs = clock.nowMs() + limitMs
  for (;;) {
    try {
      await qmp(socketPath, 'query-status', ANSWER_LIMIT_MS)
      return
    } catch (error) {
      if (end) throw processFailed(`QEMU ${endText(end)}`, logPath)
      if (clock.nowMs() < deadlineMs) await clock.sleep(LOOK_MS)
      else throw processFailed(`QEMU did not answer within ${limitMs / SECOND_MS} s`, logPath, causeOf(error))
    }
  }
}

function causeOf(error: unknown): { readonly reason: string } {
  return { reason: asSecondsiteError(error).message }
}

/** Asks the machine to shut itself down and switches it off when it does not; resolves when QEMU is gone. */
export async function stopQemu(
  started: StartedProcess,
  { folder, socketDirectory }: RunPlaces,
  { asks, limitMs, clock }: { readonly asks: boolean; readonly limitMs: number; readonly clock: Clock },
): Promise<void> {
  const socketPath = join(socketDirectory, 'qmp.sock')
  const say = async (command: string): Promise<void> => {
    // A QEMU that does not answer is ended by signals.
    await qmp(socketPath, command, ANSWER_LIMIT_MS).catch(() => {})
  }
  if (asks && isRunning(started)) {
    await say('system_powerdown')
    if (await awaitEnd(started, limitMs, clock)) return
  }
  if (isRunning(started)) await say('quit')
  if (await awaitEnd(started, QUIT_LIMIT_MS, clock)) return
  signalProcess(started, 'SIGKILL')
  if (await awaitEnd(started, QUIT_LIMIT_MS, clock)) return
  throw new SecondsiteError('RUNNER_STOP_FAILED', {
    message: `process ${started.processId} of QEMU does not end`,
    details: { processId: started.processId, output: outputOf(join(folder, 'qemu.log')) },
  })
}
