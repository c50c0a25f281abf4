#!/usr/bin/env node
import { runCommand } from './command.js'
import { stdoutOutput } from './output.js'

// A reader that has gone away (`secondsite … | head`) is no failure of ours; nobody is there to be told.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
}

process.exitCode = await runCommand(process.argv.slice(2), stdoutOutput())
