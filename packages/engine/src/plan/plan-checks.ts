/**
 * What only makes sense together in a plan: names that must exist, forms of which one must be chosen, the order of groups.
 *
 * The checks take what the file holds before the schema has approved of it, so that their problems stand beside those of
 * the schema; what has the wrong shape is passed over here, as the schema tells about it.
 */

import type { Plan } from './plan.js'

/** A problem or a warning, before its line is known. */
export interface Finding {
  readonly path: readonly PropertyKey[]
  readonly text: string
  /** The key itself is meant, not its value. */
  readonly atKey?: boolean
}

/** Azure Site Recovery stops here; this program only says so. */
export const PLAN_ITEMS_ADVISED_MAX = 100
/** Azure Site Recovery stops here; this program only says so. */
export const PLAN_GROUPS_ADVISED_MAX = 7

type Raw = Readonly<Record<string, unknown>>

function isRecord(value: unknown): value is Raw {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function record(value: unknown): Raw {
  return isRecord(value) ? value : {}
}

function list(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

function has(map: Raw, key: string): boolean {
  return Object.hasOwn(map, key) && map[key] !== undefined
}

/** All problems of what `data`, the content of a plan file, holds. */
export function crossProblems(data: unknown): Finding[] {
  const plan = record(data)
  const machines = record(plan['machines'])
  const groups = list(plan['groups'])
  return [
    ...pointProblems(['point'], plan['point']),
    ...lostKeys(machines, ['machines']),
    ...Object.entries(machines).flatMap(([name, machine]) => machineProblems(name, machine)),
    ...groups.flatMap((group, index) => (isRecord(group) ? groupProblems(group, index, machines) : [])),
    ...orderProblems(groups.map(record)),
  ]
}

/** The schema passes over this key of a map without a word, and what was written there would be lost. */
function lostKeys(map: unknown, path: readonly PropertyKey[]): Finding[] {
  if (!isRecord(map) || !Object.hasOwn(map, '__proto__')) return []
  return [{ path: [...path, '__proto__'], atKey: true, text: 'is no name that can be used here' }]
}

/** Journals would take its steps for those of an action. */
const ACTION_ID = /^(before|after)\.\d+$/
const ACTION_ID_TEXT = 'is no name that can be used here: actions are called so in journals'

function machineProblems(name: string, machine: unknown): Finding[] {
  const named = ACTION_ID.test(name) ? [{ path: ['machines', name], atKey: true, text: ACTION_ID_TEXT }] : []
  if (!isRecord(machine)) return named
  const points = pointProblems(['machines', name, 'point'], machine['point'])
  return [...named, ...points, ...reverseProblems(name, machine)]
}

/** Only the engine of the side that is left knows that nothing of it is missing. */
function reverseProblems(name: string, machine: Raw): Finding[] {
  if (!has(machine, 'reverse') || has(machine, 'state')) return []
  const text = 'needs "state" beside it, the state directory of the engine of the primary'
  return [{ path: ['machines', name, 'reverse'], atKey: true, text }]
}

function pointProblems(path: readonly string[], point: unknown): Finding[] {
  return isRecord(point) ? exactlyOne(point, path, ['time', 'sequence']) : []
}

function exactlyOne(map: Raw, path: readonly PropertyKey[], keys: readonly string[]): Finding[] {
  const given = keys.filter((key) => has(map, key))
  if (given.length === 1) return []
  const text = `must have one of ${keys.join(', ')}, has ${given.length === 0 ? 'none' : given.join(' and ')}`
  return [{ path, text }]
}

function groupProblems(group: Raw, index: number, machines: Raw): Finding[] {
  const path = ['groups', index]
  return [
    ...memberProblems(group, path, machines),
    ...(['before', 'after'] as const).flatMap((phase) =>
      list(group[phase]).flatMap((action, at) => actionProblems(action, [...path, phase, at])),
    ),
    ...emptyGroup(group, path),
  ]
}

function memberProblems(group: Raw, path: readonly PropertyKey[], machines: Raw): Finding[] {
  const members = list(group['machines'])
  return members.flatMap((member, at) => {
    if (typeof member !== 'string') return []
    const here = [...path, 'machines', at]
    if (members.indexOf(member) < at) return [{ path: here, text: `"${member}" stands in this group twice` }]
    if (Object.hasOwn(machines, member)) return []
    const known = Object.keys(machines).slice(0, 20).join(', ')
    return [{ path: here, text: `is "${member}", must be a name under machines${known && `: ${known}`}` }]
  })
}

function emptyGroup(group: Raw, path: readonly PropertyKey[]): Finding[] {
  const isEmpty = ['machines', 'before', 'after'].every((key) => list(group[key]).length === 0)
  const isList = ['machines', 'before', 'after'].every((key) => !has(group, key) || Array.isArray(group[key]))
  return isEmpty && isList ? [{ path, text: 'has neither machines nor actions' }] : []
}

const COMMAND_ONLY = ['environment', 'directory'] as const

function actionProblems(action: unknown, path: readonly PropertyKey[]): Finding[] {
  if (!isRecord(action)) return []
  const stray = COMMAND_ONLY.filter((key) => has(action, key) && !has(action, 'command'))
  const findings: Finding[] = stray.map((key) => ({
    path: [...path, key],
    atKey: true,
    text: 'belongs to a command',
  }))
  if (has(action, 'manual')) {
    for (const key of ['timeoutSeconds', 'idempotent', 'mayFail'].filter((one) => has(action, one)))
      findings.push({ path: [...path, key], atKey: true, text: 'means nothing for a manual step' })
  }
  return [
    ...exactlyOne(action, path, ['command', 'http', 'manual']),
    ...findings,
    ...bodyProblems(action, path),
    ...lostKeys(action['environment'], [...path, 'environment']),
    ...lostKeys(record(action['http'])['headers'], [...path, 'http', 'headers']),
  ]
}

function bodyProblems(action: Raw, path: readonly PropertyKey[]): Finding[] {
  const http = record(action['http'])
  const isBodiless = http['method'] === 'GET' || http['method'] === 'HEAD'
  if (!isBodiless || !has(http, 'body')) return []
  return [{ path: [...path, 'http', 'body'], atKey: true, text: `a ${String(http['method'])} has no body` }]
}

/** A machine is shut down, failed over and booted once each, in this order. */
function orderProblems(groups: readonly Raw[]): Finding[] {
  const ranks = ['Shutdown', 'Failover', 'Boot']
  const reached = new Map<string, { rank: number; group: number }>()
  const findings: Finding[] = []
  for (const [index, group] of groups.entries()) {
    const rank = ranks.indexOf(String(group['type'] ?? 'Failover'))
    if (rank < 0) continue
    for (const [at, member] of list(group['machines']).entries()) {
      if (typeof member !== 'string') continue
      const before = reached.get(member)
      if (before === undefined || before.rank < rank) reached.set(member, { rank, group: index })
      else if (before.group !== index) {
        const text = `"${member}" has had ${ranks[before.rank]} in group ${before.group + 1}; a machine has Shutdown, Failover and Boot once each, in this order`
        findings.push({ path: ['groups', index, 'machines', at], text })
      }
    }
  }
  return findings
}

/** What a run does not stop at, but somebody may not have meant. */
export function planWarnings(plan: Plan): Finding[] {
  return [...limitWarnings(plan), ...membershipWarnings(plan)]
}

function limitWarnings({ machines, groups }: Plan): Finding[] {
  const findings: Finding[] = []
  const itemCount = Object.keys(machines).length
  if (itemCount > PLAN_ITEMS_ADVISED_MAX) {
    const text = `${itemCount} machines; Azure Site Recovery allows ${PLAN_ITEMS_ADVISED_MAX} in a plan, think of several plans`
    findings.push({ path: ['machines'], atKey: true, text })
  }
  if (groups.length > PLAN_GROUPS_ADVISED_MAX) {
    const text = `${groups.length} groups; Azure Site Recovery allows ${PLAN_GROUPS_ADVISED_MAX}, and each waits for the one before`
    findings.push({ path: ['groups'], atKey: true, text })
  }
  return findings
}

function membershipWarnings({ machines, groups }: Plan): Finding[] {
  const inType = (type: string): Set<string> =>
    new Set(groups.filter((group) => group.type === type).flatMap((group) => group.machines))
  const [failedOver, booted] = [inType('Failover'), inType('Boot')]
  return Object.keys(machines).flatMap((name) => {
    const path = ['machines', name]
    if (!failedOver.has(name)) return [{ path, atKey: true, text: `"${name}" is failed over in no group` }]
    return booted.has(name) ? [] : [{ path, atKey: true, text: `"${name}" is started in no Boot group` }]
  })
}
