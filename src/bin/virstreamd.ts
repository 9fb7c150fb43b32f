#!/usr/bin/env node
import { runDaemon } from '../cli/virstreamd.js'

const status = await runDaemon(process.argv.slice(2), process)
// all is closed by now: a link on which the other side does not answer any more keeps nobody waiting
process.stdout.write('', () => process.exit(status))
