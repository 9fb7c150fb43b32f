/** The driver 'sanlock': leases on shared storage, kept by sanlock's daemon, with the names of libvirt's sanlock plugin. */
import { createHash } from 'node:crypto'
import { closeSync, existsSync, ftruncateSync, linkSync, openSync, rmSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { errnoOf, failFrom, messageOf, wordsOf } from '../error.js'
import { makeFolder } from '../util/folders.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import { busyImage } from './image-users.js'
import type { LockDriver, LockResource } from './lock-driver.js'
import { registerProcess, SanlockTool } from './sanlock-client.js'

const fail = failFrom('VIR_FROM_LOCKING')

export interface SanlockOptions {
  /** absolute path of the directory with the leases, on the storage that all hosts share; libvirt's `disk_lease_dir` */
  directory: string
  /** number of this host among those that share it, 1 to 2000; libvirt's `host_id` */
  hostId: number
  /** where the daemon's socket is; default: SANLOCK_RUN_DIR of the environment, or '/run/sanlock' */
  runDir?: string
  /** seconds; default: the daemon's, 10 */
  ioTimeout?: number
}

/** libvirt's name for leases that it makes for disks by itself (lock_driver_sanlock.c) */
const LOCKSPACE = '__LIBVIRT__DISKS__'
/** bytes of a lockspace and of a lease, with sectors of 512 bytes */
const LEASE_SIZE = 1024 * 1024
/** times, and ms between them, that the daemon gets to notice the end of a process */
const PATIENCE = { tries: 100, poll: 50 }

/** of sanlock_rv.h and errno.h */
const results = { gone: -3, exists: -17, notHeld: -1, wrongVersion: -240 } as const
/** of the lease that somebody has, on this host or another one, or that many want at once */
const busyResults: readonly number[] = [results.exists, -11, -16, -243, -244, -245, -246]

/**
 * The connection that QEMU has from its birth on registers it with the daemon, which frees its leases when it ends. When the
 * host can no longer renew its leases the daemon ends their processes, before another host may have them.
 */
export function sanlockLocks({ directory, hostId, runDir = defaultRunDir(), ioTimeout }: SanlockOptions): LockDriver {
  if (!isAbsolute(directory))
    throw fail('VIR_ERR_INVALID_ARG', `the directory of leases must be an absolute path, not '${directory}'`)
  const tool = new SanlockTool(runDir)
  const nameOf = ({ path }: LockResource): string => createHash('md5').update(path).digest('hex')
  const leaseOf = (resource: LockResource): string => {
    const name = nameOf(resource)
    return `${LOCKSPACE}:${name}:${escaped(join(directory, name))}:0`
  }
  const file = (name: string): string => join(directory, name)
  const client = (verb: string, lease: string, pid: number): Promise<{ result: number; text: string }> =>
    tool.call(['client', verb, '-r', lease, '-p', String(pid)])

  /** by image; read from what the daemon says of the process's leases */
  const versions = async (pid: number, resources: readonly LockResource[]): Promise<Record<string, string>> => {
    const { text } = await tool.call(['client', 'inquire', '-p', String(pid)])
    return Object.fromEntries(
      resources.flatMap((resource) => {
        const at = text.indexOf(`${leaseOf(resource)}:`)
        const version = at < 0 ? undefined : /^\w+/.exec(text.slice(at + leaseOf(resource).length + 1))?.[0]
        return version === undefined ? [] : [[resource.path, version]]
      }),
    )
  }

  /** Has another process of this host the lease, too? */
  const isShared = async (resource: LockResource, pid: number): Promise<boolean> => {
    const { text } = await tool.call(['client', 'status'])
    const holders = text.split('\n').filter((line) => line.startsWith(`r ${leaseOf(resource)}:`))
    return holders.some((line) => !line.endsWith(` p ${pid}`))
  }

  /** One that is not there is made whole, and appears at once. */
  const make = async (name: string, kind: '-s' | '-r', lease: (path: string) => string): Promise<void> => {
    if (existsSync(file(name))) return
    const fresh = file(`.${name}.${process.pid}`)
    try {
      const fd = openSync(fresh, 'w', 0o660)
      ftruncateSync(fd, LEASE_SIZE)
      closeSync(fd)
      const { result, text } = await tool.initialize(kind, lease(escaped(fresh)), ioTimeout)
      if (result < 0) throw new Error(text.trim())
      linkSync(fresh, file(name))
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST')
        throw fail('VIR_ERR_SYSTEM_ERROR', `cannot make lease '${file(name)}': ${wordsOf(error)}`, error)
    } finally {
      rmSync(fresh, { force: true })
    }
  }

  /** The daemon hears of the end of a process a little later than we do. */
  const untilNoticed = async (pid: number): Promise<void> => {
    for (let tries = 0; tries < PATIENCE.tries; tries++) {
      const { text } = await tool.call(['client', 'status'])
      if (!new RegExp(`\\bp ${pid}\\b`).test(text)) return
      await delay(PATIENCE.poll)
    }
  }

  return {
    name: 'sanlock',

    async probe() {
      try {
        makeFolder(directory)
        if (!existsSync(join(runDir, 'sanlock.sock'))) return `there is no daemon at '${runDir}'`
        await make(LOCKSPACE, '-s', (path) => `${LOCKSPACE}:0:${path}:0`)
        const { result, text } = await tool.join(`${LOCKSPACE}:${hostId}:${escaped(file(LOCKSPACE))}:0`, ioTimeout)
        return result < 0 && result !== results.exists ? `cannot join its lockspace: ${text.trim()}` : undefined
      } catch (error) {
        return messageOf(error)
      }
    },

    hold: () =>
      Promise.resolve({
        connect: join(runDir, 'sanlock.sock'),
        async attach(_owner, connection) {
          if (connection === undefined) throw new Error('the process did not connect')
          await registerProcess(connection)
        },
        close: () => undefined,
      }),

    async acquire(owner, resources, state) {
      const wanted = resources.filter(({ mode }) => mode !== 'read-only')
      if (wanted.length === 0) return { owner, resources }
      const known = state === undefined ? {} : (JSON.parse(state) as Record<string, string>)
      await using undo = new Undo()
      for (const resource of wanted) {
        const lease = leaseOf(resource)
        const name = nameOf(resource)
        await make(name, '-r', (path) => `${LOCKSPACE}:${name}:${path}:0`)
        const version = resource.mode === 'shared' ? 'SH' : known[resource.path]
        const wish = version === undefined ? lease : `${lease}:${version}`
        const { result, text } = await client('acquire', wish, owner.pid)
        if (result < 0) throw refusal(resource, result, text, owner.pid)
        undo.add(() => client('release', lease, owner.pid))
      }
      const held = await versions(owner.pid, wanted)
      undo.commit()
      return { owner, resources, data: processStartTime(owner.pid) ?? '', state: stateOf(held) }
    },

    async convert(lease, mode) {
      const { owner } = lease
      const resources = lease.resources.map((resource) => ({ ...resource, mode }))
      const change = async (resource: LockResource): Promise<void> => {
        // it only knows of other hosts then
        if (resource.mode === 'exclusive' && (await isShared(resource, owner.pid))) throw busyImage(resource)
        const wish = resource.mode === 'shared' ? `${leaseOf(resource)}:SH` : leaseOf(resource)
        const { result, text } = await client('convert', wish, owner.pid)
        if (result < 0) throw refusal(resource, result, text, owner.pid)
      }
      await using undo = new Undo()
      for (const [nth, resource] of resources.entries()) {
        const was = lease.resources[nth]
        if (was === undefined || was.mode === mode || was.mode === 'read-only') continue
        await change(resource)
        undo.add(() => change(was))
      }
      const state = await versions(owner.pid, resources)
      undo.commit()
      return { ...lease, resources, state: stateOf(state) }
    },

    async release({ owner, resources, data, state }) {
      if (data === undefined) return undefined
      if (processStartTime(owner.pid) !== data) {
        await untilNoticed(owner.pid)
        return state
      }
      for (const resource of resources.filter(({ mode }) => mode !== 'read-only')) {
        const { result, text } = await client('release', leaseOf(resource), owner.pid)
        const gone = result === results.gone || result === results.notHeld
        if (result < 0 && !gone)
          throw fail('VIR_ERR_OPERATION_FAILED', `sanlock keeps the lease of '${resource.path}': ${text.trim()}`)
      }
      return state
    },

    async inquire({ owner, resources, data }) {
      if (data === undefined) return true
      const wanted = resources.filter(({ mode }) => mode !== 'read-only')
      return Object.keys(await versions(owner.pid, wanted)).length === wanted.length
    },
  }
}

function defaultRunDir(): string {
  return process.env['SANLOCK_RUN_DIR'] ?? '/run/sanlock'
}

/** Colons divide what sanlock reads. */
const escaped = (path: string): string => path.replaceAll(':', '\\:')

/** A shared lease has no version. */
const stateOf = (versions: Record<string, string>): string =>
  JSON.stringify(Object.fromEntries(Object.entries(versions).filter(([, version]) => version !== 'SH')))

function refusal(resource: LockResource, result: number, text: string, pid: number): Error {
  const { path } = resource
  if (busyResults.includes(result)) return busyImage(resource)
  if (result === results.wrongVersion)
    return fail('VIR_ERR_OPERATION_FAILED', `another domain had image '${path}' since its lock was let go of`)
  if (result === results.gone)
    return fail('VIR_ERR_OPERATION_FAILED', `sanlock does not know process ${pid}, which was to have image '${path}'`)
  return fail('VIR_ERR_OPERATION_FAILED', `sanlock refuses image '${path}': ${text.trim()}`)
}
