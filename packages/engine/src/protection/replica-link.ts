/**
 * A conversation with the replica: connect, introduce the machine, hear how far the replica is.
 */

import { isSecondsiteError, SecondsiteError } from '../errors.js'
import type { Channel } from '../transport/channel.js'
import type { HeaderOf } from '../transport/messages.js'
import { message, PROTOCOL_VERSION } from '../transport/messages.js'
import { Link } from '../transport/link.js'
import type { MachineContext } from './machine-context.js'
import { pendingShrinks } from './shrinking.js'

export type Welcome = HeaderOf<'welcome'>
/** What happened at the replica, as it tells with other messages. */
export type Notice = Welcome['notices'][number]

/** An open conversation. */
export interface Conversation {
  readonly link: Link
  readonly welcome: Welcome
  /** A number for the next question, unique in this conversation. */
  nextKey(): number
  /** Tells the replica the sizes of disks that have grown since it was told, before a log of their new ranges comes. */
  tellSizes(): Promise<void>
  /** What the replica has told of itself so far. */
  readonly notices: readonly Notice[]
  noted(notices: readonly Notice[]): void
}

/**
 * Runs `action` over a new link and closes it afterwards, whatever happens.
 *
 * @throws {TRANSPORT_FAILED, TRANSPORT_LOST, FENCED, STORE_FOREIGN, REPLICA_IMAGE_LOST, REPLICA_BEHIND, STATE_BEHIND, ABORTED} and what
 *   `action` throws
 */
export async function withReplica<Result>(
  context: MachineContext,
  signal: AbortSignal | undefined,
  action: (conversation: Conversation) => Promise<Result>,
): Promise<Result> {
  const link = new Link(await connect(context, signal))
  try {
    let key = 0
    const nextKey = (): number => (key += 1)
    let told = sizesOf(context)
    const welcome = await greet(context, link, nextKey(), signal)
    const notices: Notice[] = [...welcome.notices]
    const noted = (more: readonly Notice[]): void => void notices.push(...more)
    await refuseOlder(context, welcome)
    await refuseNewer(context, welcome)
    const tellSizes = async (): Promise<void> => {
      const sizes = sizesOf(context)
      if (sizes.every((sizeBytes, index) => sizeBytes === told[index])) return
      told = sizes
      noted((await greet(context, link, nextKey(), signal)).notices)
    }
    return await action({ link, welcome, nextKey, tellSizes, notices, noted })
  } finally {
    await link.close()
  }
}

/** A replica that had applied more than it has now was put back to an older state, or lost. */
async function refuseOlder(context: MachineContext, welcome: Welcome): Promise<void> {
  const known = await context.store.appliedShipment(context.machineId)
  const { appliedShipment } = welcome
  if (appliedShipment >= known) return
  throw new SecondsiteError('REPLICA_BEHIND', {
    message: `the replica of ${context.name} holds shipment ${appliedShipment}; it had ${known}`,
    details: { machine: context.name, appliedShipment, knownShipment: known },
  })
}

/**
 * A replica that has more than was ever queued here, or other logs under the same numbers: the state directory was put
 * back to an older copy. What it would queue under those numbers would count as applied without having been sent.
 */
async function refuseNewer(context: MachineContext, welcome: Welcome): Promise<void> {
  const { nextCycleNumber } = await context.store.machine(context.machineId)
  const { receivedShipment } = welcome
  if (receivedShipment < nextCycleNumber && (await hasQueuedWhatIsApplied(context, welcome))) return
  throw new SecondsiteError('STATE_BEHIND', {
    message: `the replica of ${context.name} holds shipment ${receivedShipment}; the next one here is ${nextCycleNumber}`,
    details: { machine: context.name, receivedShipment, nextShipment: nextCycleNumber },
  })
}

/** Of the shipments that are applied and still stand in the queue, the newest log of each disk is the replica's. */
async function hasQueuedWhatIsApplied(context: MachineContext, welcome: Welcome): Promise<boolean> {
  const newest = new Map<string, string>()
  for (const { cycleNumber, kind } of await context.store.openCycles(context.machineId)) {
    if (kind !== 'delta' || cycleNumber > welcome.appliedShipment) continue
    for (const log of await context.store.logsOfCycle(context.machineId, cycleNumber))
      newest.set(log.diskId, log.logId)
  }
  return welcome.disks.every(
    ({ diskId, appliedLogId }) => (newest.get(diskId) ?? appliedLogId) === appliedLogId,
  )
}

/** A transport that fails without a code of ours is one that cannot be reached. */
async function connect(context: MachineContext, signal?: AbortSignal): Promise<Channel> {
  try {
    return await context.transport.connect(signal)
  } catch (error) {
    if (isSecondsiteError(error)) throw error
    const reason = error instanceof Error ? error.message : String(error)
    const message = `the replica of ${context.name} cannot be reached: ${reason}`
    throw new SecondsiteError('TRANSPORT_FAILED', {
      message,
      details: { machine: context.name, reason },
      cause: error,
    })
  }
}

function sizesOf(context: MachineContext): number[] {
  return context.disks.map((disk) => disk.latestSizeBytes())
}

async function greet(
  context: MachineContext,
  link: Link,
  key: number,
  signal?: AbortSignal,
): Promise<Welcome> {
  const { relationshipId, fencingNumber } = await context.store.machine(context.machineId)
  const shrinks = await pendingShrinks(context)
  const disks = context.disks.map(({ diskId, name, sizeBytes, sectorSizeBytes }) => {
    const pending = shrinks.find((shrink) => shrink.diskId === diskId)
    const shrink = pending ? { shrinkId: pending.shrinkId, fromBytes: pending.fromBytes } : null
    const mayRecreateImage = context.recreating.has(diskId)
    return { diskId, name, sizeBytes, sectorSizeBytes, shrink, mayRecreateImage }
  })
  const welcome = link.reply('welcome', key, signal)
  welcome.catch(() => {}) // Awaited below; until then a failed send is the one to tell.
  const { recoveryPoints, recoveryPointIntervalSeconds, retention, keepEveryWrite } = context.policy
  const recovery = { recoveryPoints, recoveryPointIntervalSeconds, retention, keepEveryWrite }
  const { failoverSettings: given } = context.policy
  const failoverSettings = given === null ? null : JSON.stringify(given)
  const hello = { key, protocolVersion: PROTOCOL_VERSION, relationshipId, fencingNumber, disks, recovery }
  await link.send(message('hello', { ...hello, failoverSettings, machine: context.name }), signal)
  const { header } = await welcome
  context.lastTestFailoverMs = header.lastTestFailoverMs
  return header
}
