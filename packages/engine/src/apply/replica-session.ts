/**
 * One conversation with a primary: hello, then shipments and questions, one message at a time.
 *
 * Frames are decoded by workers while the next ones arrive, but acknowledged only behind a sync, in order. A frame at
 * another place than the next expected one is a broken protocol: nothing is written at an offset that was not announced.
 * Applying goes on beside receiving, so that the next shipment travels meanwhile.
 */

import { join } from 'node:path'
import { type DiskShrink, shrinksText } from '../disk-shrink.js'
import { type ErrorDetails, SecondsiteError } from '../errors.js'
import type { Receipt } from '../store/replica-schema.js'
import { lastTestFailoverMs } from '../store/recovery-store.js'
import type { Claim } from '../store/replica-claim.js'
import type { ReplicaStore } from '../store/replica-store.js'
import type { Channel } from '../transport/channel.js'
import {
  type AnyMessage,
  errorMessage,
  type HeaderOf,
  message,
  NOTICES_MAX,
  PROTOCOL_VERSION,
} from '../transport/messages.js'
import type { ImageKeeper } from './image-keeper.js'
import { IncomingLog } from './incoming-log.js'
import type { ReplicaApplier } from './replica-applier.js'
import type { ReplicaEvent, ReplicaWork } from './replica-work.js'

/** What the first log of a disk names as the one before it. */
const CHAIN_START = '00000000-0000-0000-0000-000000000000'

/** Frames being decoded at once, at most. */
const FRAMES_DECODING_MAX = 4

/** What sessions of one replica share. */
export interface SessionParts {
  readonly work: ReplicaWork
  readonly applier: ReplicaApplier
  readonly images: ImageKeeper
}

export class ReplicaSession {
  readonly #channel: Channel
  readonly #store: ReplicaStore
  readonly #work: ReplicaWork
  readonly #applier: ReplicaApplier
  readonly #images: ImageKeeper
  readonly #incoming = new Map<string, IncomingLog>()
  readonly #decoding: Promise<void>[] = []
  #applying: Promise<void> = Promise.resolve()
  #applyFailure: Error | undefined
  /** Set when a frame could not be decoded: what has arrived is then not what was acknowledged. */
  #isSpoiled = false
  #isOpen = false
  /** The shipment that arrives begins the chains of all disks anew. */
  #isRebase = false

  constructor(channel: Channel, store: ReplicaStore, parts: SessionParts) {
    this.#channel = channel
    this.#store = store
    this.#work = parts.work
    this.#applier = parts.applier
    this.#images = parts.images
  }

