/**
 * Primary and replica work carried out for real: by workers of the pool and by the native core.
 */

import { statfs } from 'node:fs/promises'
import { fromSystemError } from './errors.js'
import type { FrozenCuts } from './frozen-cuts.js'
import type { ReplicaWork } from './apply/replica-work.js'
import { digestListBytes } from './resync/compare.js'
import type { NativeChurn, NativeSealedLog, NativeUndoSummary } from './native/index.js'
import type { WorkerPool } from './pool/pool.js'
import type { CompressionPolicy } from './pool/frame.js'
import { transition } from './protection/machine.js'
import type { PrimaryWork } from './protection/machine-context.js'
import { toPairs } from './ranges.js'
import { endExpiredTests } from './recovery/test-life.js'
import { RecoveryStore } from './store/recovery-store.js'
import { growImage, shrinkImage } from './store/image-file.js'
import { exportDisks } from './track/tracked-disk.js'

/** Called with the name of a step just before it. */
export type StepObserver = (name: string) => Promise<void> | void

/** What the work of a machine's primary side stands on. */
export interface PrimaryWorkParts {
  readonly machineId: string
  readonly pool: WorkerPool
  readonly cuts: FrozenCuts
  readonly compression: () => CompressionPolicy
  readonly step: StepObserver
}

/** The work of the primary side. */
export function primaryWork({ machineId, pool, cuts, compression, step }: PrimaryWorkParts): PrimaryWork {
  return {
    step,
    encode: async ({ path, offset, lengthBytes }, signal) => {
      const args = { path, offset, lengthBytes, compression: compression() }
      return (await pool.run('encodeFrame', args, { signal })).body
    },
    cut: (disks) => cuts.cut(disks),
    whileFrozen: (settings, action, signal) => cuts.whileFrozen(machineId, settings, action, signal),
    exportNbd: (disks, options) => exportDisks(disks, options, pool),
    buildBatch: async ({ disk, ranges, path, dataBytesMax }) => {
      const args = [disk.handle, toPairs(ranges), path, dataBytesMax]
      const { log, nextOffset } = (await pool.run('native', {
        call: 'buildTrackedBatch',
        args,
      })) as BuiltBatch
      return { log, nextOffset }
    },
    roomBytes,
    digests: async ({ disk, ranges, chunkBytes, algorithm, seed }) => {
      const bytes = digestListBytes(ranges, chunkBytes)
      const args = [disk.handle, toPairs(ranges), chunkBytes, algorithm, seed, bytes]
      return (await pool.run('native', { call: 'digestTracked', args })) as Uint8Array
    },
  }
}

interface BuiltBatch {
  readonly log: NativeSealedLog
  readonly nextOffset: number
}

async function roomBytes(directory: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(directory)
    return bavail * bsize
  } catch (error) {
    throw fromSystemError(error, { operation: 'look at the room of', path: directory })
  }
}

/** A view has two files open for each; a point that is saved for at every cycle would gather hundreds. */
const UNDO_SEGMENTS_MAX = 16

/** The work of the replica side. */
export function replicaWork(pool: WorkerPool, step: StepObserver): ReplicaWork {
  const run = (call: keyof typeof import('./native/index.js').native, ...args: unknown[]): Promise<unknown> =>
    pool.run('native', { call, args })
  return {
    step,
    next: (state, event) => {
      const answer = transition('replica', state, event, { isInitialReplicationDone: true })
      return answer.isAllowed ? answer.next : undefined
    },
    createImage: async (path, sizeBytes) => {
      await run('createImage', path, sizeBytes)
    },
    growImage,
    shrinkImage,
    decodeFrame: async (body, { path, offset, rawBytes }) => {
      // A received body owns its buffer, so it is moved to the worker instead of copied.
      await pool.run(
        'decodeFrame',
        { body, path, offset, rawBytes },
        { transfer: [body.buffer as ArrayBuffer] },
      )
    },
    verifyLog: async (paths, diskSizeBytes) => {
      await run('verifyLog', paths.log, diskSizeBytes)
    },
    saveUndo: async (imagePath, logPaths, place) => {
      await run('saveUndo', imagePath, [...logPaths], place)
    },
    measureLogs: async (imagePath, logPaths) =>
      (await run('measureLogs', imagePath, [...logPaths])) as NativeChurn,
    saveUndoRange: async (imagePath, range, place) => {
      await run('saveUndoRanges', imagePath, toPairs([range]), place)
    },
    undoPoints: async (undoDirectory) => {
      const { points } = (await run('undoSummary', undoDirectory, false)) as NativeUndoSummary
      return points.map(({ point }) => point)
    },
    pinnedPoints: async (undoDirectory) => (await run('pinnedPoints', undoDirectory)) as number[],
    mergePoint: async (place, into) => {
      await run('mergePoint', place, into)
    },
    compactPoint: async (place) => {
      const { points } = (await run('undoSummary', place.undoDirectory, false)) as NativeUndoSummary
      const segmentCount = points.find(({ point }) => point === place.point)?.segmentCount ?? 0
      if (segmentCount > UNDO_SEGMENTS_MAX) await run('compactPoint', place)
    },
    dropPointsBefore: async (undoDirectory, point) => {
      await run('dropPointsBefore', undoDirectory, point)
    },
    endExpiredTests: async (store, clock) => {
      const { directory } = store
      await endExpiredTests({ directory, recovery: new RecoveryStore(store, clock), clock })
    },
    applyLogs: async (imagePath, logPaths) => {
      await run('applyLogs', imagePath, [...logPaths], true)
    },
    digests: async ({ imagePath, ranges, chunkBytes, algorithm, seed }) => {
      const bytes = digestListBytes(ranges, chunkBytes)
      return (await run(
        'digestImage',
        imagePath,
        toPairs(ranges),
        chunkBytes,
        algorithm,
        seed,
        bytes,
      )) as Uint8Array
    },
  }
}
