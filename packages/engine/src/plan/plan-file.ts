/**
 * A recovery plan as a YAML file: text to plan, with every problem at its line.
 *
 * The file is checked in three steps: is it YAML (1.2, one document, no key twice, no tags of other programs), is every
 * setting in its range (plan.ts), do they make sense together (plan-checks.ts). The last two are taken together, so that
 * one reading tells all there is to mend. Where a problem lies comes from the nodes of the parsed document.
 */

import fs from 'node:fs'
import { dirname, resolve } from 'node:path'
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  parseDocument,
  visit,
} from 'yaml'
import { z } from 'zod'
import { fromSystemError, type JsonValue, SecondsiteError } from '../errors.js'
import { MIB } from '../units.js'
import { type Plan, planSchema } from './plan.js'
import { crossProblems, type Finding, planWarnings } from './plan-checks.js'

/** Largest plan file; it bounds groups, machines and actions as well. */
export const PLAN_SIZE_BYTES_MAX = 4 * MIB

/** Aliases that a file may expand to; more is an attack on memory. */
const ALIAS_COUNT_MAX = 1000

/** Something wrong, or worth a second look, at a place of a plan file. */
export interface PlanProblem {
  readonly [key: string]: JsonValue
  /** From 1. */
  readonly line: number
  /** From 1. */
  readonly column: number
  /** Keys and indexes from the top, joined by dots; empty for the file as a whole. */
  readonly path: string
  /** What is wrong and what is allowed. */
  readonly text: string
}

/** A plan that was read, and where it came from. */
export interface LoadedPlan {
  readonly plan: Plan
  /** Relative paths of the plan start here. */
  readonly directory: string
  /** Nothing that stops a run. */
  readonly warnings: readonly PlanProblem[]
}

/** Options of {@link parsePlan}. */
export interface ParsePlanOptions {
  /** For messages; default `plan`. */
  readonly path?: string
  /** Relative paths of the plan start here; default the working directory. */
  readonly directory?: string
}

/**
 * Reads and checks a plan file.
 * @throws {PLAN_INVALID} with all problems, each with line, column, path and what is allowed
 * @throws {PATH_NOT_FOUND, ACCESS_DENIED, IO_FAILED} when the file cannot be read
 */
export function readPlan(path: string): LoadedPlan {
  return parsePlan(readText(path), { path, directory: dirname(resolve(path)) })
}

function readText(path: string): string {
  let bytes: Buffer
  try {
    if (fs.statSync(path).size > PLAN_SIZE_BYTES_MAX)
      throw invalid(path, [whole('the file is larger than 4 MiB')])
    bytes = fs.readFileSync(path)
  } catch (error) {
    throw fromSystemError(error, { operation: 'read', path })
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    throw invalid(path, [whole('the file is not UTF-8 text')])
  }
}

function whole(text: string): PlanProblem {
  return { line: 1, column: 1, path: '', text }
}

/**
 * Checks a plan given as YAML text (JSON is YAML, too).
 * @throws {PLAN_INVALID} with all problems, each with line, column, path and what is allowed
 */
export function parsePlan(text: string, options: ParsePlanOptions = {}): LoadedPlan {
  const file = options.path ?? 'plan'
  if (text.length > PLAN_SIZE_BYTES_MAX) throw invalid(file, [whole('the plan is larger than 4 MiB')])
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, version: '1.2', prettyErrors: false })
  const place = (finding: Finding): PlanProblem => placed(document, lines, finding)
  const data = plainData(file, document, lines)
  const result = planSchema.safeParse(data)
  const schemaFindings = result.success ? [] : result.error.issues.flatMap((issue) => findingsOf(issue, data))
  const problems = [...schemaFindings, ...crossProblems(data)].map(place)
  if (!result.success || problems.length > 0) throw invalid(file, sorted(problems))
  const directory = resolve(options.directory ?? '.')
  return { plan: result.data, directory, warnings: sorted(planWarnings(result.data).map(place)) }
}

/**
 * The JSON Schema of a plan file, for editors; `docs/plan.schema.json` holds it.
 * What only makes sense together is not in it.
 */
export function planJsonSchema(): object {
  return z.toJSONSchema(planSchema, { io: 'input', unrepresentable: 'any' })
}

function plainData(file: string, document: Document, lines: LineCounter): unknown {
  const faults = [...document.errors, ...document.warnings, ...lostAliases(document)]
  const problems = faults.map(({ pos: [offset], message }) => {
    const { line, col } = lines.linePos(offset)
    return { line, column: col, path: '', text: message.replaceAll(/\s+/g, ' ') }
  })
  if (problems.length > 0) throw invalid(file, sorted(problems))
  try {
    return document.toJS({ maxAliasCount: ALIAS_COUNT_MAX })
  } catch (error) {
    throw invalid(file, [whole(error instanceof Error ? error.message : String(error))])
  }
}

