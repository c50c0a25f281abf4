/**
 * Paths in the database of a replica store.
 *
 * What lies in the store's folder is kept relative to it, so that the folder may be mounted or copied to anywhere and still
 * has all it needs; what lies outside (disks of a former primary) is kept whole. Rows come out of the database with whole
 * paths, whatever query reads them.
 */

import { isAbsolute, join, relative, sep } from 'node:path'
import type {
  KyselyPlugin,
  PluginTransformQueryArgs,
  PluginTransformResultArgs,
  QueryResult,
  RootOperationNode,
  UnknownRow,
} from 'kysely'

/** Columns of any table that hold a path. */
const PATH_COLUMNS = ['imagePath', 'path', 'indexPath', 'directory'] as const

/** A row as it is written: its paths as the database holds them. */
export function withStoredPaths<Row extends object>(storeDirectory: string, row: Row): Row {
  return mapPaths(row, (path) => {
    const inside = relative(storeDirectory, path)
    return inside === '' || inside.split(sep)[0] === '..' ? path : inside
  })
}

/** Makes the paths of all rows whole that are read. */
export class StorePaths implements KyselyPlugin {
  readonly #directory: string

  constructor(storeDirectory: string) {
    this.#directory = storeDirectory
  }

  transformQuery({ node }: PluginTransformQueryArgs): RootOperationNode {
    return node
  }

  async transformResult({ result }: PluginTransformResultArgs): Promise<QueryResult<UnknownRow>> {
    const whole = (path: string): string => (isAbsolute(path) ? path : join(this.#directory, path))
    return { ...result, rows: result.rows.map((row) => mapPaths(row, whole)) }
  }
}

function mapPaths<Row extends object>(row: Row, change: (path: string) => string): Row {
  const paths = PATH_COLUMNS.flatMap((column) => {
    const path: unknown = Reflect.get(row, column)
    return typeof path === 'string' ? [[column, change(path)] as const] : []
  })
  return { ...row, ...Object.fromEntries(paths) }
}
