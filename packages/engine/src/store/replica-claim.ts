/**
 * Who may replicate into a store: its own relationship, with the disks that it knows and others that join them, and with a
 * fencing number that is not below the highest that was here.
 */

import { dirname, join } from 'node:path'
import { SecondsiteError } from '../errors.js'
import { withFailoverSettings } from './failover-settings-column.js'
import type { Identity, NewReplicaDisk, ReplicaDisk } from './replica-schema.js'

/** Who asks to replicate into this store. */
export interface Claim {
  readonly relationshipId: string
  readonly machine: string
  readonly fencingNumber: number
  readonly disks: readonly NewReplicaDisk[]
  /** Disks that have shrunk, by id: as long as that was not carried out here, they count with the size they had. */
  readonly shrinks?: ReadonlyMap<string, { readonly shrinkId: string; readonly fromBytes: number }>
  /** Recovery settings of the primary's policy as JSON; null from a primary that knows none. */
  readonly recoveryJson: string | null
  /** Failover settings of the primary's policy as JSON, null for none; one that does not say changes nothing. */
  readonly failoverSettingsJson?: string | null | undefined
}

/** @throws {STORE_FOREIGN} to another relationship; {FENCED} to a primary whose number is too low */
export function checkOwner(directory: string, identity: Identity, claim: Claim): void {
  if (identity.relationshipId !== claim.relationshipId) {
    const reason = `it holds the replica of ${identity.machine}`
    throw foreign(directory, reason, { machine: claim.machine, heldFor: identity.machine })
  }
  if (claim.fencingNumber >= identity.fencingNumber) return
  throw new SecondsiteError('FENCED', {
    message: `${claim.machine}: fencing number ${claim.fencingNumber} is below ${identity.fencingNumber}`,
    details: {
      machine: claim.machine,
      fencingNumber: claim.fencingNumber,
      heldNumber: identity.fencingNumber,
    },
  })
}

/** The column of a store that somebody claims. */
export function settingsColumn(
  column: string | null,
  { failoverSettingsJson: primary }: Claim,
): string | null {
  return primary === undefined ? column : withFailoverSettings(column, { primary })
}

/** Disks may join those that are here; when none of these is left, it is another machine's disks. */
export function checkDisks(directory: string, held: readonly ReplicaDisk[], claim: Claim): void {
  const isKnown = claim.disks.some(({ diskId }) => held.some((disk) => disk.diskId === diskId))
  for (const { diskId, name, sizeBytes } of claim.disks) {
    const own = held.find((disk) => disk.diskId === diskId)
    if (own ? own.sizeBytes <= (claimedSizeBytes(claim, own) ?? 0) : isKnown) continue
    const reason =
      own === undefined ? `it has no disk ${diskId}` : `its disk has ${own.sizeBytes} bytes, not ${sizeBytes}`
    throw foreign(directory, reason, { machine: claim.machine, disk: name, diskId })
  }
}

/** The size that a disk here is to have by a claim: that from before a shrink, until that has been carried out. */
export function claimedSizeBytes({ disks, shrinks }: Claim, held: ReplicaDisk): number | undefined {
  const shrink = shrinks?.get(held.diskId)
  const sizeBytes = disks.find(({ diskId }) => diskId === held.diskId)?.sizeBytes
  const isPending = shrink !== undefined && shrink.shrinkId !== held.lastShrinkId
  return sizeBytes !== undefined && isPending ? Math.max(sizeBytes, shrink.fromBytes) : sizeBytes
}

/** The image of a disk that has left keeps its name, and what joins under it gets another. */
export function withFreeName(disk: NewReplicaDisk, held: readonly ReplicaDisk[]): NewReplicaDisk {
  if (held.every(({ name }) => name !== disk.name)) return disk
  const name = `${disk.name}-${disk.diskId.slice(0, 8)}`
  return { ...disk, name, imagePath: join(dirname(disk.imagePath), `${name}.raw`) }
}

/** That a store belongs to somebody else. */
export function foreign(directory: string, reason: string, details: Record<string, string>): SecondsiteError {
  const message = `the store ${directory} belongs to another disk: ${reason}`
  return new SecondsiteError('STORE_FOREIGN', { message, details: { path: directory, reason, ...details } })
}
