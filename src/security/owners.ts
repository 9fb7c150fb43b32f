/** Users and groups of the host. */
import { failFrom, wordsOf } from '../error.js'
import { run, RunError } from '../util/run.js'

const fail = failFrom('VIR_FROM_SECURITY')

export interface Owner {
  uid: number
  gid: number
}

export const formatOwner = ({ uid, gid }: Owner): string => `+${uid}:+${gid}`
export const sameOwner = (a: Owner, b: Owner): boolean => a.uid === b.uid && a.gid === b.gid

/** '+107:+107' and 'user:group', also mixed; a bare number is taken for a name first, as in chown(1). VIR_ERR_INVALID_ARG otherwise. */
export async function parseOwner(label: string): Promise<Owner> {
  const [user, group, ...rest] = label.split(':')
  if (user === undefined || user === '' || group === undefined || group === '' || rest.length > 0)
    throw fail('VIR_ERR_INVALID_ARG', `'${label}' is not of the form 'user:group'`)
  return { uid: await userId(user), gid: await groupId(group) }
}

/** Of a name, or of a number with or without '+'. */
export const userId = (user: string): Promise<number> => idOf('passwd', 'user', user)
export const groupId = (group: string): Promise<number> => idOf('group', 'group', group)

async function idOf(database: 'passwd' | 'group', noun: string, text: string): Promise<number> {
  if (/^\+\d+$/.test(text)) return checked(Number(text.slice(1)), text)
  const id = Number((await entry(database, text))?.split(':')[2] ?? NaN)
  if (Number.isInteger(id)) return id
  if (/^\d+$/.test(text)) return checked(Number(text), text)
  throw fail('VIR_ERR_INVALID_ARG', `there is no ${noun} '${text}' on this host`)
}

/** (uid_t) -1 means "leave it" to chown(2). */
function checked(id: number, text: string): number {
  if (id < 0xffff_ffff) return id
  throw fail('VIR_ERR_INVALID_ARG', `'${text}' is not an id of a user or group`)
}

/** The group that a user has at login. */
export async function primaryGroup(uid: number): Promise<number | undefined> {
  const gid = (await entry('passwd', String(uid)))?.split(':')[3]
  return gid === undefined ? undefined : Number(gid)
}

/** All groups of a user, e.g. 'kvm'; none for a number without a name. */
export async function groupsOf(uid: number): Promise<number[]> {
  const name = (await entry('passwd', String(uid)))?.split(':')[0]
  if (name === undefined) return []
  const { stdout } = await run('id', ['-G', '--', name], { timeout: 10_000 })
  return stdout.trim().split(/\s+/).map(Number)
}

/** By name, or by number. */
async function entry(database: 'passwd' | 'group', key: string): Promise<string | undefined> {
  try {
    return (await run('getent', ['--', database, key], { timeout: 10_000 })).stdout.trim()
  } catch (error) {
    // 2: the key is not there
    if (error instanceof RunError && error.status === 2) return undefined
    throw fail('VIR_ERR_INTERNAL_ERROR', `cannot look up '${key}' in '${database}': ${wordsOf(error)}`, error)
  }
}
