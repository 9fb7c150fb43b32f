/**
 * A QEMU whose guest has moved on gives up its locks on the images that it still serves, and one that serves a raw image
 * without a guest never had any: another QEMU could write to them. A node of its own beside the disk's, of the driver that
 * can be told which permissions nobody else may have, keeps QEMU's locks (block/file-posix.c) for as long as it is there.
 */
import type { DiskDef } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import { imageOptions, storageNode } from '../../machine/blockdev.js'
import type { StreamHost } from '../core/vm.js'

type Server = Pick<StreamHost, 'monitor'>

const holdName = ({ target }: DiskDef): string => `hold-${target}`
const holdStorage = (disk: DiskDef): string => `${holdName(disk)}-storage`

/** Nobody else gets to write to the images of these disks. Those that are held already stay so. */
export async function holdImages(
  { monitor }: Server,
  disks: readonly DiskDef[],
  warn: (text: string) => void,
): Promise<void> {
  const known = new Set(await monitor.queryNodeNames())
  for (const disk of disks) {
    const { source } = disk
    if (source === undefined || source.type === 'network' || known.has(holdName(disk))) continue
    try {
      // opened anew: nodes whose guest has left lock nothing
      if (!known.has(holdStorage(disk)))
        await monitor.blockdevAdd({
          ...storageNode(source, imageOptions(disk, source)),
          ...{ 'node-name': holdStorage(disk), 'read-only': true },
        })
      await monitor.blockdevAdd({
        ...{ driver: 'blkdebug', 'node-name': holdName(disk), image: holdStorage(disk), 'read-only': true },
        'unshare-child-perms': ['write', 'resize'],
      })
    } catch (error) {
      warn(`image '${source.path}' is served without a lock: ${messageOf(error)}`)
    }
  }
}

/** Before a guest may write to them here. */
export async function releaseImages({ monitor }: Server, disks: readonly DiskDef[]): Promise<void> {
  const known = new Set(await monitor.queryNodeNames())
  const names = disks.flatMap((disk) => [holdName(disk), holdStorage(disk)])
  for (const name of names) if (known.has(name)) await monitor.blockdevDel(name)
}
