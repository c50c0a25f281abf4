/**
 * Failover settings as a file of YAML or JSON.
 *
 * The domain of a libvirt runner may stand in a file of its own beside it, as `virsh dumpxml` writes it: `domainXmlFile` in
 * place of `domainXml`. It is read here, so that what travels to the replica is whole.
 */

import { readFileSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { parseDocument } from 'yaml'
import { z } from 'zod'
import { fromSystemError } from '../errors.js'
import { FAILOVER_SETTINGS_BYTES_MAX } from '../transport/messages.js'
import {
  type FailoverSettings,
  failoverSettingsSchema,
  invalidSettings,
  parseFailoverSettings,
} from './failover-settings.js'

/** Aliases that a file may expand to; more is an attack on memory. */
const ALIAS_COUNT_MAX = 100

/**
 * Reads and checks a file of failover settings.
 * @throws {FAILOVER_SETTINGS_INVALID} with every setting that is wrong and what is allowed, or line and column of what is no YAML
 * @throws {PATH_NOT_FOUND, ACCESS_DENIED, IO_FAILED} when it, or a file that it names, cannot be read
 */
export function readFailoverSettings(path: string): FailoverSettings {
  return parseFailoverSettings(withDomain(path, dataOf(path, readText(path))), path)
}

/** The JSON Schema of the settings, for editors; `docs/failover-settings.schema.json` holds it. */
export function failoverSettingsJsonSchema(): object {
  return z.toJSONSchema(failoverSettingsSchema, { io: 'input', unrepresentable: 'any' })
}

function readText(path: string): string {
  try {
    const { size } = statSync(path)
    if (size <= FAILOVER_SETTINGS_BYTES_MAX) return readFileSync(path, 'utf8')
    throw invalidSettings(path, [
      { path: '', value: size, range: `a file of at most ${FAILOVER_SETTINGS_BYTES_MAX} bytes` },
    ])
  } catch (error) {
    throw fromSystemError(error, { operation: 'read', path })
  }
}

function dataOf(path: string, text: string): unknown {
  const document = parseDocument(text, { version: '1.2' })
  const [fault] = [...document.errors, ...document.warnings]
  if (fault) {
    const [at] = fault.linePos ?? []
    const place = at ? `YAML; line ${at.line}, column ${at.col}: ` : 'YAML: '
    const [said = ''] = fault.message.split('\n')
    throw invalidSettings(path, [{ path: '', value: null, range: `${place}${said}` }])
  }
  try {
    return document.toJS({ maxAliasCount: ALIAS_COUNT_MAX })
  } catch (error) {
    const range = error instanceof Error ? error.message : String(error)
    throw invalidSettings(path, [{ path: '', value: null, range }])
  }
}

function withDomain(path: string, data: unknown): unknown {
  const { runner } = (data ?? {}) as { readonly runner?: { readonly domainXmlFile?: unknown } }
  if (typeof runner?.domainXmlFile !== 'string') return data
  const { domainXmlFile, ...rest } = runner
  const domainXml = readText(resolve(dirname(path), domainXmlFile as string))
  return { ...(data as object), runner: { ...rest, domainXml } }
}
