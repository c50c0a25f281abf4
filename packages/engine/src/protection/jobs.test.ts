import { describe, expect, it } from 'vitest'
import { Jobs } from './jobs.js'

/** A job that ends when it is told to, or by its signal. */
function heldJob(begun: string[], name: string): (signal: AbortSignal) => Promise<void> {
  return (signal) => {
    begun.push(name)
    return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)))
  }
}

async function codeOf(job: Promise<unknown>): Promise<unknown> {
  return job.then(
    () => 'done',
    (error: { code?: string }) => error.code,
  )
}

describe('jobs', () => {
  it('are stopped together with those that wait for their turn, which never begin', async () => {
    const jobs = new Jobs()
    const begun: string[] = []
    const all = ['first', 'second', 'third'].map((name) => codeOf(jobs.run(undefined, heldJob(begun, name))))
    await Promise.resolve()
    expect([jobs.isBusy, jobs.hasWaiting]).toEqual([true, true])
    await jobs.stop()
    expect(begun).toEqual(['first'])
    expect([jobs.isBusy, jobs.hasWaiting]).toEqual([false, false])
    expect(await Promise.all(all)).toEqual(['ABORTED', 'ABORTED', 'ABORTED'])
    expect(await jobs.run(undefined, () => Promise.resolve('later'))).toBe('later')
  })

  it('that were asked for before a close do not begin after it', async () => {
    const jobs = new Jobs()
    const begun: string[] = []
    const waiting = ['first', 'second'].map((name) => codeOf(jobs.run(undefined, heldJob(begun, name))))
    await jobs.close()
    expect(await Promise.all([...waiting, codeOf(jobs.run(undefined, heldJob(begun, 'late')))])).toEqual(
      Array.from({ length: 3 }, () => 'ABORTED'),
    )
    expect(begun).toEqual([])
  })

  it('run one after the other, also behind one that failed', async () => {
    const jobs = new Jobs()
    const order: string[] = []
    const failing = codeOf(
      jobs.run(undefined, () => {
        order.push('failing')
        throw new TypeError('no')
      }),
    )
    const next = jobs.run(undefined, () => Promise.resolve(order.push('next')))
    expect(await failing).toBeUndefined()
    await next
    expect(order).toEqual(['failing', 'next'])
  })
})
