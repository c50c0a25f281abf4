/** The options of `protect`, as the command line gives them, and what they mean. */

import { homedir } from 'node:os'
import { basename, extname, join } from 'node:path'
import type { EnableRequest, NbdOptions, PolicyInput } from '@secondsite/engine'
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
  readonly spin?: number
  readonly tlsCert?: string
  readonly tlsKey?: string
  readonly tlsClientCa?: string
  readonly readyFd?: number
}

/** What `protect` does. */
export interface ProtectRequest {
  readonly stateDirectory: string
  readonly machine: EnableRequest
  readonly nbd: NbdOptions
  readonly readyFd: number | undefined
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
  const { points, pointsEvery, keepWrites } = given
  return {
    replicationFrequencySeconds: every,
    ...(points === undefined ? {} : { recoveryPoints: points }),
    ...(pointsEvery === undefined ? {} : { recoveryPointIntervalSeconds: pointsEvery }),
    ...(keepWrites === undefined ? {} : { keepEveryWrite: { hours: keepWrites } }),
    ...(threshold === undefined ? {} : { resyncThresholdPercent: threshold }),
    ...(flushMode === undefined ? {} : { flushMode }),
    ...(compression === undefined ? {} : { compression }),
    ...(resync === undefined ? {} : { autoResynchronize: RESYNC[resync] }),
  }
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

const UNIT_SECONDS = { s: 1, m: 60, min: 60, h: 3600 } as const

/** `30`, `30s`, `5m` or `1h` as seconds. */
export function seconds(text: string): number {
  const [, count, unit = 's'] = /^(\d{1,6})(s|m|min|h)?$/.exec(text) ?? []
  if (count === undefined) throw new InvalidArgumentError('A time such as 30s, 5m or 1h is needed.')
  return Number(count) * UNIT_SECONDS[unit as keyof typeof UNIT_SECONDS]
}
