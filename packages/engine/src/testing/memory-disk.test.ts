import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { MemoryDisk } from './memory-disk.js'

const KIB = 1024

describe('a memory disk', () => {
  it('reads as zeros and takes no memory until it is written to', async () => {
    await using disk = await MemoryDisk.create({ sizeBytes: 64 * KIB * KIB })
    expect(await disk.sizeBytes()).toBe(64 * KIB * KIB)
    expect(await disk.allocatedBytes()).toBe(0)
    expect(await disk.read(63 * KIB * KIB, 512)).toEqual(new Uint8Array(512))
  })

  it('reads back what was written and filled, and nothing beside it', async () => {
    await using disk = await MemoryDisk.create({ sizeBytes: 8 * KIB })
    await disk.fill(7, { offset: 1024, lengthBytes: 1024 })
    await disk.write(2048, Uint8Array.of(1, 2, 3))
    const expected = new Uint8Array(8 * KIB)
    expected.fill(7, 1024, 2048).set([1, 2, 3], 2048)
    expect(await disk.read(0, 8 * KIB)).toEqual(expected)
  })

  it('is filled alike by one seed, and differently by another', async () => {
    await using one = await MemoryDisk.create({ sizeBytes: 8 * KIB })
    await using other = await MemoryDisk.create({ sizeBytes: 8 * KIB })
    await one.fillRandom({ seed: 5 })
    await other.fillRandom({ seed: 5 })
    expect(await one.firstDifference(other.path)).toBe(-1)
    await other.fillRandom({ seed: 6 })
    expect(await one.firstDifference(other.path)).toBeGreaterThanOrEqual(0)
  })

  it('names the first byte that differs, also behind the end of the shorter', async () => {
    await using disk = await MemoryDisk.create({ sizeBytes: 4 * KIB })
    const other = join(disk.directory, 'other.raw')
    const bytes = new Uint8Array(4 * KIB)
    bytes[4000] = 1
    writeFileSync(other, bytes)
    expect(await disk.firstDifference(other)).toBe(4000)
    writeFileSync(other, new Uint8Array(2 * KIB))
    expect(await disk.firstDifference(other)).toBe(2 * KIB)
  })

  it('refuses what does not lie on it, and sizes that are no disk', async () => {
    await using disk = await MemoryDisk.create({ sizeBytes: 1024 })
    await expect(disk.write(1000, new Uint8Array(512))).rejects.toThrow(RangeError)
    await expect(disk.read(1000, 512)).rejects.toThrow(RangeError)
    for (const sizeBytes of [0, 100, -512, Number.NaN]) {
      await expect(MemoryDisk.create({ sizeBytes })).rejects.toThrow(TypeError)
    }
    await expect(MemoryDisk.create({ sizeBytes: 512, name: '../x' })).rejects.toThrow(TypeError)
  })

  it('leaves nothing behind', async () => {
    const disk = await MemoryDisk.create({ sizeBytes: 1024 })
    writeFileSync(`${disk.path}.hrt`, 'beside it')
    await disk.remove()
    await disk.remove()
    expect(existsSync(disk.directory)).toBe(false)
  })
})
