/** `etc/virstreamd.json` of a root. */
import { join } from 'node:path'
import { readSettingsFile } from '../util/settings-file.js'

/** See schemas/virstreamd.json. What is absent is left to its default; what the command line says goes before it. */
export interface DaemonSettings {
  listen?: string[]
  unix?: string
  pki?: string
  allowedDns?: string[]
  logLevel?: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent'
}

const SCHEMA = new URL('../../../schemas/virstreamd.json', import.meta.url)

/** VIR_ERR_CONF_SYNTAX for what is no JSON or not as the schema wants it; a file that is not there says nothing. */
export async function readDaemonSettings(root: string): Promise<DaemonSettings> {
  return (await readSettingsFile<DaemonSettings>(join(root, 'etc/virstreamd.json'), SCHEMA)) ?? {}
}
