// Starts a run of a recovery plan that a test kills: plan-child.mjs RUNS PLAN KIND. Its machines do nothing.
import { readPlan, startPlan } from '@secondsite/engine'

const [, , directory = '', file = '', kind = ''] = process.argv
const facts = { point: null, lossSeconds: null, lossBytes: null, copyBytes: 0 }
const nothing = async () => undefined
const target = {
  describe: async () => ({ ...facts, estimatedMs: null }),
  shutdown: nothing,
  failover: async () => facts,
  failback: async () => facts,
  reverse: nothing,
  boot: nothing,
  cleanupTest: nothing,
}
const report = await startPlan(readPlan(file), kind, { directory, targets: { resolve: async () => target } })
process.stdout.write(`${report.state}\n`)
