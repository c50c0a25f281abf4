/** Recovery plans: what they are, the file they stand in, and the steps they lead to. */

export type {
  Plan,
  PlanAction,
  PlanGroup,
  PlanGroupType,
  PlanHttpCall,
  PlanInput,
  PlanMachine,
  PlanRunKind,
  PointChoice,
} from './plan.js'
export {
  type LoadedPlan,
  type ParsePlanOptions,
  type PlanProblem,
  parsePlan,
  planJsonSchema,
  readPlan,
} from './plan-file.js'
export {
  type ActionStep,
  type MachineStep,
  type MachineVerb,
  type ManualStep,
  type PlanStage,
  type PlanStep,
  planStages,
} from './steps.js'
export type {
  FailoverFacts,
  FailoverForecast,
  PlanPoint,
  PlanTarget,
  PlanTargets,
  TargetProgress,
  VerbContext,
} from './targets.js'
