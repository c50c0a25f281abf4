// What all benches share: contestants interleaved, medians with their spread, facts about the machine.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'

/** Runs contestants `rounds` times in turn; each returns what it wants to be measured by (default its seconds). */
export async function interleave(contestants, rounds) {
  const samples = new Map(contestants.map(({ name }) => [name, []]))
  for (let round = 0; round < rounds; round += 1) {
    for (const { name, prepare, run } of contestants) {
      await prepare?.()
      const startedMs = performance.now()
      const answer = await run()
      samples.get(name).push(typeof answer === 'number' ? answer : (performance.now() - startedMs) / 1000)
    }
  }
  return [...samples].map(([name, values]) => ({ name, ...summary(values) }))
}

export function summary(values) {
  const sorted = [...values].sort((a, b) => a - b)
  return {
    median: sorted[Math.floor(sorted.length / 2)],
    min: sorted[0],
    max: sorted.at(-1),
    count: sorted.length,
  }
}

/** Ratio of every contestant to the one named. */
export function ratios(results, base) {
  const { median } = results.find(({ name }) => name === base)
  return results.map((result) => ({ ...result, ratio: result.median / median }))
}

/** Ticks that this machine wanted, in all and of them those that its host gave to others. */
function ticks() {
  const [user, nice, system, , , irq, softirq, steal] = readFileSync('/proc/stat', 'utf8')
    .split(/\s+/)
    .slice(1)
    .map(Number)
  return { wanted: user + nice + system + irq + softirq + steal, steal }
}

const atStart = ticks()

export function machine() {
  const [cpu] = cpus()
  const memoryGib = Math.round(totalmem() / 2 ** 30)
  const { wanted, steal } = ticks()
  const stealPercent = Math.round((100 * (steal - atStart.steal)) / Math.max(1, wanted - atStart.wanted))
  return {
    cores: cpus().length,
    cpu: cpu.model,
    memoryGib,
    kernel: release(),
    node: process.version,
    stealPercent,
  }
}

export function must(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 26, ...options })
  if (result.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${result.stderr || result.error}`)
  return result.stdout
}

export const isInstalled = (tool) => spawnSync('which', [tool], { stdio: 'ignore' }).status === 0
