/** The raw images that streamed disks end as (see `streams/final-image`) are made, with the overlays that stand in for them, and removed. */
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { createImage, imageInfo } from '../../storage/overlay.js'
import { type MigrationRecord, saveRecord } from './record.js'
import type { Qemu } from '../core/qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What the temporary overlay of a raw image is called, where that is a file. */
const OVERLAY_SUFFIX = '.streaming'

/** VIR_ERR_OPERATION_FAILED: nothing is written over. */
export function refuseExisting(path: string, target: string): void {
  if (!existsSync(path)) return
  const text = `image '${path}' for disk '${target}' exists already at the destination, whose definition may name another one`
  throw fail('VIR_ERR_OPERATION_FAILED', text)
}

/** Makes the raw image, if it is a file, and puts the overlay that will be made in its place. Answers the overlay's path. */
export async function makeFinal(
  qemu: Qemu,
  record: MigrationRecord,
  disk: DiskDef,
  source: StorageSource,
  size: number,
): Promise<string> {
  const { target } = disk
  if (source.type === 'network')
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' must be a file or a block device at the destination`)
  if (record.params.writeBack === true)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' is raw at the destination, which 'writeBack' cannot be`)
  const overlay = source.type === 'file' ? `${source.path}${OVERLAY_SUFFIX}` : overlayOf(qemu, record, target)
  if (source.type === 'block') await checkDevice(source.path, size, target)
  else refuseExisting(source.path, target)
  const image = { ...structuredClone(source), format: 'raw', backingStore: null }
  record.finals = [...(record.finals ?? []), { disk: target, image, overlay }]
  saveRecord(qemu.root, record)
  if (source.type === 'file') await createImage({ path: source.path, format: 'raw', size })
  disk.source = {
    type: 'file',
    path: overlay,
    format: 'qcow2',
    ...(source.seclabels && { seclabels: source.seclabels }),
  }
  return overlay
}

/** Beside a device there is no room. */
const overlayOf = ({ root }: Qemu, { id }: MigrationRecord, target: string): string =>
  join(root.overlayDir, `${id}-${target}.qcow2`)

async function checkDevice(path: string, size: number, target: string): Promise<void> {
  const { virtualSize } = await imageInfo(path, 'raw')
  if (virtualSize !== size)
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `device '${path}' for disk '${target}' has ${virtualSize} bytes, not ${size}`,
    )
}

/** A definition that names the raw image names the overlay as long as it is not whole. */
export function nameOverlays(def: DomainDef, { finals = [] }: MigrationRecord): void {
  for (const { disk: target, image, overlay } of finals) {
    const disk = def.disks.find((candidate) => candidate.target === target)
    if (
      disk?.source?.type === image.type &&
      'path' in disk.source &&
      'path' in image &&
      disk.source.path === image.path
    )
      disk.source = { type: 'file', path: overlay, format: 'qcow2' }
  }
}

/** The raw images that were made for a guest that will not come, and what no disk needs any more. */
export function removeFinals({ finals = [] }: MigrationRecord, all: boolean): void {
  for (const { image, overlay, done } of finals) {
    if (all || done === true) rmSync(overlay, { force: true })
    if (all && image.type === 'file') rmSync(image.path, { force: true })
  }
}
