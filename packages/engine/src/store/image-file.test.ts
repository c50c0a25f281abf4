/** Images that are looked at while another process makes them smaller. */

import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ManualClock } from '../testing/manual-clock.js'
import { lostImages, shrinkImage } from './image-file.js'
import { ReplicaStore } from './replica-store.js'

const OLD_BYTES = 8192
const NEW_BYTES = 4096

let directory: string
let store: ReplicaStore
let image: string

beforeEach(async () => {
  directory = fs.mkdtempSync(join(tmpdir(), 'secondsite-images-'))
  image = join(directory, 'os.raw')
  store = ReplicaStore.open(directory, new ManualClock())
  const os = { diskId: 'd1', name: 'os', imagePath: image, sizeBytes: OLD_BYTES }
  const disks = [{ ...os, receivedLogId: null, appliedLogId: null }]
  await store.claim({ relationshipId: 'r1', machine: 'web01', fencingNumber: 1, disks, recoveryJson: null })
  fs.writeFileSync(image, new Uint8Array(OLD_BYTES))
  await store.markImage('d1', OLD_BYTES)
})

afterEach(async () => {
  await store.close()
  fs.rmSync(directory, { recursive: true, force: true })
})

it('an image that became smaller behind its row is not taken for one that was cut short', async () => {
  const disks = await store.disks()
  await store.markImage('d1', NEW_BYTES)
  await shrinkImage(image, NEW_BYTES)
  expect(await lostImages(disks, () => store.disks())).toEqual([])
})

it('one that is shorter than its row says now is', async () => {
  const disks = await store.disks()
  await store.markImage('d1', NEW_BYTES)
  fs.truncateSync(image, NEW_BYTES - 1)
  expect(await lostImages(disks, () => store.disks())).toMatchObject([{ fileBytes: NEW_BYTES - 1 }])
})

it('one that is gone is, whatever its row says', async () => {
  const disks = await store.disks()
  fs.rmSync(image)
  expect(await lostImages(disks, () => store.disks())).toMatchObject([{ fileBytes: null }])
})