/** The library finds these only when the data is taken out, and then without a place. */
function lostAliases(document: Document): { pos: readonly [number]; message: string }[] {
  const lost: { pos: readonly [number]; message: string }[] = []
  visit(document, {
    Alias: (_key, node) => {
      if (node.resolve(document) === undefined)
        lost.push({ pos: [node.range?.[0] ?? 0], message: `there is no anchor &${node.source} before this` })
    },
  })
  return lost
}

/** What an issue of the schema says, at the keys it speaks of. */
function findingsOf(issue: z.core.$ZodIssue, data: unknown): Finding[] {
  const { path } = issue
  if (issue.code === 'unrecognized_keys')
    return issue.keys.map((key) => ({ path: [...path, key], atKey: true, text: 'there is no such setting' }))
  if (issue.code === 'invalid_key') {
    const [inner] = issue.issues
    return [{ path, atKey: true, text: `must be ${inner?.message ?? issue.message}` }]
  }
  if (issue.code === 'invalid_union') return unionFindings(issue, data)
  const value = path.reduce<unknown>(
    (at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key],
    data,
  )
  const given = value === undefined ? 'is missing' : `is ${shown(value)}`
  return [{ path, text: `${given}, must be ${issue.message}` }]
}

/** Of the forms that a setting may have, the one that was meant is the one whose outer shape fits. */
function unionFindings(issue: z.core.$ZodIssueInvalidUnion, data: unknown): Finding[] {
  const meant = issue.errors.find((issues) => issues.every((inner) => isInside(inner)))
  const inner = meant?.map((one) => ({ ...one, path: [...issue.path, ...one.path] }))
  if (inner && inner.length > 0) return inner.flatMap((one) => findingsOf(one as z.core.$ZodIssue, data))
  return findingsOf({ ...issue, code: 'custom' } as unknown as z.core.$ZodIssue, data)
}

function isInside(issue: z.core.$ZodIssue): boolean {
  return issue.path.length > 0 || issue.code === 'unrecognized_keys'
}

const SHOWN_LENGTH_MAX = 60

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > SHOWN_LENGTH_MAX ? `${text.slice(0, SHOWN_LENGTH_MAX)}…` : text
}

function placed(document: Document, lines: LineCounter, finding: Finding): PlanProblem {
  const { line, col } = lines.linePos(offsetOf(document, finding))
  return { line, column: col, path: finding.path.map(String).join('.'), text: finding.text }
}

/** Where the value at a path starts, or its key; for what is missing, the nearest thing around it that has a place. */
function offsetOf(document: Document, { path, atKey }: Finding): number {
  let node = document.contents as Node | null
  let offset = node?.range?.[0] ?? 0
  for (const [depth, key] of path.entries()) {
    const next = childOf(document, node, key)
    if (next === undefined) break
    node = next.value
    const isKeyMeant = atKey === true && depth === path.length - 1
    offset = (isKeyMeant ? next.keyOffset : node?.range?.[0]) ?? next.keyOffset ?? offset
  }
  return offset
}

interface Child {
  readonly value: Node | null
  readonly keyOffset: number | undefined
}

function childOf(document: Document, parent: Node | null, key: PropertyKey): Child | undefined {
  const node = isAlias(parent) ? parent.resolve(document) : parent
  if (isSeq(node)) {
    const item = node.items[Number(key)] as Node | undefined
    return item && { value: item, keyOffset: undefined }
  }
  if (!isMap(node)) return undefined
  const pair = node.items.find((one) => isScalar(one.key) && String(one.key.value) === String(key))
  if (pair === undefined) return undefined
  return { value: pair.value as Node | null, keyOffset: (pair.key as Node).range?.[0] }
}

function sorted(problems: readonly PlanProblem[]): PlanProblem[] {
  return [...problems].sort((a, b) => a.line - b.line || a.column - b.column)
}

function invalid(path: string, problems: readonly PlanProblem[]): SecondsiteError {
  const lines = problems.map((problem) => problemText(path, problem))
  return new SecondsiteError('PLAN_INVALID', {
    message:
      lines.length === 1 ? (lines[0] ?? '') : `${lines.length} problems in a plan\n${lines.join('\n')}`,
    details: { path, problems },
  })
}

/** `plan.yaml:12:7 groups.0.type: is "Start", must be one of …` */
export function problemText(path: string, problem: PlanProblem): string {
  const at = problem.path === '' ? '' : ` ${problem.path}`
  return `${path}:${problem.line}:${problem.column}${at}: ${problem.text}`
}
