/**
 * What a recovery plan is made of, with the range and default of every setting.
 *
 * A plan is data: machines, and groups of them that are carried out in order, with actions before and after each group.
 * It names no kind of failover; the same plan is run as Planned, Unplanned, Test or Failback. This file checks each
 * setting by itself; what only makes sense together (a group that names a machine that is not there) is in plan-checks.
 */

import { z } from 'zod'

/** What a plan can be run as: the kinds of failover of the model, and the way home. */
export const PLAN_RUN_KINDS = ['Planned', 'Unplanned', 'Test', 'Failback'] as const
/** One of {@link PLAN_RUN_KINDS}. */
export type PlanRunKind = (typeof PLAN_RUN_KINDS)[number]

/** What a group does with its machines. */
export const PLAN_GROUP_TYPES = ['Shutdown', 'Failover', 'Boot'] as const
/** One of {@link PLAN_GROUP_TYPES}. */
export type PlanGroupType = (typeof PLAN_GROUP_TYPES)[number]

/** Choices of a point that need no value. */
export const NAMED_POINT_CHOICES = [
  'Latest',
  'LatestProcessed',
  'LatestApplicationConsistent',
  'LatestMultiVmProcessed',
  'LatestMultiVmApplicationConsistent',
] as const

/** What becomes of the test copies when every group of a Test run has had its turn. */
export const TEST_CLEANUPS = ['Wait', 'Immediately', 'Keep'] as const

const TIMEOUT_SECONDS_MAX = 86_400
const NAME_LENGTH_MAX = 64
const TEXT_LENGTH_MAX = 4000

const nameText = 'a name of 1 to 64 letters, digits, ".", "_" or "-", starting with a letter or digit'
const name = z.string(nameText).regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, nameText)

const labelText = `a text of 1 to ${NAME_LENGTH_MAX} characters on one line`
const label = z.string(labelText).regex(/^[^\p{Cc}]{1,64}$/u, labelText)

const proseText = `a text of 1 to ${TEXT_LENGTH_MAX} characters`
const prose = z.string(proseText).min(1, proseText).max(TEXT_LENGTH_MAX, proseText)

const pathText = 'a path without a zero byte'
const path = z.string(pathText).regex(/^[^\0]+$/, pathText)

function whole(min: number, max: number, unit: string) {
  const message = `a whole number of ${unit} from ${min} to ${max}`
  return z.number(message).int(message).min(min, message).max(max, message)
}

function words<const Words extends readonly [string, ...string[]]>(list: Words) {
  return z.enum(list, `one of ${list.join(', ')}`)
}

function listOf<Item extends z.ZodType>(item: Item, text: string, min = 1) {
  return z.array(item, text).min(min, text)
}

const mapText = 'a map of settings'

const timeText = 'a time with its zone, such as 2026-11-21T10:00:00Z'
const TIME = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)$/
const time = z.string(timeText).refine((text) => TIME.test(text) && !Number.isNaN(Date.parse(text)), timeText)

const pointText = `one of ${NAMED_POINT_CHOICES.join(', ')}, or a map with time or sequence`

const customPointSchema = z.strictObject(
  {
    /** The newest point that is not younger than this. */
    time: time.optional(),
    /** The point of this sequence number. */
    sequence: whole(0, Number.MAX_SAFE_INTEGER, 'cuts').optional(),
  },
  pointText,
)

/** Which point is meant. */
export const pointSchema = z.union([z.enum(NAMED_POINT_CHOICES), customPointSchema], pointText)

const argumentText = 'a list of texts: the program, then its arguments (no shell reads them)'
const argument = z.string(argumentText).regex(/^[^\0]*$/, argumentText)

const reverseSchema = z.strictObject(
  {
    /** State directory of the engine that protects the machine where it was failed over to; made when it is not there. */
    state: path,
    /** Folder for the store of the way home, at the side that was left; made when it is not there. */
    home: path,
  },
  'a map with state and home',
)

const nbdText = 'unix:PATH or tcp:HOST:PORT'

const machineSchema = z.strictObject(
  {
    /** Folder of the machine's replica; relative paths start at the plan's own folder. */
    replica: path,
    /** State directory of the engine of its primary, where that can be reached; Planned and Failback prepare the primary there. */
    state: path.optional(),
    /** Which point to fail over to; default the plan's. Planned and Failback always take the newest. */
    point: pointSchema.optional(),
    /** Stops the machine where it runs: program and arguments, for Shutdown groups. */
    stop: listOf(argument, argumentText).optional(),
    /** Starts the machine on its disks here: program and arguments, for Boot groups. */
    start: listOf(argument, argumentText).optional(),
    /** Seconds that `stop` and `start` may take each; default 300. */
    timeoutSeconds: whole(1, TIMEOUT_SECONDS_MAX, 'seconds').default(300),
    /** Where a Test run exports the disks of the test copy over NBD: `unix:PATH` or `tcp:HOST:PORT`. */
    testNbd: z
      .string(nbdText)
      .regex(/^(unix:[^\0]+|tcp:.+:\d{1,5})$/, nbdText)
      .optional(),
    /** A Test run starts the test copy by the runner of its failover settings, in place of `start`; default false. */
    testRun: z.boolean('true or false').optional(),
    /**
     * Turns replication round behind the failover of a Planned run, so that the machine is protected there; needs `state`. A
     * Failback then leads from there back to `replica`, with the sides swapped, and turns it round once more.
     */
    reverse: reverseSchema.optional(),
    /** Takes the replica in an Unplanned run although its primary still replicates; default false. */
    fencePrimary: z.boolean('true or false').default(false),
  },
  mapText,
)

