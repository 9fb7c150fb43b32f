/**
 * QEMU's client for HTTP (block/curl.c, 7.2) takes note of one transfer that has ended each time that something happens on its
 * sockets. Of two that end at once the other one is heeded with whatever happens next: if nothing does, it waits for ever,
 * and who reads the same block, and everything that drains the disk. A further read of the same base makes something happen.
 */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { isCurl, remoteImages } from './link-watch.js'
import type { NbdExports } from './nbd-exports.js'
import type { Puller } from './puller.js'

/** bytes of such a read; the client reads further by itself, so that its sockets have something to say several times */
const LENGTH = 64 * 1024
/** ms between two looks, and without an answer until requests count as lost */
const INTERVAL = 150
/** reads under way at most */
const MOST = 4
/** ms that the last ones get: QEMU gives up a transfer after 5 s */
const LAST = 10_000

/** The export of a base beside that of its disk: `vs-vda-base`. */
const baseTarget = (target: string): string => `${target}-base`

export const hasLostRequests = (disk: DiskDef): boolean => remoteImages(disk).some(isCurl)

/** Wakes what QEMU has lost of the requests of a pull, and of a guest that reads beside it. */
export class Waker {
  readonly #exports: NbdExports
  readonly #base: DiskDef
  readonly #puller: Puller
  #reads = 0
  #offset = 0
  #timer: NodeJS.Timeout | undefined

  constructor(exports: NbdExports, disk: DiskDef, puller: Puller) {
    this.#exports = exports
    this.#base = { ...disk, target: baseTarget(disk.target), source: curlImage(disk) }
    this.#puller = puller
  }

  /** Before the first request: QEMU drains the base to export it. Then it looks until `stop`. */
  async watch(): Promise<void> {
    await this.#exports.open(this.#base)
    if (this.#puller.aborted) return
    let answered = this.#puller.answered
    this.#timer = setInterval(() => {
      const moves = this.#puller.answered !== answered
      answered = this.#puller.answered
      const { inFlight, full, stuck } = this.#puller
      if (!moves && inFlight > 0 && !full && !stuck) void this.#read()
    }, INTERVAL)
    this.#timer.unref()
  }

  /** Nothing is under way any more, of the guest's either: what it has asked for before is answered. False: not in time. */
  async stop(): Promise<boolean> {
    clearInterval(this.#timer)
    const end = performance.now() + LAST
    do {
      const read = this.#read()
      await Promise.race([read, new Promise((resolve) => setTimeout(resolve, INTERVAL))])
    } while (this.#reads > 0 && performance.now() < end)
    if (this.#reads > 0) return false
    await this.#exports.remove(this.#base.target)
    return true
  }

  async #read(): Promise<void> {
    if (this.#reads >= MOST) return
    this.#reads++
    try {
      const client = await this.#exports.open(this.#base)
      const length = Math.min(LENGTH, client.size)
      // not where it has read before: that it would know by heart
      this.#offset = (this.#offset + 61 * LENGTH) % Math.max(1, client.size - length)
      await client.read(this.#offset, length)
    } catch {
      // an error is an answer too; a base that is away is told of by those who watch the stream
    } finally {
      this.#reads--
    }
  }
}

function curlImage(disk: DiskDef): StorageSource {
  const image = remoteImages(disk).find(isCurl)
  if (image === undefined) throw new Error(`no image of disk '${disk.target}' is reached over HTTP`)
  return image
}

/** After a stream: what a process that was killed in it has left. `images` are those that it was about. */
export async function removeBaseExport(
  exports: NbdExports,
  { target }: DiskDef,
  images: readonly StorageSource[],
): Promise<void> {
  if (images.some(isCurl)) await exports.remove(baseTarget(target))
}
