/**
 * The file that worker threads load, from the built package: a worker cannot run TypeScript.
 */

import { dispatcher } from './dispatch.js'
import { TASKS } from './tasks.js'

export default dispatcher(TASKS)
