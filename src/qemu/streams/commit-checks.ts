/** What is to be committed, and what stands against that, said in libvirt's words before anything is changed. */
import { dirname, isAbsolute, join } from 'node:path'
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { failFrom } from '../../error.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { probeImage } from '../../storage/probe.js'
import { chainBelow, chainOf, sourcePath } from '../blocks/block-graph.js'
import type { CommitRecord } from '../blocks/blockjob.js'
import { isRemote } from '../blocks/link-watch.js'

const fail = failFrom('VIR_FROM_QEMU')

/** The images that a commit is about. */
export interface CommitImages {
  top: StorageSource
  base: StorageSource
  /** the image above `top`; undefined: there is none, `top` is the disk's own */
  parent: StorageSource | undefined
  /** from `top` down to the one above `base`, which go */
  leaving: StorageSource[]
}

/** By their indexes, as long as the chain has them all; the disk may have pivoted. */
export function commitImages(disk: DiskDef, { top, base }: CommitRecord): CommitImages | undefined {
  const chain = chainOf(disk)
  const [from, to] = [top, base].map((index) => chain.findIndex((image) => image.index === index))
  if (from === undefined || to === undefined || from < 0 || to <= from) return undefined
  const [first, last] = [chain[from], chain[to]]
  if (first === undefined || last === undefined) return undefined
  return { top: first, base: last, parent: chain[from - 1], leaving: chain.slice(from, to) }
}

/** virDomainBlockCommit's arguments as images of the disk's chain. */
export function chooseImages(
  disk: DiskDef,
  given: { base: string | undefined; top: string | undefined },
  flags: number,
): CommitImages {
  const { source, target } = disk
  const has = (flag: number): boolean => (flags & flag) !== 0
  if (source === undefined) throw fail('VIR_ERR_INVALID_ARG', `disk '${target}' has no source file to be committed`)
  const chain = chainOf(disk)
  const top = given.top === undefined || given.top === target ? source : find(disk, chain, given.top, undefined)
  const active = has(c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
  if (top === source && !active)
    throw fail('VIR_ERR_INVALID_ARG', `commit of '${target}' active layer requires active flag`)
  if (top !== source && active)
    throw fail('VIR_ERR_INVALID_ARG', `active commit requested but '${sourcePath(top)}' is not active`)
  const below = chainBelow(top)
  const shallow = has(c.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW)
  const last = shallow ? below[0] : below.at(-1)
  const base = given.base === undefined ? last : find(disk, below, given.base, top)
  if (base === undefined) throw fail('VIR_ERR_INVALID_ARG', `could not find base image in chain for '${target}'`)
  if (shallow && base !== below[0]) {
    const text = `base '${sourcePath(base)}' is not immediately below '${sourcePath(top)}' in chain for '${target}'`
    throw fail('VIR_ERR_INVALID_ARG', text)
  }
  const at = chain.indexOf(top)
  return { top, base, parent: chain[at - 1], leaving: chain.slice(at, chain.indexOf(base)) }
}

/** By path, as headers name it, or by index ('vda[3]'). */
function find(
  { target, source }: DiskDef,
  images: readonly StorageSource[],
  name: string,
  above: StorageSource | undefined,
): StorageSource {
  const [, disk, index] = /^([^[\]]+)\[(\d+)\]$/.exec(name) ?? []
  const byIndex = disk === target && index !== undefined
  const found = images.find((image) =>
    byIndex ? image.index === Number(index) : sourcePath(image) === name || formatBackingString(image) === name,
  )
  if (found !== undefined && (found !== source || above === undefined)) return found
  const what = byIndex ? `backing store index '${index}'` : `image '${name}'`
  const beneath = above === undefined ? '' : ` beneath '${sourcePath(above)}'`
  throw fail('VIR_ERR_INVALID_ARG', `could not find ${what}${beneath} in chain for '${target}'`)
}

/**
 * The guard has to go for the time of a commit, and images are written to that were only read. What is below the base stays as
 * it is, and may be anywhere, unless each read of the guest asks it for block status.
 */
export function checkCommittable(disk: DiskDef, { base, leaving, parent }: CommitImages): void {
  if (disk.readonly || disk.device === 'cdrom')
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${disk.target}' is read-only, nothing can be committed`)
  const written = [...leaving, base, ...(parent === undefined ? [] : [parent])]
  const below = disk.driver.copyOnRead === 'on' ? chainBelow(base) : []
  const remote = [...written, ...below].find(isRemote)
  if (remote === undefined) return
  const text = `image '${formatBackingString(remote)}' of disk '${disk.target}' is remote, only local ones can be committed safely`
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
}

/** Where `base` is, as seen from the image above `top`, when all headers on the way there are relative. */
export async function relativeBase({ parent, leaving }: CommitImages): Promise<string | undefined> {
  if (parent === undefined) return undefined
  let path = '.'
  for (const image of [parent, ...leaving]) {
    const { backing } = await probeImage(image)
    if (backing === undefined || isAbsolute(backing.string) || /^[^/]*:/.test(backing.string))
      throw fail('VIR_ERR_OPERATION_INVALID', "can't keep relative backing relationship")
    path = join(dirname(path), backing.string)
  }
  return path
}