  /** Serves until the primary closes the channel. @throws what must be told to the primary as an error */
  async run(): Promise<void> {
    for await (const received of this.#channel.receive()) {
      if (this.#applyFailure) throw this.#applyFailure
      await this.#handle(received as AnyMessage)
    }
  }

  /** Waits for everything begun; what arrived and is not yet acknowledged becomes durable as far as it came. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#decoding)
    await this.#applying
    for (const log of this.#incoming.values()) await this.#checkpoint(log).catch(() => {})
  }

  #handle(received: AnyMessage): Promise<void> {
    if (received.type === 'hello') return this.#hello(received.header)
    if (!this.#isOpen) throw protocolError(`${received.type} before hello`)
    switch (received.type) {
      case 'shipment-begin':
        return this.#begin(received.header)
      case 'frame':
        return this.#frame(received.header, received.body ?? new Uint8Array())
      case 'shipment-end':
        return this.#end(received.header.key)
      case 'digest-request':
        return this.#digests(received.header)
      case 'discard':
        return this.#discard(received.header.key)
      case 'status-request':
        return this.#status(received.header.key)
      default:
        throw protocolError(`${received.type} is not for the replica`)
    }
  }

  async #hello(hello: HeaderOf<'hello'>): Promise<void> {
    if (hello.protocolVersion !== PROTOCOL_VERSION) {
      throw protocolError(`version ${hello.protocolVersion} is not spoken here, only ${PROTOCOL_VERSION}`)
    }
    await this.#applying // A later hello tells of disks that have grown.
    const { relationshipId, machine, fencingNumber, recovery, failoverSettings } = hello
    const disks = hello.disks.map(({ diskId, name, sizeBytes }) => {
      return {
        diskId,
        name,
        sizeBytes,
        imagePath: join(this.#store.directory, `${name}.raw`),
        receivedLogId: null,
        appliedLogId: null,
      }
    })
    const recoveryJson = recovery ? JSON.stringify(recovery) : null
    const claim = { relationshipId, machine, fencingNumber, recoveryJson, disks, shrinks: shrinksOf(hello) }
    await this.#store.claim({ ...claim, failoverSettingsJson: failoverSettings })
    await this.#ensureImages(hello)
    const applied = await this.#applier.applyReceived() // What an earlier conversation could not bring into the images.
    if (applied?.kind === 'delta') await this.#caughtUp()
    await this.#applier.cleanApplied()
    this.#isOpen = true
    await this.#telling(async (notices) => {
      const welcome = { key: hello.key, protocolVersion: PROTOCOL_VERSION, notices }
      await this.#channel.send(message('welcome', { ...welcome, ...(await this.#position()) }))
    })
  }

  /** Sends what was not told yet with a message; what was sent and lost stays in the store's list. */
  async #telling(send: (notices: HeaderOf<'welcome'>['notices']) => Promise<void>): Promise<void> {
    const { insight } = this.#applier
    // The message is what matters; what cannot be read or marked now is told with the next.
    const rows = (await insight.untoldNotices().catch(() => [])).slice(0, NOTICES_MAX)
    const notices = rows.map(({ code, timeMs, detailsJson }) => {
      return { code, timeMs, details: JSON.parse(detailsJson) as ErrorDetails }
    })
    await send(notices)
    await insight.markTold(rows.map(({ noticeId }) => noticeId)).catch(() => {})
  }

  /** The image of a disk that has left is its owner's business. */
  async #ensureImages(hello: HeaderOf<'hello'>): Promise<void> {
    const claimed = new Map(hello.disks.map((disk) => [disk.diskId, disk]))
    const own = (await this.#store.disks()).filter(({ diskId }) => claimed.has(diskId))
    await this.#images.ensure(own, (diskId) => claimed.get(diskId)?.mayRecreateImage === true)
  }

  async #position() {
    const disks = await this.#store.disks()
    const spool = await this.#store.unfinishedLogs()
    const { receivedShipment, appliedShipment } = await this.#store.watermarks()
    return {
      receivedShipment,
      appliedShipment,
      disks: disks.map(({ diskId, receivedLogId, appliedLogId }) => ({
        diskId,
        receivedLogId,
        appliedLogId,
      })),
      spool: spool.map((log) => ({
        logId: log.logId,
        durableBytes: log.logDurableBytes + log.indexDurableBytes,
      })),
      lastTestFailoverMs: await lastTestFailoverMs(this.#store),
    }
  }

  async #begin(begin: HeaderOf<'shipment-begin'>): Promise<void> {
    await this.#checkChain(begin)
    this.#isRebase = begin.isRebase
    if (begin.kind === 'resync') await this.#moved('resyncStarted', 'a batch arrives')
    await this.#applier.discardUnfinished(begin.key)
    const { key: cycleNumber, kind, cutTimeMs, pointKind, groupPointId } = begin
    const shrinksJson = shrinksText(await this.#checkShrinks(begin))
    const logs = begin.logs.map((log) => {
      const { log: path, index: indexPath } = this.#applier.spool.paths(cycleNumber, log.logId)
      const { logId, diskId, previousLogId, logSizeBytes, indexSizeBytes } = log
      const isCoalesced = log.isCoalesced ? 1 : 0
      const sizes = { logSizeBytes, indexSizeBytes }
      return {
        logId,
        diskId,
        previousLogId,
        cycleNumber,
        kind,
        state: 'spooling' as const,
        path,
        indexPath,
        isCoalesced,
        ...sizes,
      }
    })
    const receipt = {
      cycleNumber,
      kind,
      state: 'receiving' as const,
      cutTimeMs,
      pointKind,
      groupPointId,
      shrinksJson,
      receivedMs: null,
      appliedMs: null,
    }
    await this.#store.beginCycle(receipt, logs)
    this.#incoming.clear()
    for (const row of await this.#store.logsOfCycle(cycleNumber)) {
      const log = new IncomingLog(row)
      this.#applier.spool.prepare(log.paths)
      this.#incoming.set(row.logId, log)
    }
    this.#applier.spool.syncDirectory()
  }

