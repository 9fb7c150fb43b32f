/**
 * Headers of images whose base is another one since it was replaced. QEMU writes the header of an image that it has open
 * from its memory, and would note down the wrong format of a base (`change-backing-file` of 7.2), so the definition says
 * where the base is until the image is free.
 */
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import { rebaseHeader } from '../../storage/overlay.js'
import { probeImage } from '../../storage/probe.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** When no process has the images open: each header names the base that the definition names. */
export async function writeHeaders(qemu: Qemu, def: DomainDef, targets: Iterable<string>): Promise<void> {
  for (const target of targets) {
    const disk = def.disks.find((candidate) => candidate.target === target)
    if (disk === undefined) continue
    await writeHeader(disk).catch((error: unknown) =>
      qemu.warn(
        `domain '${def.name}': the header of disk '${target}' still names its former base: ${messageOf(error)}`,
      ),
    )
  }
}

async function writeHeader({ source }: DiskDef): Promise<void> {
  if (!source?.backingStore) return
  // one that has let go of its base meanwhile must not get one again
  if ((await probeImage(source)).backing !== undefined) await rebaseHeader(source, source.backingStore)
}

/** As a job of its own, before any that would open the images again. */
export function writeHeadersLater(qemu: Qemu, vm: Vm, host: StreamHost): void {
  if (host.staleHeaders.size === 0) return
  const work = (): Promise<void> => writeHeaders(qemu, host.def, host.staleHeaders)
  qemu.inBackground(`the headers of domain '${vm.name}'`, () => vm.jobs.run('settle', work, Infinity))
}
