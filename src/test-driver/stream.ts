/** Streams that move by timers, with the rules, the events and the end of the real ones. */
import type { DiskDef, StorageSource } from '../conf/domain-def.js'
import * as c from '../constants.gen.js'
import type { DomainRef, HypervisorOps, StreamDiskState, StreamOptions } from '../driver.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START } from '../stream-flags.js'
import { DISK_SIZE } from './copied.js'
import { Pull } from './pull.js'
import type { Live, TestDomain, World } from './world.js'
import { fail, findDisk, sourcePath } from './world.js'

/** ms between two events of a stream that moves */
const PROGRESS_INTERVAL = 100
/** bytes of VIR_STREAM_DISK_ONE */
const DEFAULT_UNIT = 512 * 1024

function chainOf(disk: DiskDef): StorageSource[] {
  const chain: StorageSource[] = []
  for (let image = disk.source; image; image = image.backingStore ?? undefined) chain.push(image)
  return chain
}

function checkFree(live: Live, { target }: DiskDef): void {
  if (live.pulls.has(target)) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' already in active block job`)
}

function checkStreamable(disk: DiskDef): void {
  const { target, source, device } = disk
  if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
  if (device !== 'disk' && device !== 'lun')
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is a '${device}' and cannot be streamed`)
  if (disk.readonly) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is read-only`)
  if (source.backingStore) return
  const format = source.format ?? 'raw'
  if (format !== 'qcow2' && format !== 'qed')
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' has format '${format}', which has no backing image`)
  throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no backing image, there is nothing to stream`)
}

function emitPull(world: World, ref: DomainRef, disk: DiskDef, status: number): void {
  const path = sourcePath(disk.source)
  const type = c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
  world.host.emit({ kind: 'block-job', domain: ref, disk: disk.target, path, type, status })
}

/** The images between the disk's own and `base` are no longer part of the chain. */
function cutChain(disk: DiskDef | undefined, base: string | undefined): void {
  if (disk?.source === undefined) return
  const below = base === undefined ? undefined : chainOf(disk).find((image) => sourcePath(image) === base)
  disk.source.backingStore = below ?? null
}

/** All is copied: the link goes from both definitions, and it is told. */
function detach(world: World, domain: TestDomain, disk: DiskDef, base: string | undefined): void {
  const { target } = disk
  const path = sourcePath(disk.source)
  cutChain(disk, base)
  cutChain(
    domain.config?.disks.find((other) => other.target === target && sourcePath(other.source) === path),
    base,
  )
  const size = DISK_SIZE
  world.host.emit({ kind: 'stream-progress', domain: domain.ref, disk: target, offset: size, size })
  emitPull(world, domain.ref, disk, c.VIR_DOMAIN_BLOCK_JOB_COMPLETED)
}

function start(world: World, domain: TestDomain, name: string, { base, bandwidth = 0, policy }: StreamOptions): void {
  if (policy === 'idle') throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', "policy 'idle' is not supported by this driver")
  const live = domain.requireLive()
  const disk = findDisk(live.def, name)
  checkFree(live, disk)
  checkStreamable(disk)
  const chain = chainOf(disk).slice(1)
  if (base !== undefined && !chain.some((image) => sourcePath(image) === base)) {
    const text = `could not find image '${base}' beneath '${sourcePath(disk.source)}' in chain for '${disk.target}'`
    throw fail('VIR_ERR_INVALID_ARG', text)
  }
  let told = 0
  const onTick = (pull: Pull): void => {
    if (pull.isComplete) {
      live.pulls.delete(disk.target)
      detach(world, domain, disk, base)
    } else if (performance.now() - told >= PROGRESS_INTERVAL && pull.offset > 0) {
      told = performance.now()
      const { offset, size } = pull
      world.host.emit({ kind: 'stream-progress', domain: domain.ref, disk: disk.target, offset, size })
    }
  }
  live.pulls.set(disk.target, new Pull(disk, domain.copiedOf(disk), { base, bandwidth }, onTick))
}

/** Copies one unit at or behind `offset`; answers where the next one is. When nothing is left the link goes. */
function streamUnit(
  world: World,
  domain: TestDomain,
  name: string,
  offset: number,
  { unit = DEFAULT_UNIT, base }: StreamOptions,
): number {
  const live = domain.requireLive()
  const disk = findDisk(live.def, name)
  checkFree(live, disk)
  if (base !== undefined)
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', 'single units are streamed from the whole backing chain, not to a base')
  checkStreamable(disk)
  const size = DISK_SIZE
  if (offset > size)
    throw fail('VIR_ERR_INVALID_ARG', `offset '${offset}' is behind the end of disk '${disk.target}', ${size} bytes`)
  const copied = domain.copiedOf(disk)
  const begin = copied.next(offset)
  const end = begin === size ? size : copied.copy(begin, unit)
  if (begin < size) world.host.emit({ kind: 'stream-unit', domain: domain.ref, disk: disk.target, offset: end, size })
  if (copied.next(0) === size) detach(world, domain, disk, undefined)
  return copied.next(end)
}

function requirePull(
  live: Live,
  name: string,
  code: 'VIR_ERR_OPERATION_INVALID' | 'VIR_ERR_INVALID_ARG' = 'VIR_ERR_INVALID_ARG',
): Pull {
  const { target } = findDisk(live.def, name)
  const pull = live.pulls.get(target)
  if (pull === undefined) throw fail(code, `disk '${target}' does not have an active block job`)
  return pull
}

function stop(world: World, domain: TestDomain, name: string): void {
  const live = domain.requireLive()
  const pull = requirePull(live, name)
  pull.freeze()
  live.pulls.delete(pull.disk.target)
  emitPull(world, domain.ref, pull.disk, c.VIR_DOMAIN_BLOCK_JOB_CANCELED)
}

/** The domain ends, and its streams with it. */
export function endPulls(world: World, domain: TestDomain, live: Live): void {
  for (const pull of live.pulls.values()) {
    pull.freeze()
    emitPull(world, domain.ref, pull.disk, c.VIR_DOMAIN_BLOCK_JOB_CANCELED)
  }
  live.pulls.clear()
}

function stateOf({ disk, offset, size, bandwidth }: Pull): StreamDiskState {
  const { alias: path = '', target } = disk
  return { path, offset, size, disk: target, mode: 'full', bandwidth, status: 'running' }
}

type StreamOps = Pick<
  HypervisorOps,
  | 'domainStreamDisk'
  | 'domainStreamDiskInfo'
  | 'domainBlockPull'
  | 'domainBlockRebase'
  | 'domainGetBlockJobInfo'
  | 'domainBlockJobAbort'
  | 'domainBlockJobSetSpeed'
>

/* eslint-disable @typescript-eslint/require-await -- operations are async, and nothing here has to wait */
export function streamOps(world: World): StreamOps {
  return {
    async domainStreamDisk(ref, disk, offset, flags, options) {
      if (flags === VIR_STREAM_DISK_ONE) return streamUnit(world, world.require(ref), disk, offset, options)
      if (flags === VIR_STREAM_DISK_START) start(world, world.require(ref), disk, options)
      else {
        requirePull(world.require(ref).requireLive(), disk, 'VIR_ERR_OPERATION_INVALID')
        stop(world, world.require(ref), disk)
      }
      return 0
    },
    async domainStreamDiskInfo(ref) {
      return [...world.require(ref).requireLive().pulls.values()].map(stateOf)
    },
    domainBlockPull: async (ref, disk, bandwidth) => start(world, world.require(ref), disk, { bandwidth }),
    domainBlockRebase: async (ref, disk, base, bandwidth) =>
      start(world, world.require(ref), disk, base === undefined ? { bandwidth } : { bandwidth, base }),
    async domainGetBlockJobInfo(ref, name) {
      const live = world.require(ref).requireLive()
      const pull = live.pulls.get(findDisk(live.def, name).target)
      if (pull === undefined) return undefined
      const { bandwidth, offset: cur, size: end } = pull
      return { type: c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, bandwidth, cur, end }
    },
    domainBlockJobAbort: async (ref, disk) => stop(world, world.require(ref), disk),
    async domainBlockJobSetSpeed(ref, disk, bandwidth) {
      requirePull(world.require(ref).requireLive(), disk).bandwidth = bandwidth
    },
  }
}