  /** A cut alone makes images smaller, and of disks that are here. */
  async #checkShrinks({ kind, shrinks }: HeaderOf<'shipment-begin'>): Promise<readonly DiskShrink[]> {
    const known = new Set((await this.#store.disks()).map(({ diskId }) => diskId))
    for (const { diskId, fromBytes, toBytes } of shrinks) {
      if (kind !== 'delta') throw protocolError(`a shipment of kind ${kind} makes no disk smaller`)
      if (!known.has(diskId)) throw protocolError(`disk ${diskId}, which is to shrink, is not here`)
      if (fromBytes <= toBytes)
        throw protocolError(`disk ${diskId} shrinks from ${fromBytes} to ${toBytes} bytes`)
    }
    return shrinks
  }

  /** The first log of each disk must follow the newest received one, unless the chain begins anew. */
  async #checkChain(begin: HeaderOf<'shipment-begin'>): Promise<void> {
    if (begin.kind !== 'delta') return
    const heads = new Map((await this.#store.disks()).map((disk) => [disk.diskId, disk.receivedLogId]))
    for (const log of begin.logs) {
      const head = heads.get(log.diskId)
      if (head === undefined)
        throw protocolError(`log ${log.logId} is of disk ${log.diskId}, which is not here`)
      if (!(begin.isRebase || (head ?? CHAIN_START) === log.previousLogId)) {
        await this.#moved('resyncRequired', 'LOG_CHAIN_GAP')
        throw new SecondsiteError('LOG_CHAIN_GAP', {
          message: `log ${log.logId} follows ${log.previousLogId}, the newest received one is ${head}`,
          details: {
            logId: log.logId,
            previousLogId: log.previousLogId,
            receivedLogId: head,
            diskId: log.diskId,
          },
        })
      }
      heads.set(log.diskId, log.logId)
    }
  }

  async #frame(frame: HeaderOf<'frame'>, body: Uint8Array): Promise<void> {
    const log = this.#incoming.get(frame.logId)
    if (log === undefined) throw protocolError(`frame of log ${frame.logId}, which was not announced`)
    const target = log.take(frame)
    const decoding = this.#work.decodeFrame(body, target)
    decoding.catch(() => {
      this.#isSpoiled = true // The failure itself is met below or at the next checkpoint.
    })
    this.#decoding.push(decoding)
    if (this.#decoding.length >= FRAMES_DECODING_MAX) await this.#decoding.shift()
    if (log.isCheckpointDue) await this.#checkpoint(log)
  }

  /** Makes what has arrived of a log durable, remembers that, and tells the primary. */
  async #checkpoint(log: IncomingLog): Promise<void> {
    await Promise.all(this.#decoding.splice(0))
    if (!log.hasNews || this.#isSpoiled) return
    await this.#work.step('spool.before-sync')
    const progress = log.progress()
    await this.#applier.spool.sync(log.paths)
    await this.#store.setProgress(log.logId, progress)
    log.settled()
    await this.#channel.send(message('ack', { logId: log.logId, durableBytes: log.durableBytes }))
  }

  async #end(key: number): Promise<void> {
    for (const log of this.#incoming.values()) {
      if (!log.isComplete) throw protocolError(`shipment ${key} ended before log ${log.logId} was complete`)
      await this.#checkpoint(log)
    }
    await this.#verify(key)
    await this.#work.step('receive.before-marking')
    await this.#store.markReceived(key, this.#isRebase)
    this.#incoming.clear()
    await this.#channel.send(message('received', { key }))
    this.#applying = this.#applying.then(() => this.#apply())
  }

  /** A log that does not verify is thrown away, so that it is sent again from its start. */
  async #verify(key: number): Promise<void> {
    const sizes = new Map((await this.#store.disks()).map((disk) => [disk.diskId, disk.sizeBytes]))
    const checks = [...this.#incoming.values()].map(async (log) => {
      try {
        await this.#work.verifyLog(log.paths, sizes.get(log.diskId) ?? 0)
      } catch (error) {
        this.#applier.spool.remove(log.paths)
        await this.#store.dropCycles([key])
        throw error
      }
    })
    await Promise.all(checks)
  }

  async #apply(): Promise<void> {
    if (this.#applyFailure) return
    try {
      const applied = await this.#applier.applyReceived()
      if (applied?.kind === 'delta') await this.#caughtUp()
      if (applied) await this.#tellApplied(applied)
      if (applied) await this.#applier.expire()
    } catch (error) {
      this.#applyFailure = error as Error
      await this.#channel.send(errorMessage(error)).catch(() => {})
    }
  }

  /** The images equal the disks at a cut: what was under way is complete. */
  async #caughtUp(): Promise<void> {
    await this.#moved('initialReplicationComplete', 'its closing cut is applied')
    await this.#moved('resyncComplete', 'its closing cut is applied')
  }

  /** The state follows what the primary does; an event that it does not take changes nothing. */
  async #moved(trigger: ReplicaEvent, reason: string): Promise<void> {
    const from = (await this.#store.identity())?.state
    const to = from && this.#work.next(from, trigger)
    if (from && to) await this.#store.transition({ trigger, from, to, operator: 'engine', reason })
  }

  #tellApplied({ cycleNumber: key, cutTimeMs }: Receipt): Promise<void> {
    const send = (notices: HeaderOf<'applied'>['notices']): Promise<void> =>
      this.#channel.send(message('applied', { key, cutTimeMs, notices }))
    return this.#telling(send).catch(() => {})
  }

