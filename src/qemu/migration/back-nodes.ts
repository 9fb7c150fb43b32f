/**
 * The source's side of `writeBack`. Its QEMU has let go of the images when the guest has gone, but the guest's device is
 * still there, and lets nobody write through the nodes that it uses. So each image is opened a second time, and both exports
 * of the disk are of that node: one through the other's caches would read what is not there any more.
 */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { guardName } from '../blocks/block-graph.js'
import { formatNode, formatNodeName, imageOptions, storageNode } from '../../machine/blockdev.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

const backNode = ({ target }: DiskDef): string => `back-${target}`
const backStorage = (disk: DiskDef): string => `${backNode(disk)}-storage`

/** VIR_ERR_CONFIG_UNSUPPORTED for a disk that cannot be written from afar. */
export function requireWhole({ source, target }: DiskDef): StorageSource {
  if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
  if (source.slice !== undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' is a part of a file, which cannot be written back to`)
  return source
}

/** The guest stands still, and its QEMU has nothing to write any more. Done already: nothing is done. */
export async function openBack(live: Live, disks: readonly DiskDef[]): Promise<void> {
  for (const disk of disks) {
    if (await live.exports.servesBack(disk.target)) continue
    await closeBackDisk(live, disk, () => undefined)
    await live.exports.unserve(disk.target)
    await addNodes(live, disk)
    await live.exports.serve(disk, { node: backNode(disk) })
    await live.exports.serveBack(disk, { node: backNode(disk), writethrough: true })
  }
}

async function addNodes({ monitor, guards }: Live, disk: DiskDef): Promise<void> {
  const source = requireWhole(disk)
  const options = imageOptions(disk, source)
  const guard = guards.get(disk.target)
  const below = source.backingStore ? formatNodeName(source.backingStore) : null
  await monitor.blockdevAdd({ ...storageNode(source, options), 'node-name': backStorage(disk) })
  await monitor.blockdevAdd({
    ...formatNode(source, { ...options, backing: guard === undefined ? below : guardName(guard) }),
    'node-name': backNode(disk),
    file: backStorage(disk),
  })
}

/** Nobody writes the images from afar any more: the guest may go on with them here. */
export async function closeBack(live: Live, disks: readonly DiskDef[], warn: (text: string) => void): Promise<void> {
  for (const disk of disks) {
    if (!(await live.exports.servesBack(disk.target))) continue
    await live.exports.unserve(disk.target)
    await live.exports.unserveBack(disk.target)
    await closeBackDisk(live, disk, warn)
  }
}

async function closeBackDisk({ monitor }: Live, disk: DiskDef, warn: (text: string) => void): Promise<void> {
  for (const name of [backNode(disk), backStorage(disk)])
    await monitor.blockdevDel(name).catch((error: unknown) => warn(messageOf(error)))
}
