/** Who has an image open, as far as /proc tells: what QEMU and some lock managers do not say of a lock that they refuse. */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { basename } from 'node:path'
import { failFrom } from '../error.js'
import type { LockResource } from './lock-driver.js'

export interface ImageUser {
  pid: number
  /** file name of its program */
  command: string
  /** of `-name` on the command line of a QEMU */
  domain: string | undefined
}

/** O_WRONLY and O_RDWR in the octal `flags` of /proc/PID/fdinfo */
const WRITING = 0o3

/** Processes but ours that have the file open; those that may write to it are named first. Processes of others may be hidden. */
export function usersOf(path: string): ImageUser[] {
  const { writers, readers } = lookFor(path)
  return [...writers, ...readers]
}

/** "domain 'web' (process 4711), process 4712 ('qemu-img')": those who may write, else those who read; undefined: nobody is seen. */
export function nameUsers(path: string): string | undefined {
  const { writers, readers } = lookFor(path)
  const users = (writers.length > 0 ? writers : readers).map(({ pid, command, domain }) => {
    return domain === undefined ? `process ${pid} ('${command}')` : `domain '${domain}' (process ${pid})`
  })
  return users.length === 0 ? undefined : users.join(', ')
}

/** For lock managers that do not tell who has a lock. VIR_ERR_RESOURCE_BUSY. */
export function busyImage({ path }: LockResource, cause?: unknown): Error {
  const text = `image '${path}' is locked, in use by ${nameUsers(path) ?? 'someone whom we cannot see'}`
  return failFrom('VIR_FROM_LOCKING')('VIR_ERR_RESOURCE_BUSY', text, cause)
}

function lookFor(path: string): { writers: ImageUser[]; readers: ImageUser[] } {
  const found = { writers: [] as ImageUser[], readers: [] as ImageUser[] }
  const file = quietly(() => statSync(path))
  if (file === undefined) return found
  for (const pid of pids()) {
    const fds = namesIn(`/proc/${pid}/fd`).filter((fd) => {
      const stat = quietly(() => statSync(`/proc/${pid}/fd/${fd}`))
      return stat?.ino === file.ino && stat.dev === file.dev
    })
    if (fds.length === 0) continue
    const args = (quietly(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8')) ?? '').split('\0')
    const user = { pid, command: basename(args[0] ?? ''), domain: domainOf(args) }
    // it keeps locks for others
    if (user.command === 'virtlockd') continue
    if (fds.some((fd) => mayWrite(pid, fd))) found.writers.push(user)
    else found.readers.push(user)
  }
  return found
}

const pids = (): number[] =>
  namesIn('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid)

const namesIn = (dir: string): string[] => quietly(() => readdirSync(dir)) ?? []

function mayWrite(pid: number, fd: string): boolean {
  const text = quietly(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')) ?? ''
  return (parseInt(/^flags:\s*(\d+)/m.exec(text)?.[1] ?? '0', 8) & WRITING) !== 0
}

function domainOf(args: readonly string[]): string | undefined {
  const name = args.includes('-name') ? args[args.indexOf('-name') + 1] : undefined
  return name
    ?.split(/(?<!,),(?!,)/)[0]
    ?.replace(/^guest=/, '')
    .replaceAll(',,', ',')
}

/** Processes come and go, and others' are closed to us. */
function quietly<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch {
    return undefined
  }
}
