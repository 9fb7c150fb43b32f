import type { StorageSource } from '../conf/domain-def.js'
import type { DomainBlockInfo } from '../driver.js'
import { sizeOf, withImage } from './image-file.js'
import { probeImage } from './probe.js'
import { askQemuImg } from './qemu-img.js'

/** virDomainGetBlockInfo of a disk that no QEMU has open: bytes for the guest, on the host's disk, and of the file. */
export async function blockInfo(source: StorageSource): Promise<DomainBlockInfo> {
  if (source.type === 'network') {
    const { virtualSize, actualSize = virtualSize } = await askQemuImg(source)
    return { capacity: virtualSize, allocation: actualSize, physical: actualSize }
  }
  const { virtualSize } = await probeImage(source)
  return await withImage(source, source, async (_, stats) => {
    const physical = await sizeOf(stats)
    return { capacity: virtualSize, allocation: stats.isBlockDevice() ? physical : stats.blocks * 512, physical }
  })
}
