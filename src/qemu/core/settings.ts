/** `etc/qemu.json` of a root. */
import { join } from 'node:path'
import { failFrom } from '../../error.js'
import type { LockDriverName } from '../../locking/drivers.js'
import { readSettingsFile } from '../../util/settings-file.js'
import type { StreamLimits } from '../blocks/budget.js'
import type { Root } from './root.js'

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
  sanlockHostId?: number
  streams?: StreamLimits
  /** seconds */
  baseTimeout?: number
}

const SCHEMA = new URL('../../../../schemas/qemu.json', import.meta.url)

const fail = failFrom('VIR_FROM_CONF')

/**
 * VIR_ERR_CONF_SYNTAX for what is no JSON, not as the schema wants it, or a user without the driver that heeds it; a file that
 * is not there says nothing.
 */
export async function readSettings(root: Root): Promise<Settings> {
  const path = join(root.path, 'etc/qemu.json')
  const settings = (await readSettingsFile<Settings>(path, SCHEMA)) ?? {}
  const lost = (['user', 'group'] as const).find((key) => settings[key] !== undefined)
  if (lost !== undefined && settings.security !== 'none' && !settings.security?.includes('dac'))
    throw fail(
      'VIR_ERR_CONF_SYNTAX',
      `'${path}': setting '${lost}' needs 'dac' in 'security', QEMU would run as who starts it`,
    )
  return settings
}
