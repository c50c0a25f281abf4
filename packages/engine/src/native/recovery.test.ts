import { fork } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { native } from './index.js'

const SIZE = 1 << 20
const DISK_ID = '00112233-4455-6677-8899-aabbccddeeff'
const root = mkdtempSync(join(tmpdir(), 'secondsite-recovery-'))
let folderCount = 0
let folder: string
let image: string
let undoDirectory: string

afterAll(() => rmSync(root, { recursive: true, force: true }))

beforeEach(() => {
  folder = mkdtempSync(join(root, `${folderCount++}-`))
  image = join(folder, 'image.raw')
  undoDirectory = join(folder, 'undo')
  writeFileSync(image, Buffer.alloc(SIZE, 1))
})

/** Saves undo of point `point` and overwrites a range of the image with `fill`. */
function overwrite(point: number, offset: number, lengthBytes: number, fill: number): void {
  native.saveUndoRanges(image, [offset, lengthBytes], { undoDirectory, point, diskId: DISK_ID })
  const file = openSync(image, 'r+')
  writeSync(file, Buffer.alloc(lengthBytes, fill), 0, lengthBytes, offset)
  closeSync(file)
}

function openView(point: number): number {
  return native.openView({ image, undoDirectory, point }).handle
}

async function read(handle: number, offset: number, lengthBytes: number): Promise<Set<number>> {
  const buffer = new Uint8Array(lengthBytes)
  await native.readDevice(handle, offset, buffer)
  return new Set(buffer)
}

describe('views', () => {
  it('show the image as it stood at their point, and pin it', async () => {
    overwrite(1, 0, 8192, 2)
    overwrite(2, 4096, 8192, 3)
    const view = openView(1)
    expect(await read(view, 0, SIZE)).toEqual(new Set([1]))
    expect(native.pinnedPoints(undoDirectory)).toEqual([1])
    expect(() => native.dropPointsBefore(undoDirectory, 2)).toThrow(
      expect.objectContaining({ code: 'DISK_IN_USE' }),
    )
    native.closeDevice(view)
    expect(native.pinnedPoints(undoDirectory)).toEqual([])
    const newer = openView(2)
    expect(await read(newer, 4096, 4096)).toEqual(new Set([2]))
    expect(native.undoSummary(undoDirectory, true)).toMatchObject({
      points: [{ point: 1 }, { point: 2 }],
      damage: [],
    })
    expect(native.changedRanges(undoDirectory, 1, -1, 0, 10)).toEqual([0, 12288])
    expect(native.changedRanges(undoDirectory, 1, 2, 0, 10)).toEqual([0, 8192])
    native.closeDevice(newer)
  })

  it('refuse a point whose undo is damaged, and name file, offset and reason', () => {
    overwrite(1, 0, 8192, 2)
    const segment = join(undoDirectory, '000000000001.000000000-000000000.hrl')
    truncateSync(segment, 100)
    expect(() => openView(1)).toThrow(
      expect.objectContaining({
        code: 'UNDO_DAMAGED',
        details: expect.objectContaining({
          path: segment,
          offset: expect.any(Number),
          reason: expect.any(String),
        }),
      }),
    )
    native.closeDevice(openView(2))
  })

  it('become files of their own, unless the work is stopped', () => {
    overwrite(1, 0, 8192, 2)
    const view = openView(1)
    const out = join(folder, 'out.raw')
    const stopped = native.beginWork()
    native.stopWork(stopped)
    expect(() => native.materialize(view, out, stopped)).toThrow(expect.objectContaining({ code: 'ABORTED' }))
    const work = native.beginWork()
    native.materialize(view, out, work)
    expect(readFileSync(out).equals(Buffer.alloc(SIZE, 1))).toBe(true)
    expect(native.workProgress(work).doneBytes).toBe(SIZE)
    native.endWork(work)
    native.endWork(stopped)
    native.closeDevice(view)
  })
})

