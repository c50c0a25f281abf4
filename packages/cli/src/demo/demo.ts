/**
 * The demo: the main job of Secondsite on a real file system, step by step, each step checked.
 */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  Engine,
  formatBytes,
  isSecondsiteError,
  type JobOptions,
  type ProgressListener,
  type ProtectedMachine,
  SecondsiteError,
} from '@secondsite/engine'
import { SeededRandom } from '@secondsite/engine/testing'
import { BreakableTransport } from './breakable-transport.js'
import { checkFileSystem, type DemoDisk, makeDemoDisk } from './file-system.js'

/** What one step did. */
export interface DemoStep {
  readonly name: string
  readonly durationMs: number
  /** Bytes written to the disk meanwhile. */
  readonly writtenBytes: number
  /** Bytes that the logs grew by. */
  readonly loggedBytes: number
  readonly sentBytes: number
  readonly comparedBytes: number
  readonly result: string
}

/** Where the demo tells what it does. */
export interface DemoOutput {
  say(line: string): void
  readonly onProgress?: ProgressListener
}

export interface DemoOptions {
  /** Keeps the folder with disk, replica and state. */
  readonly keep: boolean
  /** Ends the demo after the step at work. */
  readonly signal: AbortSignal
}

/** Result of the demo. */
export interface DemoReport {
  readonly folder: string
  readonly disk: string
  readonly isGood: boolean
  readonly steps: readonly DemoStep[]
}

const CYCLE_COUNT = 3
const WRITE_BYTES = 64 * 1024

/** Runs the demo in a folder of its own, which is removed afterwards unless it is to be kept. */
export async function runDemo(output: DemoOutput, options: DemoOptions): Promise<DemoReport> {
  const folder = mkdtempSync(join(tmpdir(), 'secondsite-demo-'))
  try {
    return await new Demo(folder, output, options.signal).run()
  } finally {
    if (!options.keep) rmSync(folder, { recursive: true, force: true })
  }
}

class Demo {
  readonly #folder: string
  readonly #output: DemoOutput
  readonly #signal: AbortSignal
  readonly #random = new SeededRandom(20)
  readonly #steps: DemoStep[] = []
  #disk!: DemoDisk
  #machine!: ProtectedMachine
  #link: BreakableTransport | undefined
  #isTracked = false
  #writtenBytes = 0
  #loggedBytes = 0
  #cursor = 0

  constructor(folder: string, output: DemoOutput, signal: AbortSignal) {
    this.#folder = folder
    this.#output = output
    this.#signal = signal
  }

