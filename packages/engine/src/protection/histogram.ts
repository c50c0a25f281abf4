/**
 * Durations counted by size, so that percentiles over a month need no list of samples.
 *
 * Buckets grow by a tenth: a percentile is at most 10 % above the true one. Pure; the form is plain JSON.
 */

const GROWTH = 1.1

/** How many durations fell into each bucket; bucket n holds what is above 1.1^(n-1) and not above 1.1^n milliseconds. */
export type Histogram = Readonly<Record<string, number>>

/** The histogram with one more duration. */
export function record(histogram: Histogram, durationMs: number): Histogram {
  const bucket = Math.max(0, Math.ceil(Math.log(Math.max(durationMs, 1)) / Math.log(GROWTH)))
  return { ...histogram, [bucket]: (histogram[bucket] ?? 0) + 1 }
}

/** All samples of several histograms. */
export function merge(histograms: readonly Histogram[]): Histogram {
  const sums: Record<string, number> = {}
  for (const histogram of histograms) {
    for (const [bucket, count] of Object.entries(histogram)) sums[bucket] = (sums[bucket] ?? 0) + count
  }
  return sums
}

/** The duration that `percent` of the samples do not exceed, in milliseconds; null without samples. */
export function percentile(histogram: Histogram, percent: number): number | null {
  const buckets = Object.entries(histogram)
    .map(([bucket, count]) => [Number(bucket), count] as const)
    .sort(([a], [b]) => a - b)
  const total = buckets.reduce((sum, [, count]) => sum + count, 0)
  let left = Math.max(1, Math.ceil((total * percent) / 100))
  for (const [bucket, count] of buckets) {
    left -= count
    if (left <= 0) return Math.round(GROWTH ** bucket)
  }
  return null
}
