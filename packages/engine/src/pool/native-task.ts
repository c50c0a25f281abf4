/**
 * Any function of the native core, carried out by a worker: its handles and registries are shared by all threads.
 */

import { native } from '../native/index.js'

/** A call of the core by name. */
export interface NativeCallArgs {
  readonly call: keyof typeof native
  readonly args: readonly unknown[]
}

/** Calls the core. @throws what the core throws, as a coded error */
export function callNative({ call, args }: NativeCallArgs): unknown {
  const target = native[call] as (...args: unknown[]) => unknown
  return target(...args)
}
