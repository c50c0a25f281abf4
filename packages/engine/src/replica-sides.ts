/**
 * The two sides of a machine in a plan: which replica is failed over, whose primary is prepared before, and where
 * replication goes afterwards.
 *
 * A plan names them as they are while the machine runs at home. A Failback leads from the other side back, so where the plan
 * says how replication is reversed, it sees them swapped; without that its `replica` is the one that leads home.
 */

import { resolve } from 'node:path'
import type { TargetRequest } from './plan/targets.js'

/** Absolute paths. */
export interface TargetSides {
  /** Folder of the replica that is failed over. */
  readonly replica: string
  /** State directory of the engine of its primary, where that can be reached. */
  readonly state: string | undefined
  /** State directory of the engine that protects the machine afterwards, and the folder it replicates to. */
  readonly reverse: { readonly state: string; readonly home: string } | undefined
}

/** The sides of a machine as a run of this kind meets them. */
export function sidesOf({
  machine,
  kind,
  directory,
}: Pick<TargetRequest, 'machine' | 'kind' | 'directory'>): TargetSides {
  const at = (path: string): string => resolve(directory, path)
  const replica = at(machine.replica)
  const state = machine.state === undefined ? undefined : at(machine.state)
  const reverse = machine.reverse && { state: at(machine.reverse.state), home: at(machine.reverse.home) }
  if (kind === 'Failback' && reverse && state !== undefined)
    return { replica: reverse.home, state: reverse.state, reverse: { state, home: replica } }
  return { replica, state, reverse: kind === 'Planned' ? reverse : undefined }
}
