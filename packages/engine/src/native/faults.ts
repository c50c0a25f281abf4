/**
 * Asks the fault rules before the engine does I/O of its own on a file.
 *
 * The core asks the same table for disks and logs; see `FaultyFileSystem` of the testing export, which fills it. Without
 * rules an answer costs one call of the addon.
 */

import { native } from './index.js'

/** What can fail by a rule. */
export type FileOperation = 'open' | 'read' | 'write' | 'sync' | 'truncate'

/** How it fails. */
export type FileFault = 'EIO' | 'ENOSPC'

/** Thrown in the shape of Node's own system errors, so that it takes the same way as a real one. */
export class FileFaultError extends Error {
  readonly code: FileFault
  /** Bytes that a real disk would have taken before it failed. */
  readonly permittedBytes: number

  constructor(code: FileFault, permittedBytes: number, text: string) {
    super(text)
    this.code = code
    this.permittedBytes = permittedBytes
  }
}

/** @throws {FileFaultError} when a rule lets this operation fail */
export function permit(path: string, operation: FileOperation, offset = 0, lengthBytes = 0): void {
  const fault = native.faultOf(path, operation, offset, lengthBytes)
  if (!fault) return
  const text = `${fault.error}: a rule fails ${operation} '${path}'`
  throw new FileFaultError(fault.error as FileFault, fault.permittedBytes, text)
}