  async run(): Promise<DemoReport> {
    await this.#step('make the disk', async () => {
      this.#disk = makeDemoDisk(this.#folder, this.#random)
      return `${formatBytes(this.#disk.sizeBytes)}, ${this.#disk.origin}`
    })
    const engine = await Engine.open({
      stateDirectory: join(this.#folder, 'state'),
      wrapTransport: (inner) => (this.#link = new BreakableTransport(inner)),
    })
    try {
      await this.#replicate(engine)
    } finally {
      this.#isTracked = false
      await engine.close()
    }
    await this.#step('check the file system of the replica', async () => this.#checkReplica())
    const isGood = this.#steps.every((step) => !step.result.startsWith('FAILED'))
    return { folder: this.#folder, disk: this.#disk.origin, isGood, steps: this.#steps }
  }

  async #replicate(engine: Engine): Promise<void> {
    await this.#step('enable', async () => {
      const replica = { directory: join(this.#folder, 'replica') }
      this.#machine = await engine.enable({ name: 'web01', disks: [this.#disk.path], replica })
      this.#isTracked = true
      return this.#machine.state
    })
    await this.#step('initial replication while the guest writes', async () => {
      const copying = this.#machine.startInitialReplication(this.#progress())
      await Promise.all([copying, this.#write(8)])
      return this.#machine.state
    })
    for (let cycle = 1; cycle <= CYCLE_COUNT; cycle += 1) {
      await this.#step(`delta cycle ${cycle}`, async () => {
        await this.#write(6)
        return this.#cycle()
      })
    }
    await this.#step('cut the link in the middle of a cycle', () => this.#cutLink())
    await this.#step('resume where it was cut', () => this.#cycle())
    await this.#step('pass the 50 % threshold', () => this.#passThreshold())
    await this.#step('resynchronize while the guest writes', () => this.#resynchronize())
    await this.#step('verify both sides', () => this.#verify())
  }

  async #cycle(): Promise<string> {
    const { sentBytes, rawBytes } = await this.#machine.replicate(this.#progress())
    return `sent ${formatBytes(sentBytes)} for ${formatBytes(rawBytes)} of log`
  }

  async #cutLink(): Promise<string> {
    await this.#write(32)
    this.#link?.breakAfter(6)
    try {
      await this.#machine.replicate(this.#progress())
      return 'FAILED: the link did not break'
    } catch (error) {
      if (!isSecondsiteError(error, 'TRANSPORT_LOST')) throw error
      return `${error.code}; the guest's writes went on`
    }
  }

  async #passThreshold(): Promise<string> {
    await this.#write(Number.POSITIVE_INFINITY)
    try {
      await this.#machine.replicate()
      return 'FAILED: the threshold was not noticed'
    } catch (error) {
      if (!isSecondsiteError(error, 'INVALID_STATE')) throw error
      const { state, resyncReason, health } = await this.#machine.measure()
      return `${state}, reason ${resyncReason}, health ${health}`
    }
  }

  async #resynchronize(): Promise<string> {
    const working = this.#machine.resynchronize(this.#progress())
    const [report] = await Promise.all([working, this.#write(4)])
    if (report === undefined) return 'FAILED: nothing was resynchronized'
    const { differentBytes, comparedBytes } = report
    return `${formatBytes(differentBytes)} of ${formatBytes(comparedBytes)} differed; ${this.#machine.state}`
  }

  async #verify(): Promise<string> {
    const { equal, digests } = await this.#machine.verify(this.#progress())
    const [disk] = digests
    if (!equal || disk === undefined || disk.sourceDigest !== disk.replicaDigest)
      return 'FAILED: the sides differ'
    return `equal, digest ${disk.sourceDigest.slice(0, 16)}… on both sides`
  }

  #checkReplica(): string {
    if (!this.#disk.isExt4) return 'not done: the image is no file system'
    const { isClean, summary } = checkFileSystem(join(this.#folder, 'replica', 'web01.raw.raw'))
    return isClean ? `e2fsck: ${summary.replace(/^.*?: /, '')}` : `FAILED: ${summary}`
  }

  /** Overwrites `mebibytes` MiB of the scratch file, going round. */
  async #write(mebibytes: number): Promise<void> {
    const ranges = this.#disk.writable.flatMap((range) => [...piecesOf(range)])
    const count = Math.min(ranges.length, (mebibytes * 1024 * 1024) / WRITE_BYTES)
    for (let index = 0; index < count; index += 1) {
      const range = ranges[this.#cursor % ranges.length]
      if (range === undefined) return
      const beforeBytes = this.#pendingBytes()
      await this.#machine.disks[0]?.write(range.offset, this.#random.bytes(range.lengthBytes))
      this.#loggedBytes += Math.max(0, this.#pendingBytes() - beforeBytes)
      this.#writtenBytes += range.lengthBytes
      this.#cursor += 1
    }
  }

  #progress(): JobOptions {
    const { onProgress } = this.#output
    return { signal: this.#signal, ...(onProgress === undefined ? {} : { onProgress }) }
  }

  async #step(name: string, action: () => Promise<string>): Promise<void> {
    if (this.#signal.aborted) throw new SecondsiteError('ABORTED', { message: `stopped before: ${name}` })
    this.#output.say(name)
    this.#loggedBytes = 0
    const before = this.#traffic()
    const startedMs = performance.now()
    const result = await action()
    const durationMs = performance.now() - startedMs
    const after = this.#traffic()
    this.#steps.push({
      name,
      durationMs,
      writtenBytes: after.writtenBytes - before.writtenBytes,
      loggedBytes: this.#loggedBytes,
      sentBytes: after.sentBytes - before.sentBytes,
      comparedBytes: after.comparedBytes - before.comparedBytes,
      result,
    })
    this.#output.say(`  ${result}`)
  }

  #traffic() {
    const { sentBytes = 0, comparedBytes = 0 } = this.#link ?? {}
    return { writtenBytes: this.#writtenBytes, sentBytes, comparedBytes }
  }

  /** Bytes of logs that wait; 0 before the disk is tracked and after it was closed. */
  #pendingBytes(): number {
    if (!this.#isTracked) return 0
    return this.#machine.disks.reduce((total, disk) => total + disk.status().unreleasedLogBytes, 0)
  }
}

function* piecesOf(range: { readonly offset: number; readonly lengthBytes: number }) {
  for (let at = 0; at < range.lengthBytes; at += WRITE_BYTES) {
    yield { offset: range.offset + at, lengthBytes: Math.min(WRITE_BYTES, range.lengthBytes - at) }
  }
}
