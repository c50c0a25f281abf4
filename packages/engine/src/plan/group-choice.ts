/**
 * The points of machines that choose the newest cut of their consistency group: a pure function of the cuts that each of them
 * can show.
 *
 * Machines of the plan that make the same choice and are of one group get one cut, the newest that all of them can show.
 * Cuts of a group have an id in common, and so do the machines that share a cut. A machine that shows no cut of a group is in
 * none, and takes its own newest point of the same kind, as in Azure Site Recovery.
 */

import { SecondsiteError } from '../errors.js'
import type { PointChoice } from './plan.js'
import type { GroupCut } from './targets.js'

/** Choices that machines of a group make together. */
export const GROUP_CHOICES = ['LatestMultiVmProcessed', 'LatestMultiVmApplicationConsistent'] as const
/** One of {@link GROUP_CHOICES}. */
export type GroupChoice = (typeof GROUP_CHOICES)[number]

/** What a machine of no group takes. */
const OWN_CHOICE = {
  LatestMultiVmProcessed: 'LatestProcessed',
  LatestMultiVmApplicationConsistent: 'LatestApplicationConsistent',
} as const satisfies Record<GroupChoice, PointChoice>

/** Whether a choice is made together with others. */
export function isGroupChoice(choice: PointChoice): choice is GroupChoice {
  return GROUP_CHOICES.some((one) => one === choice)
}

/** A machine that chooses, and what it can show. */
export interface ChoosingMachine {
  readonly machine: string
  readonly choice: GroupChoice
  /** Oldest first. */
  readonly cuts: readonly GroupCut[]
}

/** What a machine got; written to the journal, so that it stays. */
export interface ChosenPoint {
  readonly machine: string
  /** What was to be chosen. */
  readonly wanted: GroupChoice
  /** What came of it: a cut by its sequence, or the machine's own newest point. */
  readonly choice: PointChoice
  /** `null` for a machine of no group. */
  readonly groupId: string | null
  readonly groupPointId: string | null
}

/** What became of the choices. */
export interface GroupChoices {
  readonly chosen: readonly ChosenPoint[]
  /** GROUP_POINT_NOT_FOUND, by machine. */
  readonly refused: ReadonlyMap<string, SecondsiteError>
}

/** @param known - what was chosen before: those who come late get the cut that the others of their group have */
export function chooseGroupCuts(
  machines: readonly ChoosingMachine[],
  known: readonly ChosenPoint[] = [],
): GroupChoices {
  const chosen = machines.filter(({ cuts }) => cuts.length === 0).map(ownPoint)
  const refused = new Map<string, SecondsiteError>()
  for (const wanted of GROUP_CHOICES) {
    const choosing = machines.filter(({ choice, cuts }) => choice === wanted && cuts.length > 0)
    const before = known.filter((one) => one.wanted === wanted)
    for (const members of groupsOf(choosing)) {
      const points = commonPoints(members, wanted, before)
      chosen.push(...points)
      if (points.length > 0) continue
      for (const { machine } of members) refused.set(machine, notFound(members, wanted))
    }
  }
  return { chosen, refused }
}

function ownPoint({ machine, choice }: ChoosingMachine): ChosenPoint {
  return { machine, wanted: choice, choice: OWN_CHOICE[choice], groupId: null, groupPointId: null }
}

/** Machines of one group each; one may have changed its group, and then links the two. */
function groupsOf(machines: readonly ChoosingMachine[]): ChoosingMachine[][] {
  const groups: { keys: Set<string>; members: ChoosingMachine[] }[] = []
  for (const machine of machines) {
    const keys = new Set(machine.cuts.flatMap(({ groupId, groupPointId }) => [groupId, groupPointId]))
    const linked = groups.filter((group) => [...keys].some((key) => group.keys.has(key)))
    for (const group of linked) {
      groups.splice(groups.indexOf(group), 1)
      for (const key of group.keys) keys.add(key)
    }
    groups.push({ keys, members: [...linked.flatMap(({ members }) => members), machine] })
  }
  return groups.map(({ members }) => members)
}

/** One cut for all of them; nothing where there is none. */
function commonPoints(
  members: readonly ChoosingMachine[],
  wanted: GroupChoice,
  before: readonly ChosenPoint[],
): ChosenPoint[] {
  const newest = sharedCuts(members).findLast(
    (cut) => fits(members, cut, wanted) && agrees(members, cut, before),
  )
  if (newest === undefined) return []
  return members.flatMap(({ machine, cuts }) => {
    const own = cuts.find(({ groupPointId }) => groupPointId === newest.groupPointId)
    if (own === undefined) return []
    const { groupId, groupPointId, sequence } = own
    return [{ machine, wanted, choice: { sequence }, groupId, groupPointId }]
  })
}

/** Cuts that all of them can show, oldest first. */
function sharedCuts([first, ...others]: readonly ChoosingMachine[]): GroupCut[] {
  const shown = others.map(({ cuts }) => new Set(cuts.map(({ groupPointId }) => groupPointId)))
  return (first?.cuts ?? []).filter(({ groupPointId }) => shown.every((ids) => ids.has(groupPointId)))
}

/** At rest is a cut where the applications of all of them were. */
function fits(members: readonly ChoosingMachine[], { groupPointId }: GroupCut, wanted: GroupChoice): boolean {
  if (wanted === 'LatestMultiVmProcessed') return true
  const same = members.flatMap(({ cuts }) => cuts.filter((cut) => cut.groupPointId === groupPointId))
  return same.every(({ kind }) => kind === 'application-consistent')
}

/** Members that were chosen for before stand at one cut, and nobody joins them at another. */
function agrees(members: readonly ChoosingMachine[], cut: GroupCut, before: readonly ChosenPoint[]): boolean {
  const groups = new Set(members.flatMap(({ cuts }) => cuts.map(({ groupId }) => groupId)))
  const own = before.filter(({ groupId }) => groupId !== null && groups.has(groupId))
  return own.every(({ groupPointId }) => groupPointId === cut.groupPointId)
}

function notFound(members: readonly ChoosingMachine[], wanted: GroupChoice): SecondsiteError {
  const machines = members.map(({ machine }) => machine)
  const shared = sharedCuts(members)
  return new SecondsiteError('GROUP_POINT_NOT_FOUND', {
    message: `${machines.join(', ')} share no cut that is ${wanted}; they share ${shared.length}`,
    details: { machines, choice: wanted, groupPoints: shared.map(({ groupPointId }) => groupPointId) },
  })
}
