/** One-shot tools: work on images and logs that needs no engine, no state directory and no replica store. */

export { digestDisk } from './digest.js'
export {
  applyLogs,
  exportLog,
  type LogCheck,
  type LogEntry,
  type LogReport,
  readEntries,
  showLog,
  verifyLogs,
} from './logs.js'
export { notifyService } from './service.js'
export type { StartedOverReason } from './resume-file.js'
export { type SyncResult, syncDisks } from './sync.js'
export type { SyncOptions, SyncProgress } from './sync-options.js'
export { type VerifyDisksOptions, type VerifyDisksResult, verifyDisks } from './verify.js'
