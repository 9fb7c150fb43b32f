/** The nodes of a disk in a process that runs already. */
import type { DiskDef } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import type { Undo } from '../../util/undo.js'
import { chainOf, deleteNodes, sourcePath } from '../blocks/block-graph.js'
import { type BlockdevOptions, copyOnReadNodeName, diskNodes } from '../../machine/blockdev.js'
import { busyImage } from '../access/busy-images.js'
import type { Qemu } from './qemu.js'
import type { StreamHost } from './vm.js'

/** Adds all nodes of `disk`, the guard among them. Answers the one that a guest's device uses. */
export async function addDiskNodes(qemu: Qemu, host: StreamHost, disk: DiskDef, undo: Undo): Promise<string> {
  const caps = await qemu.capabilities.get(host.def.emulator)
  const { nodes, secrets, device } = diskNodes(disk, { caps })
  for (const { id, data } of secrets) {
    await host.monitor.passThrough('object-add', { 'qom-type': 'secret', id, data })
    undo.add(() => host.monitor.passThrough('object-del', { id }))
  }
  for (const node of nodes) {
    // without a guest there are no reads that it could copy
    if (host.mode === 'offline' && node['node-name'] === copyOnReadNodeName(disk)) continue
    await host.monitor.blockdevAdd(node).catch((error: unknown) => {
      throw explainRefusal(disk, node, error)
    })
    undo.add(() => host.monitor.blockdevDel(node['node-name']))
  }
  const backing = disk.source?.backingStore?.index
  if (backing !== undefined && caps.hasBlockDriver('quorum')) {
    host.guards.set(disk.target, backing)
    undo.add(() => host.guards.delete(disk.target))
  }
  return device
}

/** QEMU locks the images that it opens; who has this one is worth knowing. */
function explainRefusal(disk: DiskDef, node: BlockdevOptions, error: unknown): unknown {
  const image = chainOf(disk).find((candidate) => node['node-name'].startsWith(`node-${candidate.index ?? ''}-`))
  return busyImage(messageOf(error), [sourcePath(image)], error) ?? error
}

/** Removes all nodes of `disk`, which nothing uses any more. What is left is reported. */
export async function deleteDiskNodes(
  qemu: Qemu,
  host: StreamHost,
  disk: DiskDef,
  warn: (text: string) => void,
): Promise<void> {
  const [own, ...below] = chainOf(disk)
  if (own === undefined) return
  const caps = await qemu.capabilities.get(host.def.emulator)
  const { secrets, nodes } = diskNodes(disk, { caps })
  const filter = copyOnReadNodeName(disk)
  if (host.mode === 'full' && nodes.some((node) => node['node-name'] === filter))
    await host.monitor
      .blockdevDel(filter)
      .catch((error: unknown) => warn(`node '${filter}' is left: ${messageOf(error)}`))
  // the guard hangs between the own image and the one below it
  await deleteNodes(host.monitor, new Map(), disk, [own], warn)
  await deleteNodes(host.monitor, host.guards, disk, below, warn)
  for (const { id } of secrets)
    await host.monitor
      .passThrough('object-del', { id })
      .catch((error: unknown) => warn(`secret '${id}' is left: ${messageOf(error)}`))
}
