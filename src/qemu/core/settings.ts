/** `etc/qemu.json` of a root. */
import { join } from 'node:path'
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

/** VIR_ERR_CONF_SYNTAX for what is no JSON or not as the schema wants it; a file that is not there says nothing. */
export async function readSettings(root: Root): Promise<Settings> {
  return (await readSettingsFile<Settings>(join(root.path, 'etc/qemu.json'), SCHEMA)) ?? {}
}
