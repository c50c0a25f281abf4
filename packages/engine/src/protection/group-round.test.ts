import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../random.js'
import { type CoordinatorMessage, GroupRound, type MemberMessage } from './group-round.js'

function round(...members: string[]): GroupRound {
  return new GroupRound('p1', members)
}

const prepared = (member: string): MemberMessage => ({ type: 'prepared', member })
const ready = (member: string): MemberMessage => ({ type: 'ready', member })
const refused = (member: string): MemberMessage => ({ type: 'refused', member, code: 'INVALID_STATE' })

function answers(one: GroupRound, ...messages: MemberMessage[]): (CoordinatorMessage | null)[] {
  return messages.map((message) => one.take(message))
}

describe('a round of a group', () => {
  it('is cut when all have prepared and all are ready, in that order', () => {
    const commit = { type: 'commit', members: ['a', 'b'] }
    const cut = { type: 'cut', members: ['a', 'b'], groupPointId: 'p1' }
    const told = answers(round('a', 'b'), prepared('b'), prepared('a'), ready('a'), ready('b'))
    expect(told).toEqual([null, commit, null, cut])
  })

  it('goes on without a member that refuses, and is then no point of the group', () => {
    const one = round('a', 'b', 'c')
    const told = answers(one, prepared('a'), refused('b'), prepared('c'), ready('a'), ready('c'))
    expect(told[2]).toEqual({ type: 'commit', members: ['a', 'c'] })
    expect(told[4]).toEqual({ type: 'cut', members: ['a', 'c'], groupPointId: null })
    expect([...one.refusals]).toEqual([['b', 'INVALID_STATE']])
  })

  it('does not wait for one that dies between its two answers', () => {
    const told = answers(round('a', 'b'), prepared('a'), prepared('b'), ready('a'), refused('b'))
    expect(told.at(-1)).toEqual({ type: 'cut', members: ['a'], groupPointId: null })
  })

  it('names those that have not come when the time is up', () => {
    const one = round('a', 'b')
    one.take(prepared('a'))
    expect(one.expire()).toEqual({ type: 'commit', members: ['a'] })
    expect([...one.refusals]).toEqual([['b', 'GROUP_MEMBER_LATE']])
    expect(answers(one, prepared('b'), ready('b'))).toEqual([null, null])
    expect(one.expire()).toBeNull()
  })

  it('of members that all refuse is over without a cut', () => {
    const one = round('a', 'b')
    expect(answers(one, refused('a'), refused('b'), prepared('a'), ready('a'))).toEqual([
      null,
      null,
      null,
      null,
    ])
    expect(one.isOver).toBe(true)
  })

  it.each(Array.from({ length: 300 }, (_, seed) => seed))(
    'whatever comes in whatever order, is cut at most once, of nobody who was not ready (seed %s)',
    (seed) => {
      const random = new SeededRandom(seed)
      const members = ['a', 'b', 'c', 'd'].slice(0, 1 + random.below(4))
      const one = round(...members)
      const isReady = new Set<string>()
      let cut: CoordinatorMessage | undefined
      for (let count = 0; count < 60; count += 1) {
        const member = ['a', 'b', 'c', 'd', 'x'][random.below(5)] ?? ''
        const kind = random.below(12)
        const message = kind === 0 ? refused(member) : kind < 6 ? prepared(member) : ready(member)
        const answer = kind === 11 && count > 20 ? one.expire() : one.take(message)
        if (message.type === 'ready') isReady.add(member)
        if (answer?.type !== 'cut') continue
        expect(cut).toBeUndefined()
        cut = answer
        expect(answer.members.every((each) => isReady.has(each) && members.includes(each))).toBe(true)
        expect(answer.groupPointId !== null).toBe(answer.members.length === members.length)
      }
    },
  )
})
