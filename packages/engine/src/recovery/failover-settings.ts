/**
 * What a failover needs besides disks: how large the machine is, which networks it joins, which addresses it gets, and
 * what starts it. The words for addresses are those of the original's `Set-VMNetworkAdapterFailoverConfiguration`.
 *
 * They are part of the primary's policy and travel with every hello, so the folder of the replica has them when everything
 * else is gone. What an operator sets at the replica stands above what the primary says, until he takes it back.
 *
 * Configuration of a machine changes here by hand: a network adapter that nobody has mapped is there and unplugged.
 */

import { isIPv4, isIPv6 } from 'node:net'
import { isAbsolute } from 'node:path'
import { z } from 'zod'
import { type JsonValue, SecondsiteError } from '../errors.js'
import { FAILOVER_SETTINGS_BYTES_MAX } from '../transport/messages.js'
import { domainProblem } from './runner-domain.js'

const ADAPTERS_MAX = 16
const WORDS_MAX = 256
const WORD_LENGTH_MAX = 4096

function whole(min: number, max: number, unit: string) {
  const message = `a whole number of ${unit} from ${min} to ${max}`
  return z.number(message).int(message).min(min, message).max(max, message)
}

function matching(pattern: RegExp, message: string) {
  return z.string(message).regex(pattern, message)
}

function oneOf<const Words extends readonly [string, ...string[]]>(...words: Words) {
  return z.enum(words, `one of ${words.join(', ')}`)
}

const pathMessage = 'an absolute path'
const path = z
  .string(pathMessage)
  .max(WORD_LENGTH_MAX, pathMessage)
  .refine((text) => isAbsolute(text) && !text.includes('\0'), pathMessage)

const wordMessage = `a text of at most ${WORD_LENGTH_MAX} characters`
const word = z
  .string(wordMessage)
  .max(WORD_LENGTH_MAX, wordMessage)
  .refine((text) => !text.includes('\0'), wordMessage)
const words = z.array(word, 'a list of words').max(WORDS_MAX, `at most ${WORDS_MAX} words`)

const commandMessage = `a list of 1 to ${WORDS_MAX} words, the first one the absolute path of a program`
const command = z
  .array(word, commandMessage)
  .min(1, commandMessage)
  .max(WORDS_MAX, commandMessage)
  .refine((list) => isAbsolute(list[0] ?? ''), commandMessage)

const networkMessage = 'none, isolated, user, bridge:NAME or network:NAME'
const network = matching(/^(none|isolated|user|(bridge|network):[A-Za-z0-9._-]{1,64})$/, networkMessage)

function address(isAddress: (text: string) => boolean, message: string) {
  return z.string(message).refine(isAddress, message).optional()
}

const ipv4 = address(isIPv4, 'an IPv4 address')
const ipv6 = address(isIPv6, 'an IPv6 address')

/** Addresses that are handed to the machine; nobody but its own programs can set them. */
const addressesSchema = z.strictObject({
  ipv4Address: ipv4,
  ipv4SubnetMask: ipv4,
  ipv4DefaultGateway: ipv4,
  ipv4PreferredDnsServer: ipv4,
  ipv4AlternateDnsServer: ipv4,
  ipv6Address: ipv6,
  ipv6SubnetPrefixLength: whole(1, 128, 'bits').optional(),
  ipv6DefaultGateway: ipv6,
  ipv6PreferredDnsServer: ipv6,
  ipv6AlternateDnsServer: ipv6,
})

const adapterSchema = z.strictObject({
  /** For people and for the machine's programs; default `adapter N`. */
  name: matching(/^[^\0\n]{1,64}$/, '1 to 64 characters').optional(),
  /** Default one that is made up; a test gets another one always. */
  macAddress: matching(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i, 'a MAC address as 52:54:00:12:34:56').optional(),
  /** What it is plugged into in a test; default `isolated`: nobody but the host's own resolver and router. */
  testNetwork: network.default('isolated'),
  /** The same in a real failover; default `none`, unplugged until somebody maps it. */
  failoverNetwork: network.default('none'),
  testAddresses: addressesSchema.optional(),
  failoverAddresses: addressesSchema.optional(),
})

const qemuSchema = z.strictObject({
  method: z.literal('qemu'),
  /** Default `qemu-system-x86_64`, or that of this computer's processor, on the search path. */
  program: path.optional(),
  /** Type of machine and its options; default `q35`. */
  machine: word.optional(),
  /** Default `auto`: KVM where this user has it, else emulation. */
  accelerator: oneOf('auto', 'kvm', 'tcg').default('auto'),
  /** Default `host` with KVM, `max` without. */
  processor: word.optional(),
  /** What the disks are attached to; default `virtio`. */
  diskBus: oneOf('virtio', 'scsi', 'sata').default('virtio'),
  /** Model of the network adapters; default `virtio-net-pci`. */
  adapterModel: matching(/^[A-Za-z0-9._-]{1,64}$/, 'the name of a device of QEMU').default('virtio-net-pci'),
  /** Image of the firmware, for machines that start by UEFI; default that of the type of machine. */
  firmware: path.optional(),
  /** Starts this kernel instead of what the first disk holds. */
  kernel: path.optional(),
  initrd: path.optional(),
  kernelCommandLine: word.optional(),
  /** Put behind all other arguments. */
  arguments: words.default([]),
})

