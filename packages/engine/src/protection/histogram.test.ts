import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../random.js'
import { type Histogram, merge, percentile, record } from './histogram.js'

describe('a histogram', () => {
  it('gives percentiles that are never below the true one and at most a tenth above', () => {
    const seed = 7
    const random = new SeededRandom(seed)
    const samples = Array.from({ length: 2000 }, () => 1 + random.below(3_600_000))
    const histogram = samples.reduce<Histogram>(record, {})
    const sorted = [...samples].sort((a, b) => a - b)
    for (const percent of [1, 50, 90, 99, 100]) {
      const exact = sorted[Math.ceil((sorted.length * percent) / 100) - 1] ?? 0
      const found = percentile(histogram, percent) ?? 0
      expect(found, `${percent} %, seed ${seed}`).toBeGreaterThanOrEqual(exact - 1)
      expect(found, `${percent} %, seed ${seed}`).toBeLessThanOrEqual(exact * 1.1 + 1)
    }
  })

  it('has no percentile without samples, and counts nothing twice when merged', () => {
    expect(percentile({}, 50)).toBeNull()
    const [one, other] = [record({}, 10), record(record({}, 10), 5000)]
    expect(Object.values(merge([one, other])).reduce((sum, count) => sum + count, 0)).toBe(3)
    expect(percentile(merge([one, other]), 50)).toBeLessThan(12)
  })
})
