// Runs a recovery plan over real replicas and is killed at a step: plan-reverse-child.mjs RUNS PLAN KIND STEP.
import { ReplicaTargets, readPlan, startPlan } from '@secondsite/engine'

const [, , directory = '', file = '', kind = '', step = ''] = process.argv
const targets = new ReplicaTargets({
  step: (name) => {
    if (name === step) process.kill(process.pid, 'SIGKILL')
  },
})
await startPlan(readPlan(file), kind, { directory, targets })
