/** Recovery plans: what they are, the file they stand in, the steps they lead to, and the runs of them. */

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
  type ForecastOptions,
  forecastPlan,
  type MachineForecast,
  type PlanForecast,
  type StepForecast,
} from './forecast.js'
export { reportHtml } from './report-html.js'
export { forecastText, reportText } from './report-text.js'
export type { PlanReport, ReportMachine, ReportSession, ReportStep } from './report.js'
export type { PlanRunSummary, UnreadableRun } from './run-folder.js'
export type { PlanRunState, StepAttempt, StepState } from './run-view.js'
export {
  type AbandonOptions,
  abandonPlan,
  type ContinueOptions,
  continuePlan,
  listPlanRuns,
  type PlanRunOptions,
  planReport,
  startPlan,
} from './runs.js'
export type { PlanRunEvent } from './session.js'
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
  GroupCut,
  PlanPoint,
  PlanTarget,
  PlanTargets,
  TargetProgress,
  TargetRequest,
  VerbContext,
} from './targets.js'