const headerValueSchema = z.union(
  [
    z.string().regex(/^[\t\x20-\x7e\x80-\xff]*$/),
    z.strictObject({ environment: z.string().regex(/^[A-Za-z_]\w*$/) }),
  ],
  'a text on one line, or {environment: NAME} for the value of an environment variable',
)

const urlText = 'an http or https address, without user and password in it'
const url = z.string(urlText).refine(isHttpUrl, urlText)

function isHttpUrl(text: string): boolean {
  if (!URL.canParse(text)) return false
  const { protocol, username, password } = new URL(text)
  return ['http:', 'https:'].includes(protocol) && username === '' && password === ''
}

const statusText = 'one or more statuses from 100 to 599'
const status = z.number(statusText).int(statusText).min(100, statusText).max(599, statusText)

const httpSchema = z.strictObject(
  {
    /** Default POST. */
    method: words(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']).default('POST'),
    url,
    /** A secret is named by its environment variable, so that neither plan nor journal holds it. */
    headers: z
      .record(
        z.string().regex(/^[!#$%&'*+.^_`|~\w-]+$/, 'a header name'),
        headerValueSchema,
        'a map of header names to values',
      )
      .default({}),
    /** A text is sent as it is, anything else as JSON; default the facts of the run as JSON, where the method has a body. */
    body: z.json('a text, or what JSON can hold').optional(),
    /** Statuses that mean success; default 200 to 299. */
    expect: listOf(status, statusText).optional(),
  },
  mapText,
)

const environmentSchema = z.record(
  z.string().regex(/^[A-Za-z_]\w*$/, 'a name of letters, digits and "_"'),
  z.string('a text; put numbers and true or false in quotes').regex(/^[^\0]*$/, 'a text without a zero byte'),
  'a map of names to texts',
)

const actionSchema = z.strictObject(
  {
    /** For lists and reports; default what the action does. */
    name: label.optional(),
    /** Kinds of run that it belongs to; default all. */
    on: listOf(words(PLAN_RUN_KINDS), `a list of ${PLAN_RUN_KINDS.join(', ')}`).optional(),
    /** Program and arguments, started without a shell, with the facts of the run as JSON on its standard input. */
    command: listOf(argument, argumentText).optional(),
    /** Variables beside those of this process and the SECONDSITE_ ones. */
    environment: environmentSchema.optional(),
    /** Where the command runs; default the plan's folder. */
    directory: path.optional(),
    /** A call of an HTTP interface. */
    http: httpSchema.optional(),
    /** What somebody has to do before the plan goes on. */
    manual: prose.optional(),
    /** Seconds after which a command is killed with all it started, or a call given up; default 300. */
    timeoutSeconds: whole(1, TIMEOUT_SECONDS_MAX, 'seconds').optional(),
    /** Whether doing it twice does no harm; then it is simply repeated after a crash. Default false. */
    idempotent: z.boolean('true or false').default(false),
    /** Whether the plan goes on when it fails, which is then a warning. Default false. */
    mayFail: z.boolean('true or false').default(false),
  },
  mapText,
)

const actionsText = 'a list of actions'

const groupSchema = z.strictObject(
  {
    name: label.optional(),
    /** Default Failover. */
    type: words(PLAN_GROUP_TYPES).default('Failover'),
    /** Names of machines; they are worked on in parallel. A group may have actions alone. */
    machines: listOf(name, 'a list of names of machines', 0).default([]),
    /** Carried out one after the other before the machines. */
    before: listOf(actionSchema, actionsText, 0).default([]),
    /** Carried out one after the other when the last machine is done. */
    after: listOf(actionSchema, actionsText, 0).default([]),
  },
  mapText,
)

/** The schema of a plan file. */
export const planSchema = z.strictObject(
  {
    name,
    description: prose.optional(),
    /** Point of machines that name none; default Latest. */
    point: pointSchema.default('Latest'),
    /** How many machines of a group are worked on at once; default 10. */
    parallelMachines: whole(1, 1000, 'machines').default(10),
    /** After a Test run: wait for somebody, then remove the test copies; remove them at once; or keep them. Default Wait. */
    testCleanup: words(TEST_CLEANUPS).default('Wait'),
    machines: z.record(name, machineSchema, 'a map of names to machines'),
    /** In the order in which they are carried out. */
    groups: listOf(groupSchema, 'a list of at least one group'),
  },
  'a map with name, machines and groups',
)

/** A plan with every setting filled in. */
export type Plan = z.output<typeof planSchema>
/** A plan as it is written. */
export type PlanInput = z.input<typeof planSchema>
/** A group of a plan. */
export type PlanGroup = Plan['groups'][number]
/** An action before or after a group; exactly one of `command`, `http` and `manual` is there. */
export type PlanAction = PlanGroup['before'][number]
/** The call of an HTTP action. */
export type PlanHttpCall = NonNullable<PlanAction['http']>
/** Where a machine of a plan is found, and how it is started and stopped. */
export type PlanMachine = Plan['machines'][string]
/** Which recovery point to take. */
export type PointChoice = NonNullable<PlanMachine['point']>
