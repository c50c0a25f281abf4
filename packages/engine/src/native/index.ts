/** The native core as the engine sees it: the functions of the addon, throwing the engine's errors. */

import * as addon from '@secondsite/native'
import { bordered } from './border.js'

export * from './types.js'

/** The functions of the addon. Long ones belong into a worker. */
export const native = bordered({ ...addon })

/** The addon's functions, for those who name one to a worker. */
export type Native = typeof native
