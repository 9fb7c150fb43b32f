import { readdirSync, readFileSync, statSync } from 'node:fs'
import { failFrom } from '../error.js'
import type { LockResource } from './lock-driver.js'

/**
 * For lock managers that do not tell who has a lock: VIR_ERR_RESOURCE_BUSY with the processes of this host that have the
 * image open, as far as we may see that, and with the names of their domains.
 */
export function busyImage({ path }: LockResource, cause?: unknown): Error {
  const users = usersOf(path).map(({ pid, domain }) => {
    return domain === undefined ? `process ${pid}` : `domain '${domain}' (process ${pid})`
  })
  const whom = users.length === 0 ? 'someone whom we cannot see' : users.join(', ')
  return failFrom('VIR_FROM_LOCKING')('VIR_ERR_RESOURCE_BUSY', `image '${path}' is locked, in use by ${whom}`, cause)
}

interface ImageUser {
  pid: number
  /** of `-name` on the command line of a QEMU */
  domain: string | undefined
}

function usersOf(path: string): ImageUser[] {
  const image = tryTo(() => statSync(path))
  if (image === undefined) return []
  const has = (pid: number): boolean =>
    (tryTo(() => readdirSync(`/proc/${pid}/fd`)) ?? []).some((fd) => {
      const open = tryTo(() => statSync(`/proc/${pid}/fd/${fd}`))
      return open?.ino === image.ino && open.dev === image.dev
    })
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid && has(pid))
    .map((pid) => ({ pid, args: (tryTo(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8')) ?? '').split('\0') }))
    .filter(({ args }) => !/virtlockd$/.test(args[0] ?? ''))
    .map(({ pid, args }) => ({ pid, domain: domainOf(args) }))
}

function domainOf(args: readonly string[]): string | undefined {
  const name = args.includes('-name') ? args[args.indexOf('-name') + 1] : undefined
  return name
    ?.split(/(?<!,),(?!,)/)[0]
    ?.replace(/^guest=/, '')
    .replaceAll(',,', ',')
}

/** Processes end while one looks, and not all of them may be looked at. */
function tryTo<T>(work: () => T): T | undefined {
  try {
    return work()
  } catch {
    return undefined
  }
}
