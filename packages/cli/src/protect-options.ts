/** The options of `protect`, as the command line gives them, and what they mean. */

import { homedir } from 'node:os'
import { basename, extname, join, resolve } from 'node:path'
import {
  type EnableRequest,
  type NbdOptions,
  type PolicyInput,
  type QuiesceInput,
  readFailoverSettings,
  SecondsiteError,
} from '@secondsite/engine'
import { wrongUse } from './wrong-use.js'
import { InvalidArgumentError } from 'commander'

/** What commander hands over. */
export interface ProtectGiven {
  readonly replica: string
  readonly nbd: string
  readonly every: number
  readonly name?: string
  readonly state?: string
  readonly points?: number
  readonly pointsEvery?: number
  readonly keepWrites?: number
  readonly threshold?: number
  readonly flushMode?: 'disk' | 'log'
  readonly compression?: 'adaptive' | 'lz4' | 'zstd' | 'none'
  readonly resync?: 'window' | 'now' | 'manual'
  readonly failoverSettings?: string
  readonly applicationConsistentEvery?: number
  readonly quiesceAgent?: string
  readonly quiesceFsfreeze?: readonly string[]
  readonly quiesceFreeze?: readonly string[]
  readonly quiesceThaw?: readonly string[]
  readonly quiescePrepare?: readonly string[]
  readonly quiesceLimit?: number
  readonly spin?: number
  readonly tlsCert?: string
  readonly tlsKey?: string
  readonly tlsClientCa?: string
  readonly readyFd?: number
  readonly acceptShrink?: Readonly<Record<string, number>>
  readonly recreateImages?: boolean
}

/** What `protect` does. */
export interface ProtectRequest {
  readonly stateDirectory: string
  readonly machine: EnableRequest
  readonly nbd: NbdOptions
  readonly readyFd: number | undefined
  /** Bytes of disks that have shrunk, by their names. */
  readonly acceptShrink: Readonly<Record<string, number>>
  /** Whether images of the replica that are lost are made anew. */
  readonly recreateImages: boolean
}

const RESYNC = {
  window: { enabled: true, immediately: false },
  now: { enabled: true, immediately: true },
  manual: { enabled: false },
} as const

/** The machine is named after its first disk unless told otherwise; its state lies where services keep theirs. */
export function protectRequest(disks: readonly string[], given: ProtectGiven): ProtectRequest {
  const name = given.name ?? nameOf(disks[0] ?? '')
  return {
    stateDirectory: given.state ?? defaultStateDirectory(name),
    machine: { name, disks, replica: { directory: given.replica }, policy: policyOf(given) },
    nbd: nbdOf(given),
    readyFd: given.readyFd,
    acceptShrink: given.acceptShrink ?? {},
    recreateImages: given.recreateImages ?? false,
  }
}

function nameOf(disk: string): string {
  const name = basename(disk, extname(disk)).replaceAll(/[^A-Za-z0-9._-]/g, '-')
  return name.slice(0, 64) || 'machine'
}

function defaultStateDirectory(name: string): string {
  if (process.getuid?.() === 0) return join('/var/lib/secondsite', name)
  return join(process.env['XDG_STATE_HOME'] ?? join(homedir(), '.local/state'), 'secondsite', name)
}

function policyOf({ every, threshold, flushMode, compression, resync, ...given }: ProtectGiven): PolicyInput {
  const { points, pointsEvery, keepWrites, failoverSettings } = given
  return {
    replicationFrequencySeconds: every,
    ...(points === undefined ? {} : { recoveryPoints: points }),
    ...(pointsEvery === undefined ? {} : { recoveryPointIntervalSeconds: pointsEvery }),
    ...(keepWrites === undefined ? {} : { keepEveryWrite: { hours: keepWrites } }),
    ...(threshold === undefined ? {} : { resyncThresholdPercent: threshold }),
    ...(flushMode === undefined ? {} : { flushMode }),
    ...(compression === undefined ? {} : { compression }),
    ...(resync === undefined ? {} : { autoResynchronize: RESYNC[resync] }),
    ...(failoverSettings === undefined ? {} : { failoverSettings: readFailoverSettings(failoverSettings) }),
    ...quiesceOf(given),
  }
}

