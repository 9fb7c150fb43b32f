/**
 * Images whose guest has left. Since 10.0 QEMU refuses to let a guest go while an export of its images does not say that it
 * bears that, and answers nothing but reads from then on, until it is told to have them again. Before, an export that only
 * reads goes on as if nothing had been.
 */
import type { DiskDef } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import { copyOnReadNodeName, formatNodeName } from '../../machine/blockdev.js'
import type { QemuCapabilities } from '../../machine/capabilities.js'
import { holdImages } from './image-hold.js'
import type { Live } from '../core/vm.js'

export type InactiveCaps = Pick<QemuCapabilities, 'hasCommand' | 'hasCommandArgument'>
type Server = Pick<Live, 'monitor' | 'exports'>

/** Exports disks whose guest is about to leave. */
export async function serveLeaving({ exports }: Server, disks: readonly DiskDef[], caps: InactiveCaps): Promise<void> {
  const allowInactive = caps.hasCommandArgument('block-export-add', 'allow-inactive')
  for (const disk of disks) await exports.serve(disk, { allowInactive })
}

/** The guest has left: QEMU has its images again, to serve all that is asked of them, and nobody else gets to write them. */
export async function keepImages(
  { monitor }: Server,
  disks: readonly DiskDef[],
  caps: InactiveCaps,
  warn: (text: string) => void,
): Promise<void> {
  if (!caps.hasCommand('blockdev-set-active')) return holdImages({ monitor }, disks, warn)
  for (const disk of disks) {
    if (disk.source === undefined) continue
    const top = disk.driver.copyOnRead === 'on' ? copyOnReadNodeName(disk) : formatNodeName(disk.source)
    await monitor
      .run('blockdev-set-active', { 'node-name': top, active: true })
      // reads go on all the same, and those are what the destination needs
      .catch((error: unknown) => warn(messageOf(error)))
  }
}
