/**
 * What a process that was killed had still to take away from a QEMU (or a storage daemon): nodes of images that left their
 * chain or whose stream never began, and their labels and locks. What is written down says what belongs there.
 */
import { messageOf } from '../../error.js'
import { chainOf, guardName } from '../blocks/block-graph.js'
import { finalIndexes } from './final-image.js'
import { formerDisk } from './half-replaced.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** Our names of the nodes of an image, in the order in which one uses the next. */
const KINDS = ['guard', 'format', 'slice', 'storage']
const NODE = new RegExp(`^node-(\\d+)-(${KINDS.join('|')})$`)

/** Under the domain's job, when a process is taken over; no stream may be concluded and not dismissed. */
export async function dropStrangers(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  const warn = (error: unknown): void => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`)
  const hasStream = (target: string): boolean => host.blockJobs.ofDisk(target) !== undefined
  const disks = host.def.disks.filter(({ target }) => host.mode === 'full' || hasStream(target))
  // of a former base that QEMU has still to let go of
  const former = formerDisk(host)
  if (former !== undefined) disks.push(former)
  const images = disks.flatMap((disk) => chainOf(disk).map(({ index }) => index))
  const known = new Set([...images, ...finalIndexes(qemu, vm)])
  const guards = new Set([...host.guards.values()].map(guardName))
  const nodes = (await host.monitor.queryNodeNames())
    .flatMap((name) => {
      const [, index, kind = ''] = NODE.exec(name) ?? []
      return index === undefined ? [] : [{ name, index: Number(index), rank: KINDS.indexOf(kind) }]
    })
    .filter(({ index, name }) => !known.has(index) && !guards.has(name))
    .toSorted((a, b) => a.index - b.index || a.rank - b.rank)
  for (const { name } of nodes) await host.monitor.blockdevDel(name).catch(warn)
  await host.access.revokeUnused(disks)
}
