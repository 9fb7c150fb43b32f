import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { diskAlias } from '../../machine/alias.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Names that QEMU or its driver use inside: drives, block nodes, generated ids, object paths. */
const BACKEND_NAME = /^(drive-.+|(libvirt|node)-(\d+-|CoR-).+|(cor|stream|commit)-.+|#block\d+|\/machine\/.+)$/

/**
 * The disk that a user means: by target ('vda'), alias ('virtio-disk0', also while the domain does not run) or source
 * path. VIR_ERR_INVALID_ARG for an unknown or empty name, for a path that two disks have, and for QEMU's own names.
 */
export function findDisk(def: DomainDef, name: string): DiskDef {
  if (!name) throw fail('VIR_ERR_INVALID_ARG', 'path must not be NULL')
  const named =
    def.disks.find((disk) => disk.target === name) ?? def.disks.find((disk) => diskAlias(def, disk) === name)
  if (named) return named
  const [disk, another] = def.disks.filter(({ source }) => source && sourceName(source) === name)
  if (disk && another)
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `invalid path '${name}': it is the source of disks '${disk.target}' and '${another.target}', use a target`,
    )
  if (disk) return disk
  if (BACKEND_NAME.test(name)) throw fail('VIR_ERR_INVALID_ARG', backendSentence(def, name))
  throw fail('VIR_ERR_INVALID_ARG', `invalid path '${name}': disk '${name}' not found in domain`)
}

function backendSentence(def: DomainDef, name: string): string {
  const meant = def.disks.find((disk) => name.includes(diskAlias(def, disk)))
  const [target, alias] = meant ? [meant.target, diskAlias(def, meant)] : ['vda', 'virtio-disk0']
  const how = meant
    ? `use '${target}' or '${alias}'`
    : `use a target ('${target}'), an alias ('${alias}') or a source path`
  return `invalid path '${name}': that is a name inside QEMU, ${how}`
}

/** What stands for an image in a list of disks: its path, or its name on the server. */
export function sourceName(source: StorageSource): string | undefined {
  return source.type === 'network' ? source.name : source.path
}