/** How applications are brought to rest, and how often; nothing where no option says so. */
function quiesceOf({
  applicationConsistentEvery: everySeconds,
  ...given
}: Partial<ProtectGiven>): PolicyInput {
  const hooks = hooksOf(given)
  const [hook, ...others] = hooks
  const { quiescePrepare: prepare, quiesceLimit: frozenLimitSeconds } = given
  const rest = {
    ...(prepare === undefined ? {} : { prepare: [...prepare] }),
    ...(frozenLimitSeconds === undefined ? {} : { frozenLimitSeconds }),
  }
  if (others.length > 0 || (hook === undefined && Object.keys(rest).length > 0)) throw oneHook(hooks)
  return {
    ...(hook === undefined ? {} : { quiesce: { ...hook, ...rest } }),
    ...(everySeconds === undefined
      ? {}
      : { applicationConsistentSnapshotFrequencyInHours: everySeconds / UNIT_SECONDS.h }),
  }
}

function hooksOf(given: Partial<ProtectGiven>): QuiesceInput[] {
  const { quiesceAgent: socket, quiesceFsfreeze: mounts, quiesceFreeze: freeze, quiesceThaw: thaw } = given
  return [
    ...(socket === undefined ? [] : [{ method: 'guest-agent' as const, socketPath: resolve(socket) }]),
    ...(mounts === undefined
      ? []
      : [{ method: 'fsfreeze' as const, mounts: mounts.map((mount) => resolve(mount)) }]),
    ...(freeze === undefined && thaw === undefined
      ? []
      : [{ method: 'command' as const, freeze: [...(freeze ?? [])], thaw: [...(thaw ?? [])] }]),
  ]
}

function oneHook(hooks: readonly QuiesceInput[]): SecondsiteError {
  const range = 'one of --quiesce-agent, --quiesce-fsfreeze and --quiesce-freeze with --quiesce-thaw'
  const value = hooks.map(({ method }) => method).join(', ')
  return wrongUse('applications are brought to rest by', 'quiesce', range, value)
}

function nbdOf({ nbd: listen, spin, tlsCert, tlsKey, tlsClientCa }: ProtectGiven): NbdOptions {
  const authority = tlsClientCa === undefined ? {} : { clientAuthorityPath: tlsClientCa }
  return {
    listen,
    ...(spin === undefined ? {} : { spinMicroseconds: spin }),
    ...(tlsCert === undefined
      ? {}
      : { tls: { certificatePath: tlsCert, keyPath: tlsKey ?? '', ...authority } }),
  }
}

const UNIT_BYTES = { '': 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 } as const

/** `os.raw=4GiB` or `os.raw=4294967296`, once for each disk. */
export function shrinks(
  text: string,
  before: Readonly<Record<string, number>> = {},
): Readonly<Record<string, number>> {
  const [, disk, count, unit = ''] = /^(.+)=(\d{1,16})(KiB|MiB|GiB|TiB)?$/.exec(text) ?? []
  const bytes = Number(count) * UNIT_BYTES[unit as keyof typeof UNIT_BYTES]
  if (disk === undefined || !Number.isSafeInteger(bytes) || bytes === 0 || bytes % 512 !== 0)
    throw new InvalidArgumentError('A disk and the size it has now are needed, such as os.raw=4GiB.')
  return { ...before, [disk]: bytes }
}

const UNIT_SECONDS = { s: 1, m: 60, min: 60, h: 3600 } as const

/** `30`, `30s`, `5m` or `1h` as seconds. */
export function seconds(text: string): number {
  const [, count, unit = 's'] = /^(\d{1,6})(s|m|min|h)?$/.exec(text) ?? []
  if (count === undefined) throw new InvalidArgumentError('A time such as 30s, 5m or 1h is needed.')
  return Number(count) * UNIT_SECONDS[unit as keyof typeof UNIT_SECONDS]
}

/** A command as words separated by blanks, or, where a word has a blank in it, as a JSON list. */
export function words(text: string): string[] {
  if (!text.trimStart().startsWith('[')) return text.split(/\s+/).filter((word) => word !== '')
  try {
    const list: unknown = JSON.parse(text)
    if (Array.isArray(list) && list.every((word) => typeof word === 'string')) return list
  } catch {
    // Told below, as every other thing that is no list of words.
  }
  throw new InvalidArgumentError('Words separated by blanks are needed, or a JSON list of words.')
}

/** Takes an option that may be given several times. */
export function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, text]
}
