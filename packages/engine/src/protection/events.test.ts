import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { EVENTS } from './events.js'

describe('events', () => {
  it('have numbers that are not used twice, and stand in docs/events.md by number, level and text', () => {
    const ids = Object.values(EVENTS).map(([id]) => id)
    expect(new Set(ids).size).toBe(ids.length)
    const document = readFileSync(new URL('../../../../docs/events.md', import.meta.url), 'utf8')
    const rows = [...document.matchAll(/^\| (\d+) \| (\w+) \| ([^|]+) \|/gm)].map(([, id, level, text]) => [
      Number(id),
      level,
      text,
    ])
    expect(rows).toEqual(Object.values(EVENTS).map((row) => [...row]))
  })
})
