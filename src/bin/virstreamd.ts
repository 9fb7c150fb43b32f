#!/usr/bin/env node
import { runDaemon } from '../cli/virstreamd.js'

process.exitCode = await runDaemon(process.argv.slice(2), process)
