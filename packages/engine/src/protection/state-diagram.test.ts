import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { lifecycleMermaid } from './state-diagram.js'

const readme = readFileSync(new URL('../../../../README.md', import.meta.url), 'utf8')

describe('the picture in the README', () => {
  it('is the lifecycle that the state table has (put what this test prints between the two marks)', () => {
    const shown = /<!-- lifecycle:begin[^>]*-->\n([\s\S]*?)\n<!-- lifecycle:end -->/.exec(readme)?.[1]
    expect(shown).toBe(`\`\`\`mermaid\n${lifecycleMermaid()}\n\`\`\``)
  })

  it('leads from every failed-over state back to replication', () => {
    const arrows = [...lifecycleMermaid().matchAll(/ {2}(\w+) --> (\w+):/g)].map(([, from, to]) => ({
      from,
      to,
    }))
    const home = new Set<string | undefined>(['Replicating'])
    for (let size = 0; size < home.size; ) {
      size = home.size
      for (const { from, to } of arrows) if (home.has(to)) home.add(from)
    }
    expect(arrows.length).toBeGreaterThan(6)
    expect(arrows.filter(({ from }) => !home.has(from))).toEqual([])
  })
})
