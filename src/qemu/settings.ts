/** `etc/qemu.json` of a root. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ErrorObject } from 'ajv'
import { errnoOf, failFrom, messageOf } from '../error.js'
import type { LockDriverName } from '../locking/drivers.js'
import type { Root } from './root.js'

const fail = failFrom('VIR_FROM_CONF')

/** See schemas/qemu.json. What is absent is left to its default. */
export interface Settings {
  security?: 'none' | ('dac' | 'selinux' | 'apparmor')[]
  user?: string
  group?: string
  dynamicOwnership?: boolean
  rememberOwner?: boolean
  lockManager?: 'none' | LockDriverName
  lockDirectory?: string
  virtlockdSocket?: string
  fileLockspace?: string
}

const SCHEMA = new URL('../../../schemas/qemu.json', import.meta.url)

/** VIR_ERR_CONF_SYNTAX for what is no JSON or not as the schema wants it; a file that is not there says nothing. */
export async function readSettings(root: Root): Promise<Settings> {
  const path = join(root.path, 'etc/qemu.json')
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return {}
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot read '${path}': ${messageOf(error)}`, error)
  }
  let settings: unknown
  try {
    settings = JSON.parse(text)
  } catch (error) {
    throw fail('VIR_ERR_CONF_SYNTAX', `'${path}' is not JSON: ${messageOf(error)}`, error)
  }
  // loaded by those who need it
  const { Ajv } = await import('ajv')
  const validate = new Ajv({ allErrors: true }).compile<Settings>(JSON.parse(readFileSync(SCHEMA, 'utf8')) as object)
  if (validate(settings)) return settings
  const wrong = [...new Set((validate.errors ?? []).filter(({ keyword }) => keyword !== 'const').map(sentence))]
  throw fail('VIR_ERR_CONF_SYNTAX', `'${path}': ${wrong.join('; ')}`)
}

function sentence({ keyword, instancePath, params, message }: ErrorObject): string {
  const key = instancePath.split('/')[1]
  if (keyword === 'additionalProperties') return `there is no setting '${String(params['additionalProperty'])}'`
  const words = [
    message ?? 'is wrong',
    ...(keyword === 'enum' ? [(params['allowedValues'] as string[]).join(', ')] : []),
  ]
  return `${key === undefined ? 'it' : `setting '${key}'`} ${words.join(': ')}`
}
