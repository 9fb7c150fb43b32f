import type { Context } from './context.js'
import type { Values } from './values.js'

export interface CommandSpec {
  name: string
  group: Group
  /** one line, as in `virstream --help` */
  summary: string
  /** name ('<domain>' must be given, '[device]' may be, '<cmd...>' takes the rest) and what it means */
  arguments: readonly (readonly [name: string, meaning: string])[]
  /** flags as commander has them ('--base <path>') and what they mean, with units and defaults */
  options: readonly (readonly [flags: string, meaning: string])[]
  /** paragraphs */
  description: readonly string[]
  /** command lines without the leading `virstream`, and what they do */
  examples: readonly (readonly [command: string, meaning: string])[]
  /** exit statuses other than 0 and 1 */
  exit?: readonly (readonly [status: string, meaning: string])[]
  seeAlso: readonly string[]
  /** answers the exit status; nothing means 0 */
  run(context: Context, args: readonly string[], options: Values): Promise<number | undefined>
}

export const groups = ['Domains', 'Definitions', 'Disks and streams', 'Migration', 'Saved states', 'Host'] as const
export type Group = (typeof groups)[number]

export const domainArgument = ['<domain>', 'name, id or UUID of the domain'] as const
export const diskArgument = [
  '<disk>',
  "target ('vda'), alias ('virtio-disk0') or source path of the disk, see domblklist",
] as const
export const bandwidthMeaning = 'at most so many MiB/s (bytes/s with --bytes; or with a unit, as 500K, 2G)'
export const jsonOption = ['--json', 'print JSON instead of text'] as const
