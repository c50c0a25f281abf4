/**
 * The native addon lives in many threads, and its failures cross as coded errors.
 */

import { once } from 'node:events'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Engine } from '@secondsite/engine'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'

/** A worker's file outside of the tree cannot find the package by name. */
const engineUrl = import.meta.resolve('@secondsite/engine')
const roundCount = process.env['SECONDSITE_SLOW'] ? 200 : 20

let folder = ''

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'secondsite-native-'))
})

afterEach(() => rmSync(folder, { recursive: true, force: true }))

describe('the addon', () => {
  it('loads in a worker, works there, and survives its end, again and again', async () => {
    const program = `
      import { parentPort } from 'node:worker_threads'
      const { Engine } = await import(${JSON.stringify(engineUrl)})
      const engine = await Engine.open({ stateDirectory: ${JSON.stringify(folder)} + '/state', threadCountMax: 1 })
      await engine.close()
      parentPort.postMessage('worked')
    `
    for (let round = 0; round < roundCount; round += 1) {
      const file = join(folder, `worker-${round}.mjs`)
      writeFileSync(file, program)
      const worker = new Worker(file)
      const [answer] = await once(worker, 'message')
      expect(answer).toBe('worked')
      await worker.terminate()
    }
  })

  it('says what is wrong with a disk by code, path and hint', async () => {
    await using engine = await Engine.open({ stateDirectory: join(folder, 'state') })
    const replica = { directory: join(folder, 'replica') }
    const enable = (path: string) => engine.enable({ name: 'web01', disks: [path], replica })
    const odd = join(folder, 'odd.raw')
    writeFileSync(odd, '')
    await expect(enable(odd)).rejects.toMatchObject({ code: 'DISK_EMPTY', details: { path: odd } })
    truncateSync(odd, 1000)
    await expect(enable(odd)).rejects.toMatchObject({ code: 'DISK_SIZE_UNALIGNED', details: { path: odd } })
    await expect(enable(folder)).rejects.toMatchObject({ code: 'DISK_NOT_A_DISK' })
    await expect(enable(join(folder, 'none'))).rejects.toMatchObject({ code: 'DISK_NOT_FOUND' })
    expect(engine.machines).toEqual([])
  })
})
