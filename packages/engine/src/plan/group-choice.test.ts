/** Which cut machines of consistency groups get: one for all of a group, or none. */

import { describe, expect, it } from 'vitest'
import { groupOfPoint, groupPointIdOf } from '../group-point-id.js'
import { type ChoosingMachine, chooseGroupCuts } from './group-choice.js'

const REST = 'application-consistent'

/** `shop:3` is the third cut of the group shop, and the point of that number everywhere; `shop:3*` at rest. */
function cutOf(text: string): ChoosingMachine['cuts'][number] {
  const [groupId = '', number = ''] = text.split(':')
  const sequence = Number.parseInt(number, 10)
  const kind = number.endsWith('*') ? REST : 'crash-consistent'
  return { groupId, groupPointId: `${groupId}:${sequence}`, sequence, kind }
}

function processed(machine: string, ...cuts: string[]): ChoosingMachine {
  return { machine, choice: 'LatestMultiVmProcessed', cuts: cuts.map(cutOf) }
}

function atRest(machine: string, ...cuts: string[]): ChoosingMachine {
  return { ...processed(machine, ...cuts), choice: 'LatestMultiVmApplicationConsistent' }
}

/** What each got: a number, a choice of its own, or a code. */
function got(...[machines, known]: Parameters<typeof chooseGroupCuts>): Record<string, unknown> {
  const { chosen, refused } = chooseGroupCuts(machines, known)
  const points = chosen.map(({ machine, choice }) => {
    return [machine, typeof choice === 'string' ? choice : choice.sequence] as const
  })
  return Object.fromEntries([
    ...points,
    ...[...refused].map(([machine, { code }]) => [machine, code] as const),
  ])
}

describe('machines that choose a cut together', () => {
  it('get the newest that all of them show, though some show newer ones', () => {
    const machines = [
      processed('a', 's:1', 's:2', 's:3'),
      processed('b', 's:2', 's:3', 's:4'),
      processed('c', 's:1', 's:2'),
    ]
    expect(got(machines)).toEqual({ a: 2, b: 2, c: 2 })
  })

  it('are of one group each, and those of no group take their own newest point', () => {
    const machines = [
      processed('a', 's:1', 's:2'),
      processed('x', 't:7'),
      processed('b', 's:1'),
      processed('y', 't:7', 't:8'),
    ]
    expect(got([...machines, processed('single'), atRest('other')])).toEqual({
      a: 1,
      b: 1,
      x: 7,
      y: 7,
      single: 'LatestProcessed',
      other: 'LatestApplicationConsistent',
    })
  })

  it('get none where they share none, however much each has, and others are not held up', () => {
    const machines = [processed('a', 's:1', 's:2'), processed('b', 's:3', 's:4'), processed('x', 't:7')]
    expect(got(machines)).toEqual({ a: 'GROUP_POINT_NOT_FOUND', b: 'GROUP_POINT_NOT_FOUND', x: 7 })
  })

  it('were at rest all of them, where that is asked for, and choose apart from those who ask for less', () => {
    const machines = [
      atRest('a', 's:1*', 's:2*', 's:3'),
      atRest('b', 's:1*', 's:2', 's:3*'),
      processed('c', 's:1', 's:3'),
    ]
    expect(got(machines)).toEqual({ a: 1, b: 1, c: 3 })
    expect(got([atRest('a', 's:1*'), atRest('b', 's:1')])).toEqual({
      a: 'GROUP_POINT_NOT_FOUND',
      b: 'GROUP_POINT_NOT_FOUND',
    })
  })

  it('that come late get the cut that the others have, or none', () => {
    const known = chooseGroupCuts([processed('a', 's:1', 's:2')]).chosen
    expect(got([processed('b', 's:1', 's:2', 's:3')], known)).toEqual({ b: 2 })
    expect(got([processed('b', 's:3')], known)).toEqual({ b: 'GROUP_POINT_NOT_FOUND' })
    expect(got([atRest('b', 's:3*')], known)).toEqual({ b: 3 })
  })

  it('are told by the ids of their cuts, of which a group shares the first half', () => {
    const [group, uuid] = ['01234567-89ab-4cde-8f01-23456789abcd', 'fedcba98-7654-4321-9fed-cba987654321']
    expect(groupPointIdOf(group, uuid)).toBe('01234567-89ab-4cde-9fed-cba987654321')
    expect(groupOfPoint(groupPointIdOf(group, uuid))).toBe(groupOfPoint(group))
    expect(groupOfPoint(uuid)).not.toBe(groupOfPoint(group))
  })
})
