/** What stands against streaming a disk, said before anything is changed. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { chainOf, sourcePath } from '../blocks/block-graph.js'
import { isRemote, linkProblem, remoteImages } from '../blocks/link-watch.js'

const fail = failFrom('VIR_FROM_QEMU')

/** The image that is to stay below `disk`, named by its path. */
export function findBase(disk: DiskDef, path: string): StorageSource {
  const base = chainOf(disk)
    .slice(1)
    .find((image) => sourcePath(image) === path || formatBackingString(image) === path)
  if (base === undefined) {
    const text = `could not find image '${path}' beneath '${sourcePath(disk.source)}' in chain for '${disk.target}'`
    throw fail('VIR_ERR_INVALID_ARG', text)
  }
  return base
}

/** Between the disk's own image and the base that stays nothing is guarded, so a link that can break must not lie there. */
export function checkUnguarded(disk: DiskDef, base: StorageSource): void {
  const chain = chainOf(disk)
  const remote = chain.slice(1, chain.indexOf(base)).find(isRemote)
  if (remote === undefined) return
  const text = `image '${formatBackingString(remote)}' above base '${sourcePath(base)}' is remote; only the whole chain of '${disk.target}' can be streamed safely`
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
}

export async function checkLinks(disk: DiskDef): Promise<void> {
  for (const image of remoteImages(disk)) {
    const problem = await linkProblem(image)
    if (problem !== undefined)
      throw fail(
        'VIR_ERR_OPERATION_FAILED',
        `base '${formatBackingString(image)}' of disk '${disk.target}' does not answer: ${problem}`,
      )
  }
}
