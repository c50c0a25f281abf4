/** Images that cannot be brought to the size that their rows say. */

import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ReplicaStore } from '../store/replica-store.js'
import { ManualClock } from '../testing/manual-clock.js'
import { ImageKeeper } from './image-keeper.js'
import type { ReplicaWork } from './replica-work.js'

const OLD_BYTES = 4096
const NEW_BYTES = 8192

let directory: string
let clock: ManualClock
let store: ReplicaStore

beforeEach(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-images-'))
  clock = new ManualClock()
  store = ReplicaStore.open(directory, clock)
})

afterEach(async () => {
  await store.close()
  fs.rmSync(directory, { recursive: true, force: true })
})

async function claim(sizeBytes: number): Promise<void> {
  const os = { diskId: 'd1', name: 'os', imagePath: join(directory, 'os.raw'), sizeBytes }
  const disks = [{ ...os, receivedLogId: null, appliedLogId: null }]
  await store.claim({ relationshipId: 'r1', machine: 'web01', fencingNumber: 1, disks, recoveryJson: null })
}

it('an image that could not grow is not taken for one that was cut short', async () => {
  await claim(OLD_BYTES)
  await store.markImage('d1', OLD_BYTES)
  fs.writeFileSync(join(directory, 'os.raw'), new Uint8Array(OLD_BYTES))
  await claim(NEW_BYTES)
  const full = new Error('no space')
  let hasSpace = false
  const work: Partial<ReplicaWork> = {
    growImage: async () => {
      if (!hasSpace) throw full
    },
  }
  const images = new ImageKeeper(store, work as ReplicaWork, clock)
  const ensure = async (): Promise<void> => images.ensure(await store.disks(), () => false)
  await expect(ensure()).rejects.toBe(full)
  expect(await store.disks()).toMatchObject([{ sizeBytes: NEW_BYTES, imageSizeBytes: OLD_BYTES }])
  hasSpace = true
  await ensure()
  expect(await store.disks()).toMatchObject([{ imageSizeBytes: NEW_BYTES }])
})