  async #digests(request: HeaderOf<'digest-request'>): Promise<void> {
    await this.#applying
    const disk = (await this.#store.disks()).find((row) => row.diskId === request.diskId)
    if (disk === undefined) throw protocolError(`digests of disk ${request.diskId}, which is not here`)
    const { ranges, chunkBytes, algorithm, seed } = request
    const digests = await this.#work.digests({
      imagePath: disk.imagePath,
      ranges,
      chunkBytes,
      algorithm,
      seed,
    })
    await this.#channel.send(message('digests', { key: request.key }, digests))
  }

  async #discard(key: number): Promise<void> {
    await this.#applying
    await this.#applier.discardOpen()
    await this.#moved('resyncStarted', 'a pass begins')
    await this.#status(key)
  }

  async #status(key: number): Promise<void> {
    const { receivedShipment, appliedShipment } = await this.#store.watermarks()
    const spool = await this.#store.unfinishedLogs()
    const spoolBytes = spool.reduce((total, log) => total + log.logDurableBytes + log.indexDurableBytes, 0)
    await this.#channel.send(message('status', { key, receivedShipment, appliedShipment, spoolBytes }))
  }
}

function shrinksOf({ disks }: HeaderOf<'hello'>): NonNullable<Claim['shrinks']> {
  return new Map(disks.flatMap(({ diskId, shrink }) => (shrink ? [[diskId, shrink] as const] : [])))
}

function protocolError(text: string): SecondsiteError {
  return new SecondsiteError('PROTOCOL_ERROR', { message: text, details: { reason: text } })
}
