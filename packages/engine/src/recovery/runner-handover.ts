/**
 * What whoever starts a machine is told: the failover, the export, and the settings that hold for this kind of failover.
 *
 * It is one object, `handover.json` in the folder of the run: commands get it on their standard input, and in parts as
 * variables; a machine that QEMU starts finds it as the firmware's configuration `opt/org.secondsite/failover`, one of
 * libvirt as base64 in `opt/org.secondsite/failover.base64`, where a program of its own can take its addresses from.
 */

import type { JsonValue } from '../errors.js'
import type { Random } from '../random.js'
import type { AdapterAddresses, FailoverSettings } from './failover-settings.js'

/** What a machine is started for. */
export type RunKind = 'Test' | 'Planned' | 'Unplanned'

/** A disk as the machine attaches it. */
export interface RunDisk {
  readonly name: string
  readonly sizeBytes: number
  readonly uri: string
}

/** A network adapter, with what holds for this kind of failover. */
export interface RunAdapter {
  readonly name: string
  readonly macAddress: string
  /** `none`, `isolated`, `user`, `bridge:NAME` or `network:NAME`. */
  readonly network: string
  readonly addresses: AdapterAddresses
}

/** The object that is handed over. */
export interface Handover {
  readonly version: 1
  readonly kind: RunKind
  /** The machine's name here. */
  readonly machine: string
  /** The name it starts under. */
  readonly name: string
  /** Folder of the replica. */
  readonly replica: string
  /** Folder of the run. */
  readonly run: string
  readonly point: { readonly number: number; readonly timeMs: number }
  /** Where the disks are exported: `unix:PATH` or `tcp:HOST:PORT`. */
  readonly address: string
  readonly disks: readonly RunDisk[]
  /** Null where the settings do not say. */
  readonly processorCount: number | null
  readonly memoryMiB: number | null
  readonly networkAdapters: readonly RunAdapter[]
}

/** What a handover is made of besides settings. */
export type HandoverFacts = Pick<
  Handover,
  'kind' | 'machine' | 'replica' | 'run' | 'point' | 'address' | 'disks'
> & {
  /** Name of a test; of a real failover that of the machine. */
  readonly defaultName: string
}

/** A test never has the name or an address of the machine that may be running elsewhere. */
export function handoverOf(
  settings: FailoverSettings,
  { defaultName, ...facts }: HandoverFacts,
  random: Random,
): Handover {
  const isTest = facts.kind === 'Test'
  const given =
    isTest && settings.name ? `${settings.name}${testSuffix(defaultName, facts.machine)}` : settings.name
  return {
    version: 1,
    ...facts,
    name: given ?? defaultName,
    processorCount: settings.processorCount ?? null,
    memoryMiB: settings.memoryMiB ?? null,
    networkAdapters: settings.networkAdapters.map((adapter, index) => ({
      name: adapter.name ?? `adapter ${index + 1}`,
      macAddress: (isTest ? undefined : adapter.macAddress) ?? madeUpMac(random),
      network: isTest ? adapter.testNetwork : adapter.failoverNetwork,
      addresses: (isTest ? adapter.testAddresses : adapter.failoverAddresses) ?? {},
    })),
  }
}

/** ` - Test`, or ` - Test 2` for the second one at once. */
function testSuffix(testName: string, machine: string): string {
  return testName.startsWith(machine) ? testName.slice(machine.length) : ' - Test'
}

/** In the range that QEMU and libvirt take for themselves. */
function madeUpMac(random: Random): string {
  const tail = [...random.bytes(3)].map((byte) => byte.toString(16).padStart(2, '0'))
  return ['52', '54', '00', ...tail].join(':')
}

/** Variables by which commands are told the same; the token names the run. */
export function environmentOf(handover: Handover, token: string): Record<string, string> {
  const { kind, machine, name, replica, run, point, address, disks, networkAdapters } = handover
  const size = { PROCESSORS: handover.processorCount, MEMORY_MIB: handover.memoryMiB }
  const plain: Record<string, JsonValue> = {
    RUN_TOKEN: token,
    KIND: kind,
    MACHINE: machine,
    NAME: name,
    REPLICA: replica,
    RUN_FOLDER: run,
    POINT: point.number,
    POINT_TIME: new Date(point.timeMs).toISOString(),
    NBD: address,
    DISK_COUNT: disks.length,
    ...size,
    NETWORK_ADAPTER_COUNT: networkAdapters.length,
  }
  for (const [index, disk] of disks.entries()) {
    plain[`DISK_${index}_NAME`] = disk.name
    plain[`DISK_${index}_URI`] = disk.uri
  }
  for (const [index, adapter] of networkAdapters.entries()) {
    plain[`ADAPTER_${index}_NETWORK`] = adapter.network
    plain[`ADAPTER_${index}_MAC`] = adapter.macAddress
    for (const [key, value] of Object.entries(adapter.addresses))
      plain[`ADAPTER_${index}_${upperSnake(key)}`] = value ?? null
  }
  const told = Object.entries(plain).filter(([, value]) => value !== null && value !== '')
  return Object.fromEntries(told.map(([key, value]) => [`SECONDSITE_${key}`, String(value)]))
}

/** `ipv4PreferredDnsServer` as `IPV4_PREFERRED_DNS_SERVER`. */
function upperSnake(key: string): string {
  return key.replaceAll(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()
}
