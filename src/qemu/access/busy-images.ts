/** QEMU locks the images that it opens, and refuses those that another has; who that is it does not know. */
import type { DiskDef } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { nameUsers } from '../../locking/image-users.js'
import { imageTarget } from './targets.js'
import { chainOf } from '../blocks/block-graph.js'

const fail = failFrom('VIR_FROM_QEMU')

const REFUSAL = /Failed to get (?:shared )?"[^"]*" lock|Failed to lock byte/
/** in the words of QEMU's block/file-posix.c */
const NAMED = /Is another process using the image \[(.*)\]\?/

/**
 * VIR_ERR_RESOURCE_BUSY with the holder's name, when `words` are QEMU's about one of these images, which it could not lock;
 * otherwise undefined. libvirt would hand on QEMU's words as an internal error.
 */
export function busyImage(words: string, images: readonly string[], cause: unknown): Error | undefined {
  if (!REFUSAL.test(words)) return undefined
  // on its monitor QEMU names none: then it is the only one, or the first that anyone has
  const path = NAMED.exec(words)?.[1] ?? images.find((one) => images.length === 1 || nameUsers(one) !== undefined)
  if (path === undefined) return undefined
  return fail('VIR_ERR_RESOURCE_BUSY', `image '${path}' is in use by ${nameUsers(path) ?? 'another process'}`, cause)
}

/** Paths of all images of these disks. */
export function imagePaths(disks: readonly DiskDef[]): string[] {
  return disks.flatMap((disk) => chainOf(disk).flatMap((image) => imageTarget(disk, image)?.path ?? []))
}
