/** The state of a domain that its next start goes on from. */
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DiskDef } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import type { Qemu } from './qemu.js'
import { isIncomplete } from './save-file.js'
import type { Vm } from './vm.js'

const fail = failFrom('VIR_FROM_QEMU')

export const managedSavePath = (qemu: Qemu, vm: Vm): string => join(qemu.root.saveDir, `${vm.name}.save`)

/** One that was begun and never finished holds no state, and does not count. */
export function hasManagedSave(qemu: Qemu, vm: Vm): boolean {
  const path = managedSavePath(qemu, vm)
  return existsSync(path) && !isIncomplete(path)
}

export function discardManagedSave(qemu: Qemu, vm: Vm): void {
  rmSync(managedSavePath(qemu, vm), { force: true })
}

/** A saved guest goes on with the backing images that it had. */
export function refuseSaved(qemu: Qemu, vm: Vm, disk: DiskDef): void {
  if (!existsSync(managedSavePath(qemu, vm))) return
  const text = `domain '${vm.name}' has a managed save image, whose definition names the backing images of '${disk.target}'`
  throw fail('VIR_ERR_OPERATION_INVALID', text)
}
