/**
 * What is asked of a reversal, what is carried out, and the steps that both of its outcomes share.
 */

import { mkdirSync } from 'node:fs'
import { resolve } from 'node:path'
import type { Adoption, Engine } from './engine.js'
import { SecondsiteError } from './errors.js'
import type { PolicyInput } from './protection/policy.js'
import type { ProtectedMachine } from './protection/protected-machine.js'
import { type ByteRange, fromPairs, toPairs, totalBytes } from './ranges.js'
import type { RecoveryContext } from './recovery/context.js'
import { ReplicaStore } from './store/replica-store.js'
import { TrackedDisk } from './track/tracked-disk.js'

/** Where the former primary is: still known to its engine, or nothing but places for the disks. */
export type FormerPrimary =
  | { readonly engine: Engine }
  /** By the names of the disks: files of theirs or of old copies, or paths at which new ones are made. */
  | { readonly disks: Readonly<Record<string, string>> }

export interface ReverseRequest {
  /** Engine of the side that is active now; it protects the machine from now on. */
  readonly engine: Engine
  readonly former: FormerPrimary
  /** Folder for the store of the way home: points, spool. The disks stay where they are. */
  readonly directory: string
  /**
   * The side whose own writes are given up; they are kept as logs in `lost` in the directory. `primary`: what the former
   * primary wrote and never sent. `replica`: what was written since the failover; nothing is reversed then, the former primary
   * goes on as the primary and this replica as its replica.
   */
  readonly loser?: 'primary' | 'replica'
  /** Where the failover is not committed yet: also gives up recovery points that are locked. */
  readonly dropLocked?: boolean
  /** Settings of the reversed relationship; default those it had. */
  readonly policy?: PolicyInput
}

export interface ReverseReport {
  /** The machine as it is protected from now on. */
  readonly machine: ProtectedMachine
  /** Bytes that may differ and are compared now; 0 when nothing is. */
  readonly candidateBytes: number
  /** Logs of what was given up. */
  readonly lostLogs: readonly string[]
}

/** What is carried out, recorded before it begins. */
export interface ReversePlan {
  readonly loser?: 'replica'
  readonly adoption: Adoption
  /** Paths of the former primary's disks, by name. */
  readonly formerPaths: Readonly<Record<string, string>>
  readonly formerName: string | null
  /** The consistency group that the former primary was in; null for none. */
  readonly groupName: string | null
  /** Ranges by name of the disk, flat; null for the whole disk. */
  readonly candidates: Readonly<Record<string, readonly number[] | null>>
  readonly lostLogs: readonly string[]
}

/** The plan that an earlier call has recorded. */
export async function recordedPlan(context: RecoveryContext): Promise<ReversePlan | undefined> {
  const row = await context.recovery.failover()
  return row?.reverseJson ? (JSON.parse(row.reverseJson) as ReversePlan) : undefined
}

/** Bytes that a plan compares. */
export function bytesOf({ adoption, candidates }: ReversePlan): number {
  return adoption.disks.reduce((total, { name, sizeBytes }) => {
    const pairs = candidates[name]
    return total + (pairs ? totalBytes(fromPairs([...pairs])) : sizeBytes)
  }, 0)
}

/** What may differ, as a plan records it. */
export function candidatesOf(
  disks: readonly { readonly disk: string; readonly ranges: readonly ByteRange[] | null }[],
): ReversePlan['candidates'] {
  return Object.fromEntries(disks.map(({ disk, ranges }) => [disk, ranges && toPairs(ranges)] as const))
}

/**
 * The places of the new relationship are free: found out only on the way, they would leave the machine with no primary.
 * @throws {STORE_FOREIGN, MACHINE_EXISTS}
 */
export async function requirePlaces(
  { clock }: RecoveryContext,
  { engine, former, directory }: Pick<ReverseRequest, 'engine' | 'former' | 'directory'>,
  machine: string,
): Promise<void> {
  await ReplicaStore.requireFree(resolve(directory), machine, clock)
  const isFormer = 'engine' in former && former.engine === engine
  if (isFormer || engine.machines.every(({ name }) => name !== machine)) return
  throw new SecondsiteError('MACHINE_EXISTS', {
    message: `the engine that is to protect ${machine} protects a machine of that name already`,
    details: { machine, reason: machine },
  })
}

/** Nobody may write to the former primary's disks behind the plan. @throws {MACHINE_RUNNING} when a client has one open */
export async function endExports(former: ProtectedMachine | undefined): Promise<void> {
  for (const disk of former?.disks ?? []) await disk.endExports()
}

/**
 * A member of a consistency group stays one: the group goes on at the side that protects the machine now. Where it was, it
 * ends with its last member.
 */
export async function moveGroup(
  to: Engine,
  machine: ProtectedMachine,
  former: FormerPrimary,
  groupName: string | null,
): Promise<void> {
  if (groupName === null) return
  const left = 'engine' in former ? former.engine.groups.find(({ name }) => name === groupName) : undefined
  if (left?.members.length === 0 && 'engine' in former) await former.engine.removeGroup(groupName)
  if (machine.groupName !== null) return
  const group = to.groups.find(({ name }) => name === groupName)
  if (group) await group.add(machine)
  else await to.createGroup({ name: groupName, machines: [machine.name] })
}

/** Ends the former primary, unless it has ended already. */
export async function retireFormer(
  context: RecoveryContext,
  former: FormerPrimary,
  { formerName, adoption }: ReversePlan,
): Promise<void> {
  if (!('engine' in former) || formerName === null) return
  const known = former.engine.machines.find(({ name }) => name === formerName)
  if (known === undefined || known.id === adoption.machineId) return
  await context.step('reverse.before-retiring')
  await former.engine.retire(known)
}

/** The disks of a plan are tracked from now on, and know what may differ before anybody writes to them. */
export async function trackDisks(
  context: RecoveryContext,
  { adoption, candidates }: ReversePlan,
): Promise<void> {
  for (const { diskId, name, path, trackingDirectory } of adoption.disks) {
    mkdirSync(trackingDirectory, { recursive: true })
    const options = { path, name, diskId, trackingDirectory, flushMode: 'disk' as const }
    const disk = await TrackedDisk.open(options, context.pool)
    const pairs = candidates[name]
    if (pairs === null || pairs === undefined) await disk.requireResync('REPLICATION_REVERSED', true)
    else if (pairs.length > 0) await disk.requireRanges('REPLICATION_REVERSED', fromPairs([...pairs]))
    await disk.close()
  }
}
