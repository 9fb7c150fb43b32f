/** Has an image let go of what it read from? Asked before anything is forgotten: never on a job's word alone. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { probeImage } from '../../storage/probe.js'
import { isDetached } from '../blocks/block-graph.js'
import type { StreamHost } from '../core/vm.js'

/** Where there is no guest, and so no device to ask about, the image's header tells; nothing else will count later. */
export function hasLetGo(host: StreamHost, disk: DiskDef, base: StorageSource | undefined): Promise<boolean> {
  if (host.mode === 'full') return isDetached(host.monitor, disk, base)
  return headerEndsAt(disk.source, base)
}

/** Whether the header of `source` names `base`, or no backing image at all; false where it cannot be read. */
export async function headerEndsAt(
  source: StorageSource | undefined,
  base: StorageSource | undefined,
): Promise<boolean> {
  if (source === undefined) return false
  try {
    const { backing } = await probeImage(source)
    return backing?.string === (base && formatBackingString(base))
  } catch {
    return false
  }
}