describe('overlays', () => {
  it('keep what is written, are tracked, and settle into the image', async () => {
    overwrite(1, 0, 8192, 2)
    const view = openView(1)
    const directory = join(folder, 'overlay')
    const overlay = native.createOverlay({ directory, view, image }).handle
    native.closeDevice(view)
    const tracking = join(folder, 'track')
    mkdirSync(tracking)
    const tracked = native.openTrackedOverlay(overlay, {
      path: image,
      trackingDirectory: tracking,
      diskId: DISK_ID,
      flushMode: 'disk',
    })
    await native.trackedWrite(tracked.handle, 512, new Uint8Array(512).fill(9))
    expect(native.overlayUsage(overlay)).toEqual({ dataBytes: 4096, zeroBytes: 0, state: 'active' })
    expect(native.overlayRanges(overlay, 0, 10)).toEqual([0, 4096])
    expect(readFileSync(image)[512]).toBe(2)
    native.settleOverlay(overlay, image)
    expect(native.overlayState(directory)).toBe('settled')
    await native.trackedWrite(tracked.handle, 65536, new Uint8Array(512).fill(8))
    native.closeTracked(tracked.handle)
    native.closeDevice(overlay)
    const expected = Buffer.alloc(SIZE, 1)
    expected.fill(9, 512, 1024).fill(8, 65536, 66048)
    expect(readFileSync(image).equals(expected)).toBe(true)
    expect(native.pinnedPoints(undoDirectory)).toEqual([])
  })

  it('are opened again where they were, tracked and clean', async () => {
    const directory = join(folder, 'overlay')
    const options = {
      path: image,
      trackingDirectory: join(folder, 'track'),
      diskId: DISK_ID,
      flushMode: 'disk',
    }
    mkdirSync(options.trackingDirectory)
    const view = openView(1)
    const overlay = native.createOverlay({ directory, view, image }).handle
    const tracked = native.openTrackedOverlay(overlay, options).handle
    await native.trackedWrite(tracked, 0, new Uint8Array(512).fill(9))
    native.closeTracked(tracked)
    native.closeDevice(overlay)
    const again = native.openOverlay({ directory, view, image }).handle
    const opened = native.openTrackedOverlay(again, options)
    expect(opened.recovery).toBe('clean')
    expect(native.trackedStatus(opened.handle).resyncReason).toBeFalsy()
    expect(await read(again, 0, 1024)).toEqual(new Set([9, 1]))
    native.closeTracked(opened.handle)
    native.closeDevice(again)
    native.closeDevice(view)
  })

  it('are tracked on as the image once they are settled', async () => {
    const view = openView(1)
    const overlay = native.createOverlay({ directory: join(folder, 'overlay'), view, image }).handle
    native.closeDevice(view)
    const options = {
      path: image,
      trackingDirectory: join(folder, 'track'),
      diskId: DISK_ID,
      flushMode: 'disk',
    }
    mkdirSync(options.trackingDirectory)
    const tracked = native.openTrackedOverlay(overlay, options).handle
    await native.trackedWrite(tracked, 0, new Uint8Array(512).fill(9))
    native.settleOverlay(overlay, image)
    native.closeTracked(tracked)
    native.closeDevice(overlay)
    const again = native.openTracked(options)
    expect(again.recovery).toBe('clean')
    expect(native.trackedStatus(again.handle).resyncReason).toBeFalsy()
    expect(native.trackedStatus(again.handle).writtenBytes).toBe(0)
    native.closeTracked(again.handle)
  })
})

describe('other processes', () => {
  it('read a point right while this one saves and overwrites', async () => {
    overwrite(1, 0, 8192, 2)
    const program = `
      import * as native from ${JSON.stringify(import.meta.resolve('@secondsite/native'))}
      const view = native.openView(${JSON.stringify({ image, undoDirectory, point: 1 })})
      const buffer = new Uint8Array(${SIZE})
      let roundCount = 0
      let isOver = false
      process.on('message', () => { isOver = true })
      process.send('ready')
      while (!isOver || roundCount < 5) {
        await native.readDevice(view.handle, 0, buffer)
        const wrong = buffer.findIndex((byte) => byte !== 1)
        if (wrong >= 0) throw new Error('wrong byte at ' + wrong)
        roundCount += 1
        await new Promise((done) => setImmediate(done))
      }
      process.disconnect()
    `
    const file = join(folder, 'reader.mjs')
    writeFileSync(file, program)
    const reader = fork(file)
    const ended = once(reader, 'exit')
    await once(reader, 'message')
    for (let round = 0; round < 40; round += 1)
      overwrite(1 + (round >> 3), (round * 37 * 512) % (SIZE - 65536), 65536, 3)
    reader.send('over')
    expect((await ended)[0]).toBe(0)
  })

  it('go on settling an overlay after they were killed, and lose nothing', async () => {
    const sizeBytes = 64 << 20
    truncateSync(image, sizeBytes)
    overwrite(1, 0, 8 << 20, 2)
    const expected = Buffer.alloc(sizeBytes)
    expected.fill(1, 0, SIZE)
    const directory = join(folder, 'overlay')
    const view = openView(1)
    const overlay = native.createOverlay({ directory, view, image }).handle
    for (let at = 4096; at < sizeBytes; at += 128 << 10) {
      await native.writeDevice(overlay, at, new Uint8Array(8192).fill(9))
      expected.fill(9, at, at + 8192)
    }
    native.closeDevice(overlay)
    native.closeDevice(view)
    const file = join(folder, 'settler.mjs')
    const program = `
      import * as native from ${JSON.stringify(import.meta.resolve('@secondsite/native'))}
      const view = native.openView(${JSON.stringify({ image, undoDirectory, point: 1 })}).handle
      const overlay = native.openOverlay({ view, ...${JSON.stringify({ directory, image })} }).handle
      process.send('ready')
      native.settleOverlay(overlay, ${JSON.stringify(image)})
      process.disconnect()
    `
    writeFileSync(file, program)
    for (let round = 0; native.overlayState(directory) !== 'settled'; round += 1) {
      const settler = fork(file)
      const ended = once(settler, 'exit')
      await Promise.race([once(settler, 'message'), ended])
      // The last one is left to finish, so that this ends on a machine of any speed.
      if (round < 6) setTimeout(() => settler.kill('SIGKILL'), 4 * round)
      await ended
      expect(round).toBeLessThan(7)
    }
    expect(readFileSync(image).equals(expected)).toBe(true)
  })
})
