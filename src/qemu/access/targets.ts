/** What a definition names on the host's file system, as `access.ts` hands it out. */
import { chmodSync, closeSync, existsSync, lstatSync, openSync, realpathSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { ChardevDef, DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { errnoOf, failFrom, wordsOf } from '../../error.js'
import type { LockResource } from '../../locking/lock-driver.js'
import type { LabelTarget } from '../../security/security-driver.js'
import { chardevSocketPath } from '../../machine/command-chardev.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What a domain is about where things lie. */
export interface AccessPlace {
  /** path of the root */
  root: string
  runDir: string
  logFile: string
  /** absolute path of what is started */
  program: string
}

/** An image of a disk: its own, or one below it. Undefined for what comes over the network. */
export function imageTarget(disk: DiskDef, image: StorageSource): LabelTarget | undefined {
  if (image.type === 'network') return undefined
  const top = image === disk.source
  const own = image.seclabels ?? []
  return {
    path: image.path,
    kind: top ? 'disk' : 'backing',
    readonly: !top || disk.readonly || disk.device === 'cdrom',
    shared: top && disk.shareable,
    seclabels: top ? own : [...own, ...(disk.source?.seclabels ?? [])],
  }
}

/** An image below a disk's own that is written to as well. */
export function writtenTarget(image: StorageSource): LabelTarget | undefined {
  if (image.type === 'network') return undefined
  return { path: image.path, kind: 'disk', readonly: false, shared: false, seclabels: image.seclabels ?? [] }
}

export function lockResource({ path, readonly, shared }: LabelTarget): LockResource {
  const canonical = canonicalPath(path)
  const mode = readonly ? 'read-only' : shared ? 'shared' : 'exclusive'
  return { path: canonical, mode, ...(canonical !== path && { alias: path }) }
}

function canonicalPath(path: string): string {
  try {
    return realpathSync(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return path
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot find '${path}': ${wordsOf(error)}`, error)
  }
}

/** Files that are not images; those that QEMU would make are made. */
export function fileTargets(def: DomainDef, logFile: string): LabelTarget[] {
  const { kernel, initrd, dtb, nvram } = def.os
  const target = (path: string, kind: LabelTarget['kind'], readonly = false): LabelTarget => {
    return { path, kind, readonly, shared: false, seclabels: [] }
  }
  const boot = [kernel, initrd, dtb].flatMap((path) => (path === undefined ? [] : [target(path, 'boot', true)]))
  const chardevs = new Set([...def.serials, ...def.channels, ...def.consoles].flatMap(chardevFiles))
  for (const path of [...chardevs, logFile]) makeFile(path)
  return [
    ...boot,
    ...(nvram?.path === undefined ? [] : [target(nvram.path, 'nvram')]),
    ...[...chardevs].map((path) => target(path, 'chardev')),
    target(logFile, 'log'),
  ]
}

function chardevFiles({ source, log }: ChardevDef): string[] {
  const own = source.type === 'file' || source.type === 'dev' ? [source.path] : []
  return log === undefined ? own : [...own, log.file]
}

/** QEMU would make it, but its user may not be able to. */
function makeFile(path: string): void {
  if (existsSync(path)) return
  try {
    closeSync(openSync(path, 'a', 0o600))
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot make '${path}': ${wordsOf(error)}`, error)
  }
}

/** Unix sockets on which character devices listen, by the alias of the device. */
export function chardevSockets(def: DomainDef, dir: string): { alias: string; path: string }[] {
  const consoles = def.consoles.filter(({ targetType }) => targetType === 'virtio')
  return [...def.serials, ...def.channels, ...consoles].flatMap(({ alias, source }) => {
    if (alias === undefined || source.type !== 'unix' || source.mode !== 'bind') return []
    return [{ alias, path: source.path ?? chardevSocketPath(dir, alias) }]
  })
}

/** What lies in the folder of a run, or is there only for it. */
export function runtimeTarget(path: string): LabelTarget {
  return { path, kind: 'runtime', readonly: false, shared: false, seclabels: [] }
}

/** A socket that an earlier run has left makes way for the next, as QEMU does it. */
export function removeSocket(path: string): void {
  try {
    if (lstatSync(path).isSocket()) rmSync(path)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw fail('VIR_ERR_SYSTEM_ERROR', `cannot remove '${path}': ${wordsOf(error)}`)
  }
}

/** Another user may pass through the folders above what is his, without seeing what else is there. */
export function openTheWay(root: string, runDir: string): void {
  const below = ['', 'run', 'lib', 'lib/qemu', 'lib/qemu/nvram'].map((name) => join(root, name))
  for (const dir of [...below, dirname(runDir), runDir]) chmodSync(dir, statSync(dir).mode | 0o011)
}
