/** A root that a daemon has open is used through that daemon, whoever opens it by its own URI. */
import { spawn } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { errorCodes, errorDomains } from '../error-codes.gen.js'
import type { DriverHost, HypervisorOps } from '../driver.js'
import { failFrom, messageOf, VirError, type VirErrorCode, type VirErrorDomain } from '../error.js'
import { dial } from '../tunnel/dial.js'
import { openRemote } from './driver.js'
import { isObject } from './protocol.js'
import { daemonUri, embeddedRoot, socketOf } from './uri.js'

const fail = failFrom('VIR_FROM_REMOTE')

/** Does a daemon serve this root? */
async function isServed(root: string): Promise<boolean> {
  const tunnel = existsSync(socketOf(root)) ? await dial(daemonUri(root)).catch(() => undefined) : undefined
  await tunnel?.close()
  return tunnel !== undefined
}

/**
 * The daemon's operations for a root that is in use; undefined when it is no daemon that uses it, or when the caller wants
 * what only an owner of the root can have (drivers of its own, tunnels).
 */
export async function throughDaemon(uri: URL, host: DriverHost): Promise<Partial<HypervisorOps> | undefined> {
  const root = embeddedRoot(uri.href)
  const own = [host.security, host.lockManager, host.transports, host.tunnels].some((each) => each !== undefined)
  if (root === undefined || own || !existsSync(socketOf(root))) return undefined
  return openRemote(daemonUri(root), host).catch((error: unknown) => {
    // a daemon that was killed has left its socket there
    if (error instanceof VirError && error.code === 'VIR_ERR_SYSTEM_ERROR') return undefined
    throw error
  })
}

/** What a daemon says on its ready descriptor. */
export type Readiness =
  { ready: true; uris: string[] } | { ready: false; code?: string; domain?: string; message: string }

const program = fileURLToPath(new URL('../bin/virstreamd.js', import.meta.url))
/** ms for which a daemon that has the lock may take to listen */
const PATIENCE = 5000

/**
 * Sees to it that a daemon serves this root: the one that does, or a new one, which ends by itself when nobody needs it any
 * more. It outlives this process and logs to ROOT/log/virstreamd.log. Rejects with the VirError that keeps it from starting.
 */
export async function ensureDaemon(root: string): Promise<void> {
  const deadline = performance.now() + PATIENCE
  while (!(await isServed(root))) {
    const said = await startDaemon(root)
    if (said.ready) return
    const error = toError(said)
    if (performance.now() > deadline || !isHeldByDaemon(root)) throw error
    await delay(200)
  }
}

/** Has a daemon the root, one that was begun at the same time and does not listen yet? */
function isHeldByDaemon(root: string): boolean {
  try {
    const pid = readFileSync(join(root, 'run/lock'), 'utf8').trim()
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('virstreamd')
  } catch {
    return false
  }
}

async function startDaemon(root: string): Promise<Readiness> {
  mkdirSync(join(root, 'log'), { recursive: true, mode: 0o700 })
  const log = openSync(join(root, 'log/virstreamd.log'), 'a', 0o600)
  const child = spawn(process.execPath, [program, '--root', root, '--until-idle', '--ready-fd', '3'], {
    detached: true,
    cwd: '/',
    stdio: ['ignore', log, log, 'pipe'],
  })
  closeSync(log)
  const failed = new Promise<never>((_resolve, reject) => {
    child.once('error', (error) => reject(fail('VIR_ERR_SYSTEM_ERROR', `cannot start virstreamd: ${messageOf(error)}`)))
  })
  const said = await Promise.race([text(child.stdio[3] as Readable), failed])
  child.unref()
  return parseReadiness(said)
}

function parseReadiness(said: string): Readiness {
  const nothing = { ready: false, message: 'virstreamd ended before it was ready, see its log' } as const
  if (said === '') return nothing
  const heard: unknown = JSON.parse(said)
  return isObject(heard) && typeof heard['ready'] === 'boolean' ? (heard as unknown as Readiness) : nothing
}

function toError({ code = '', domain = '', message }: Extract<Readiness, { ready: false }>): VirError {
  if (!(code in errorCodes) || !(domain in errorDomains)) return fail('VIR_ERR_SYSTEM_ERROR', message)
  return new VirError(code as VirErrorCode, domain as VirErrorDomain, message)
}