const domainMessage = 'the XML of a libvirt domain, as `virsh dumpxml --inactive` prints it'
const libvirtSchema = z.strictObject({
  method: z.literal('libvirt'),
  /** Connection of virsh; default `qemu:///system`. */
  uri: matching(/^[^\s\0]{1,512}$/, 'a connection URI such as qemu:///system').default('qemu:///system'),
  /** The domain as it is at the primary; disks, name, networks and ids are replaced. */
  domainXml: z.string(domainMessage).superRefine((xml, context) => {
    const problem = domainProblem(xml)
    if (problem !== undefined) context.addIssue({ code: 'custom', message: `${domainMessage} (${problem})` })
  }),
  /** Disk of the replica by target of the domain, as `{ vda: os.raw }`; default by file name, else by order. */
  disks: z.record(z.string(), z.string(), 'a map of a target to a disk, as { vda: os.raw }').default({}),
})

const commandSchema = z.strictObject({
  method: z.literal('command'),
  /** Starts the machine. It gets everything that is known as JSON on its standard input and as SECONDSITE_ variables. */
  start: command,
  /** Stops the machine; default: what `start` has left running is ended by signals. */
  stop: command.optional(),
  /** The command is the machine: it runs as long as that does. Default false: it ends once the machine runs. */
  isMachine: z.boolean('true or false').default(false),
})

const runnerMessage = 'one of qemu, libvirt, command'
const runnerSchema = z
  .discriminatedUnion('method', [qemuSchema, libvirtSchema, commandSchema], runnerMessage)
  .refine((runner) => runner.method !== 'command' || runner.isMachine || runner.stop !== undefined, {
    path: ['stop'],
    message: 'a command: `start` ends once the machine runs, so nothing is left to be ended by a signal',
  })

/** The settings, for the policy and for files. */
export const failoverSettingsSchema = z
  .strictObject({
    /** Name under which the machine starts; ` - Test` is put behind it for a test. Default its name here. */
    name: matching(/^[^\0\n/]{1,128}$/, '1 to 128 characters without a slash').optional(),
    /** Default 1, or what the domain says. */
    processorCount: whole(1, 512, 'processors').optional(),
    /** Default 1024, or what the domain says. */
    memoryMiB: whole(16, 16_777_216, 'MiB').optional(),
    networkAdapters: z
      .array(adapterSchema, 'a list of network adapters')
      .max(ADAPTERS_MAX, `at most ${ADAPTERS_MAX} network adapters`)
      .default([]),
    /** Seconds that starting may take, from 1 to 3600; default 120. */
    startLimitSeconds: whole(1, 3600, 'seconds').default(120),
    /** Seconds that the machine has to shut itself down before it is switched off, from 1 to 3600; default 120. */
    stopLimitSeconds: whole(1, 3600, 'seconds').default(120),
    runner: runnerSchema.prefault({ method: 'qemu' }),
  })
  .refine(isSmallEnough, `at most ${FAILOVER_SETTINGS_BYTES_MAX} bytes as JSON`)

/** Settings with every default filled in. */
export type FailoverSettings = z.output<typeof failoverSettingsSchema>
/** What a caller may give. */
export type FailoverSettingsInput = z.input<typeof failoverSettingsSchema>
/** Addresses of a network adapter. */
export type AdapterAddresses = z.output<typeof addressesSchema>
/** What starts the machine, and how. */
export type RunnerSettings = FailoverSettings['runner']
/** @internal */
export type QemuSettings = z.output<typeof qemuSchema>
/** @internal */
export type LibvirtSettings = z.output<typeof libvirtSchema>
/** @internal */
export type CommandSettings = z.output<typeof commandSchema>

function isSmallEnough(settings: object): boolean {
  return Buffer.byteLength(JSON.stringify(settings)) <= FAILOVER_SETTINGS_BYTES_MAX
}

/**
 * Checks settings and fills in what is missing.
 * @param source - where they come from, for the message
 * @throws {FAILOVER_SETTINGS_INVALID} with every setting that is wrong, its value and what is allowed
 */
export function parseFailoverSettings(input: unknown, source = 'failover settings'): FailoverSettings {
  const result = failoverSettingsSchema.safeParse(input)
  if (result.success) return result.data
  const problems = result.error.issues.flatMap((issue) => problemsOf(issue, input))
  throw invalidSettings(source, problems)
}

/** A setting that is wrong. */
export interface SettingProblem {
  readonly [key: string]: JsonValue
  /** Keys and indexes from the top, joined by dots; empty for the whole. */
  readonly path: string
  /** What is there, shortened; null for nothing. */
  readonly value: JsonValue
  /** What is allowed. */
  readonly range: string
}

/** The error that names them. */
export function invalidSettings(source: string, problems: readonly SettingProblem[]): SecondsiteError {
  const lines = problems.map(
    ({ path, value, range }) =>
      `${path === '' ? '' : `${path} is `}${JSON.stringify(value)}, must be ${range}`,
  )
  return new SecondsiteError('FAILOVER_SETTINGS_INVALID', {
    message: `${source}: ${lines.join('; ')}`,
    details: { path: source, problems },
  })
}

function problemsOf(issue: z.core.$ZodIssue, input: unknown): SettingProblem[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const keys = [...issue.path, key]
      return { path: keys.join('.'), value: shown(input, keys), range: 'left out: there is no such setting' }
    })
  }
  return [{ path: issue.path.map(String).join('.'), value: shown(input, issue.path), range: issue.message }]
}

/** Characters of a value that a message shows. */
const SHOWN_LENGTH_MAX = 100

function shown(input: unknown, path: readonly PropertyKey[]): JsonValue {
  const value = path.reduce<unknown>(
    (at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key],
    input,
  )
  if (value === undefined) return null
  if (value === null || typeof value === 'boolean' || Number.isFinite(value)) return value as JsonValue
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? String(value))
  return text.length > SHOWN_LENGTH_MAX ? `${text.slice(0, SHOWN_LENGTH_MAX)}…` : text
}
