/**
 * A replica in a folder of this computer, as a transport to it.
 *
 * The store is opened when the first connection is made, so a folder that is not there (a volume that is not mounted, a
 * share that is down) keeps nobody from tracking disks: it is a failed connection, tried again as any other. A folder that
 * has lost its store is never taken for a new one, as changes would go onto an image of zeros.
 */

import { existsSync } from 'node:fs'
import { ReplicaStore, requireStore } from '../store/replica-store.js'
import type { Channel, Transport } from '../transport/channel.js'
import { memoryTransport } from '../transport/memory.js'
import type { Clock } from '../clock.js'
import { ReplicaService } from './replica-service.js'
import type { ReplicaWork } from './replica-work.js'

export interface FolderReplicaOptions {
  readonly directory: string
  /** Nothing has been replicated yet: the folder may be created. */
  readonly isNew: boolean
  readonly clock: Clock
  readonly work: ReplicaWork
}

interface OpenReplica {
  readonly store: ReplicaStore
  readonly service: ReplicaService
  readonly transport: Transport
}

export class FolderReplica implements Transport {
  readonly #options: FolderReplicaOptions
  #isNew: boolean
  #open: OpenReplica | undefined

  constructor(options: FolderReplicaOptions) {
    this.#options = options
    this.#isNew = options.isNew
  }

  /** A machine of which nothing was replicated takes the folder: it may be made anew, should it have gone meanwhile. */
  async takeNew(): Promise<void> {
    if (existsSync(ReplicaStore.fileOf(this.#options.directory))) return
    await this.close()
    this.#isNew = true
  }

  /** @throws {REPLICA_NOT_FOUND, STORE_IN_USE, STORE_VERSION_NEWER, STORE_CORRUPT, REPLICA_DISK_FULL, ACCESS_DENIED} */
  async connect(signal?: AbortSignal): Promise<Channel> {
    if (!this.#isNew) await this.#requireStore()
    this.#open ??= this.#openStore()
    this.#isNew = false
    return this.#open.transport.connect(signal)
  }

  /** Waits until nothing is applied or let go of any more. */
  async settled(): Promise<void> {
    await this.#open?.service.settled()
  }

  /** Waits for what has begun and closes the store. The next connection opens it again. */
  async close(): Promise<void> {
    const open = this.#open
    this.#open = undefined
    try {
      await open?.service.settled()
    } finally {
      await open?.store.close()
    }
  }

  /** A store whose file has gone while it was open would go on in one that nobody can find. */
  async #requireStore(): Promise<void> {
    const { directory } = this.#options
    if (existsSync(ReplicaStore.fileOf(directory))) return
    await this.close()
    requireStore(directory)
  }

  #openStore(): OpenReplica {
    const { directory, clock, work } = this.#options
    const store = ReplicaStore.open(directory, clock)
    const service = new ReplicaService(store, work, clock)
    return { store, service, transport: memoryTransport((channel) => void service.serve(channel)) }
  }
}
