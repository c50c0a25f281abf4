/**
 * Machines that libvirt starts, by `virsh`: the domain of the settings, changed to the export, as a transient domain, so that
 * nothing is left of it when it ends.
 *
 * A domain is stopped by its id, and only while its XML carries the token of the run: a domain of the same id that somebody else
 * has started is let alone.
 */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Clock } from '../clock.js'
import { fromSystemError, isSecondsiteError, SecondsiteError } from '../errors.js'
import type { Random } from '../random.js'
import { SECOND_MS } from '../units.js'
import type { LibvirtSettings } from './failover-settings.js'
import { changeDomain, domainProblem, runOfDomain } from './runner-domain.js'
import type { Handover } from './runner-handover.js'
import { type CommandOutput, runToEnd } from './runner-process.js'
import { RECONNECT_SECONDS } from './runner-qemu.js'

const CALL_LIMIT_MS = 60 * SECOND_MS
const LOOK_MS = 500
/** States of `virsh domstate` of a domain that is no more. */
const ENDED = ['shut off', 'crashed']

/** A domain as it is to be stopped. */
export interface StartedDomain {
  readonly uri: string
  readonly domainId: string
  readonly token: string
}

/** The XML that starts it, and the id under which it will be known. */
export function domainOf(
  settings: LibvirtSettings,
  handover: Handover,
  { token, random }: { readonly token: string; readonly random: Random },
): { readonly xml: string; readonly domainId: string } {
  const { name, kind, address, disks, networkAdapters, processorCount, memoryMiB } = handover
  const freshId = random.uuid()
  const { xml, uuid } = changeDomain(settings.domainXml, {
    name,
    isTest: kind === 'Test',
    token,
    freshId,
    disks: disks.map((disk) => ({ name: disk.name, address })),
    diskOfTarget: settings.disks,
    adapters: networkAdapters,
    processorCount: processorCount ?? undefined,
    memoryMiB: memoryMiB ?? undefined,
    reconnectSeconds: kind === 'Test' ? 0 : RECONNECT_SECONDS,
    handover: JSON.stringify(handover),
  })
  return { xml, domainId: uuid ?? name }
}

/** Starts the domain. @throws {RUNNER_NOT_FOUND} without virsh; {RUNNER_FAILED} with what it said */
export async function startDomain(
  uri: string,
  xml: string,
  folder: string,
  { limitMs, clock }: { readonly limitMs: number; readonly clock: Clock },
): Promise<void> {
  const path = join(folder, 'domain.xml')
  try {
    writeFileSync(path, xml, { mode: 0o600 })
  } catch (error) {
    throw fromSystemError(error, { operation: 'write', path, fullCode: 'REPLICA_DISK_FULL' })
  }
  const { exitCode, output } = await virsh(uri, ['create', path], limitMs, clock)
  if (exitCode !== 0) throw failed('create', exitCode, output)
}

/** Whether the domain is there, and is that of the run. */
export async function isDomainRunning(
  { uri, domainId, token }: StartedDomain,
  clock: Clock,
): Promise<boolean> {
  const state = await virsh(uri, ['domstate', domainId], CALL_LIMIT_MS, clock)
  if (state.exitCode !== 0 || ENDED.includes(state.standardOutput.trim())) return false
  const dumped = await virsh(uri, ['dumpxml', domainId], CALL_LIMIT_MS, clock)
  if (dumped.exitCode !== 0) return false
  const problem = domainProblem(dumped.standardOutput)
  // Neither ours nor somebody else's: nobody may take it for ended.
  if (problem !== undefined) throw failed('dumpxml', dumped.exitCode, `no XML of a domain: ${problem}`)
  return runOfDomain(dumped.standardOutput) === token
}

/** Asks the domain to shut itself down and switches it off when it does not. @throws {RUNNER_STOP_FAILED} */
export async function stopDomain(
  domain: StartedDomain,
  { asks, limitMs, clock }: { readonly asks: boolean; readonly limitMs: number; readonly clock: Clock },
): Promise<void> {
  const { uri, domainId } = domain
  if (!(await isDomainRunning(domain, clock))) return
  if (asks) {
    await virsh(uri, ['shutdown', domainId], CALL_LIMIT_MS, clock)
    const deadlineMs = clock.nowMs() + limitMs
    while (clock.nowMs() < deadlineMs) {
      if (!(await isDomainRunning(domain, clock))) return
      await clock.sleep(LOOK_MS)
    }
  }
  const { output } = await virsh(uri, ['destroy', domainId], CALL_LIMIT_MS, clock)
  if (!(await isDomainRunning(domain, clock))) return
  throw new SecondsiteError('RUNNER_STOP_FAILED', {
    message: `the domain ${domainId} cannot be ended: ${output}`,
    details: { uri, domain: domainId, output },
  })
}

async function virsh(
  uri: string,
  words: readonly string[],
  limitMs: number,
  clock: Clock,
): Promise<CommandOutput> {
  const all = ['virsh', '--connect', uri, '--quiet', ...words]
  try {
    const environment = { LC_ALL: 'C' }
    return await runToEnd({ words: all, directory: '/', environment, limitMs, clock })
  } catch (error) {
    if (!isSecondsiteError(error, 'RUNNER_NOT_FOUND')) throw error
    const message = 'virsh was not found: install the clients of libvirt (Debian: libvirt-clients)'
    throw new SecondsiteError('RUNNER_NOT_FOUND', { message, details: error.details, cause: error })
  }
}

function failed(verb: string, exitCode: number | null, output: string): SecondsiteError {
  return new SecondsiteError('RUNNER_FAILED', {
    message: `virsh ${verb}: ${output === '' ? `exit code ${exitCode}` : output}`,
    details: { command: verb, exitCode, output },
  })
}
