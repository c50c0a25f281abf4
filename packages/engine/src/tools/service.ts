/** What a service manager is told (sd_notify). */

import { native } from '../native/index.js'

/**
 * Sends `text`, for example `READY=1`, to the service manager; does nothing where there is none.
 *
 * @param socket - its socket; default what the environment variable NOTIFY_SOCKET names
 * @throws {IO_FAILED} when the socket takes nothing
 */
export function notifyService(text: string, socket = process.env['NOTIFY_SOCKET']): void {
  if (socket) native.notifyService(socket, text)
}
