/** What the two sides of a migration tell each other between its phases: JSON, as schemas/migration-cookie.json wants it. */
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import type { ValidateFunction } from 'ajv'
import type { DomainJobStats } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import type { LockCookie } from '../locking/lock-driver.js'

const fail = failFrom('VIR_FROM_QEMU')

const SCHEMA = new URL('../../../schemas/migration-cookie.json', import.meta.url)
/** bytes of a cookie at most */
const MAX_COOKIE = 256 * 1024

/** A disk that moves with the domain. */
export interface MigratedDisk {
  /** target dev */
  disk: string
  /** virtual size in bytes */
  size: number
}

export interface MigrationCookie {
  version: 1
  /** names the migration on both sides */
  id: string
  /** whoever knows it is the other side */
  key: string
  host: { name: string; machineId: string }
  name?: string
  uuid?: string
  /** version of the source's QEMU, as virConnectGetVersion counts it */
  qemu?: number
  /** did the guest run when the migration began */
  running?: boolean
  /** what the guest sees of its machine, as domain XML: a definition for the destination must not change it */
  abi?: string
  /** with VIR_MIGRATE_PERSIST_DEST: the definition to keep */
  persistentXml?: string
  disks?: MigratedDisk[]
  /** what the source's lock manager said when it let go of images that both hosts see */
  locks?: LockCookie
  stats?: DomainJobStats
}

let validator: ValidateFunction | undefined

async function compile(): Promise<ValidateFunction> {
  const { Ajv } = await import('ajv')
  return new Ajv().compile(JSON.parse(readFileSync(SCHEMA, 'utf8')) as object)
}

/** VIR_ERR_INVALID_ARG for what is no cookie of ours. */
export async function readCookie(text: string): Promise<MigrationCookie> {
  if (Buffer.byteLength(text) > MAX_COOKIE)
    throw fail('VIR_ERR_INVALID_ARG', `a migration cookie has at most ${MAX_COOKIE} bytes`)
  let cookie: unknown
  try {
    cookie = JSON.parse(text)
  } catch (error) {
    throw fail('VIR_ERR_INVALID_ARG', `a migration cookie is not JSON: ${messageOf(error)}`, error)
  }
  const validate = (validator ??= await compile())
  if (validate(cookie)) return cookie as MigrationCookie
  const [wrong] = validate.errors ?? []
  const where = wrong?.instancePath === '' ? 'it' : `'${wrong?.instancePath.slice(1) ?? ''}'`
  throw fail('VIR_ERR_INVALID_ARG', `a migration cookie of another version: ${where} ${wrong?.message ?? 'is wrong'}`)
}

export function writeCookie(cookie: MigrationCookie): string {
  const text = JSON.stringify(cookie)
  if (Buffer.byteLength(text) > MAX_COOKIE)
    throw fail('VIR_ERR_OVERFLOW', `what is to be told about the migration has more than ${MAX_COOKIE} bytes`)
  return text
}

export const newId = (): string => randomBytes(8).toString('hex')
export const newKey = (): string => randomBytes(32).toString('hex')

/** Tells one host from another. */
export function thisHost(): MigrationCookie['host'] {
  return { name: hostname(), machineId: readMachineId() }
}

function readMachineId(): string {
  for (const path of ['/etc/machine-id', '/var/lib/dbus/machine-id', '/proc/sys/kernel/random/boot_id']) {
    try {
      const text = readFileSync(path, 'utf8').trim()
      if (text !== '') return text
    } catch {
      // the next one
    }
  }
  return ''
}
