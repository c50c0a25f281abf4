/**
 * A disk that the core holds open for recovery: a view of a point, or a writable layer over one.
 *
 * Reads and writes run in threads of the core's own; opening, closing and whole passes run in workers of the pool.
 */

import { native } from '../native/index.js'
import type { WorkerPool } from '../pool/pool.js'
import { checkSectorOffset } from '../units.js'

/** What a device is opened from. */
export interface DeviceIdentity {
  readonly diskId: string
  readonly name: string
}

export class RecoveryDevice {
  readonly diskId: string
  readonly name: string
  readonly sizeBytes: number
  /** The number of the device in the core. */
  readonly handle: number
  readonly #pool: WorkerPool
  #isClosed = false

  private constructor(identity: DeviceIdentity, opened: OpenedDevice, pool: WorkerPool) {
    this.diskId = identity.diskId
    this.name = identity.name
    this.sizeBytes = opened.sizeBytes
    this.handle = opened.handle
    this.#pool = pool
  }

  /**
   * A point of an image, read-only, whatever is applied to the image meanwhile.
   * @throws {UNDO_DAMAGED, DISK_NOT_FOUND, DISK_READ_FAILED}
   */
  static view(
    identity: DeviceIdentity,
    place: {
      readonly image: string
      readonly undoDirectory: string
      readonly point: number
      readonly sizeBytes?: number
    },
    pool: WorkerPool,
  ): Promise<RecoveryDevice> {
    return RecoveryDevice.#open(identity, 'openView', [place], pool)
  }

  /** A writable layer over a view of an image, in a folder of its own; taken up where it is there. */
  static overlay(
    base: RecoveryDevice,
    image: string,
    directory: string,
    pool: WorkerPool,
  ): Promise<RecoveryDevice> {
    const call = native.overlayState(directory) === null ? 'createOverlay' : 'openOverlay'
    return RecoveryDevice.#open(base, call, [{ view: base.handle, image, directory }], pool)
  }

  static async #open(
    { diskId, name }: DeviceIdentity,
    call: NativeCall,
    args: readonly unknown[],
    pool: WorkerPool,
  ): Promise<RecoveryDevice> {
    const opened = (await pool.run('native', { call, args: [...args] })) as OpenedDevice
    return new RecoveryDevice({ diskId, name }, opened, pool)
  }

  /** Reads `lengthBytes` bytes from `offset`, both multiples of 512. @throws {DISK_OUT_OF_RANGE, DISK_READ_FAILED} */
  async read(offset: number, lengthBytes: number): Promise<Uint8Array> {
    checkSectorOffset(offset, 'offset')
    const buffer = new Uint8Array(checkSectorOffset(lengthBytes, 'lengthBytes'))
    await native.readDevice(this.handle, offset, buffer)
    return buffer
  }

  /** Writes to a layer. @throws {DISK_READ_ONLY} of a view; {DISK_OUT_OF_RANGE, DISK_WRITE_FAILED, DISK_FULL} */
  async write(offset: number, data: Uint8Array): Promise<void> {
    await native.writeDevice(this.handle, checkSectorOffset(offset, 'offset'), data)
  }

  /** Makes what was written durable. @throws {DISK_SYNC_FAILED} */
  async flush(): Promise<void> {
    await native.flushDevice(this.handle)
  }

  /** Runs a call of the core on this device in a worker. */
  run(call: NativeCall, ...args: unknown[]): Promise<unknown> {
    return this.#pool.run('native', { call, args: [this.handle, ...args] })
  }

  /** Calling it again does nothing. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    await this.run('closeDevice')
  }
}

type NativeCall = keyof typeof native

interface OpenedDevice {
  readonly handle: number
  readonly sizeBytes: number
}
