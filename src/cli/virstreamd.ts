/** The command line of the daemon. */
import { closeSync, writeSync } from 'node:fs'
import { Command, CommanderError } from 'commander'
import { pino, type Logger } from 'pino'
import { messageOf, VirError } from '../error.js'
import { native } from '../native.js'
import { qemuDriver } from '../qemu/driver.js'
import { readDaemonSettings } from '../remote/config.js'
import { Daemon } from '../remote/daemon.js'
import type { Readiness } from '../remote/embedded.js'
import { untilIdle } from '../remote/until-idle.js'
import { embeddedRoot, socketOf } from '../remote/uri.js'
import { packageVersion } from '../util/package.js'
import { defaultUri } from './context.js'
import type { Io } from './context.js'
import { daemonHelp, daemonOptions } from './virstreamd-help.js'
import { parseCount, UsageError } from './values.js'

interface Given {
  root?: string
  listen?: string[]
  unix?: string[]
  pki?: string
  allowedDn?: string[]
  untilIdle?: true | string
  logLevel?: string
  readyFd?: string
}

/** seconds without anybody's need after which `--until-idle` ends */
const PATIENCE = 5
/** ms for whoever started it to come */
const FIRST_PATIENCE = 60_000

/** Runs the daemon until it is told to end, and answers the exit status. */
export async function runDaemon(argv: readonly string[], io: Io): Promise<number> {
  const program = new Command('virstreamd')
    .exitOverride()
    .configureOutput({ writeOut: (text) => io.stdout.write(text), writeErr: (text) => io.stderr.write(text) })
    .configureHelp({ formatHelp: () => daemonHelp() })
    .version(packageVersion, '-V, --version')
    .allowExcessArguments(false)
  for (const [flags, meaning] of daemonOptions) program.option(flags, meaning)
  try {
    program.parse([...argv], { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 1
    throw error
  }
  const given = program.opts<Given>()
  const ready = readyDescriptor(given.readyFd)
  try {
    await serve(given, io, ready)
    return 0
  } catch (error) {
    const { code, domain } = error instanceof VirError ? error : {}
    ready({ ready: false, message: messageOf(error), ...(code && domain && { code, domain }) })
    io.stderr.write(`error: ${messageOf(error)}${code === undefined ? '' : ` (${code})`}\n`)
    return 1
  }
}

async function serve(given: Given, io: Io, ready: (what: Readiness) => void): Promise<void> {
  const root = given.root ?? embeddedRoot(defaultUri(io.env)) ?? ''
  const { untilIdle: idle } = given
  const seconds = idle === true ? PATIENCE : idle && parseCount('--until-idle', idle, 1)
  const settings = await readDaemonSettings(root)
  const level = logLevel(given.logLevel) ?? settings.logLevel ?? 'info'
  const logger = pino({ level, base: { pid: process.pid } }, pino.destination({ fd: 2, sync: true }))
  const unix = given.unix ?? (settings.unix === undefined ? [] : [settings.unix])
  const daemon = await Daemon.start({
    driver: qemuDriver,
    uri: `qemu:///embed?root=${encodeURIComponent(root)}`,
    unix: [socketOf(root), ...unix],
    listen: given.listen ?? settings.listen ?? [],
    pki: given.pki ?? settings.pki,
    allowedDns: given.allowedDn ?? settings.allowedDns,
    logger,
  })
  const asked = askedToEnd(logger)
  logger.info({ root, uris: daemon.uris, version: packageVersion }, 'ready')
  ready({ ready: true, uris: daemon.uris })
  tellSystemd(io.env, ['READY=1', `STATUS=serves ${daemon.uris.join(', ')}`], logger)
  try {
    if (typeof seconds !== 'number') await asked.promise
    else {
      const patience = { after: seconds * 1000, before: FIRST_PATIENCE }
      await Promise.race([asked.promise, untilIdle(daemon, patience, asked.signal)])
    }
  } finally {
    logger.info('ends; domains run on')
    tellSystemd(io.env, ['STOPPING=1'], logger)
    await daemon.close()
    asked.over()
  }
}

function logLevel(given: string | undefined): string | undefined {
  const levels = [...Object.keys(pino.levels.values), 'silent']
  if (given === undefined || levels.includes(given)) return given
  throw new UsageError(`--log-level must be one of ${levels.join(', ')}, not '${given}'`)
}

/** SIGTERM and SIGINT end the daemon, a second one at once; SIGHUP has nothing to do. */
function askedToEnd(logger: Logger): { promise: Promise<void>; signal: AbortSignal; over: () => void } {
  const controller = new AbortController()
  const promise = new Promise<void>((resolve) => {
    controller.signal.addEventListener('abort', () => resolve())
  })
  const end = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) process.exit(1)
    logger.info({ signal: name }, 'is asked to end')
    controller.abort()
  }
  const hangUp = (): void => logger.info('SIGHUP: settings are read when the daemon starts')
  process.on('SIGTERM', end).on('SIGINT', end).on('SIGHUP', hangUp)
  const over = (): void => {
    process.off('SIGTERM', end).off('SIGINT', end).off('SIGHUP', hangUp)
  }
  return { promise, signal: controller.signal, over }
}

/** sd_notify(3), where systemd wants to know. */
function tellSystemd(env: NodeJS.ProcessEnv, lines: readonly string[], logger: Logger): void {
  const socket = env['NOTIFY_SOCKET']
  if (socket === undefined || socket === '') return
  try {
    native.sendDatagram(socket, lines.join('\n'))
  } catch (error) {
    logger.warn({ err: error }, 'systemd could not be told')
  }
}

/** Tells, once, who started the daemon; without the option nobody is told. */
function readyDescriptor(text: string | undefined): (what: Readiness) => void {
  if (text === undefined) return () => undefined
  let fd: number | undefined = parseCount('--ready-fd', text, 3)
  return (what) => {
    if (fd === undefined) return
    try {
      writeSync(fd, `${JSON.stringify(what)}\n`)
      closeSync(fd)
    } catch (error) {
      // whoever wanted to know has gone
      void messageOf(error)
    }
    fd = undefined
  }
}
