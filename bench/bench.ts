/** What the benchmarks share: folders that go away, domains without a guest, files out of the page cache. */
import { randomUUID } from 'node:crypto'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { Connect } from '../src/index.js'
import { run } from '../src/util/run.js'
import { temporaryFolder, type Cleanup } from '../test/support/images.js'
import type { Table } from './report.js'

export const MiB = 1024 * 1024

export interface BenchOptions {
  rounds: number
  /** bytes of the base image */
  size: number
}

export type Bench = (t: Cleanup, options: BenchOptions) => Promise<Table[]>

export interface BenchRoot {
  folder: string
  root: string
  conn: Connect
}

export async function benchRoot(t: Cleanup): Promise<BenchRoot> {
  const folder = await temporaryFolder(t)
  const root = join(folder, 'root')
  const conn = await Connect.open(`qemu:///embed?root=${root}`)
  t.after(async () => {
    for (const dom of await conn.listAllDomains()) if (await dom.isActive()) await dom.destroy()
    await conn.close()
  })
  return { folder, root, conn }
}

/** XML of a domain that has one qcow2 disk and nothing to boot. */
export function emptyDomain(image: string): string {
  return `<domain type='qemu'>
  <name>bench</name>
  <uuid>${randomUUID()}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>`
}

/** A raw image without holes, its bytes not compressible by luck. */
export async function denseImage(folder: string, size: number): Promise<string> {
  const path = join(folder, 'base.raw')
  const words = new Uint32Array(MiB / 4)
  const file = await open(path, 'w')
  try {
    for (let at = 0, x = 1; at < size; at += MiB) {
      for (let i = 0; i < words.length; i++) {
        x ^= x << 13
        x ^= x >>> 17
        x ^= x << 5
        words[i] = x
      }
      await file.write(Buffer.from(words.buffer), 0, MiB, at)
    }
    await file.sync()
  } finally {
    await file.close()
  }
  return path
}

/** Takes a file out of the page cache (posix_fadvise, by dd). */
export async function evict(path: string): Promise<void> {
  await run('dd', [`if=${path}`, 'iflag=nocache', 'count=0', 'status=none'])
}

/** Brings a file into the page cache. */
export async function warm(path: string): Promise<void> {
  await run('dd', [`if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none'], { timeout: 600_000 })
}

/** ms that `work` takes */
export async function time(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await work()
  return performance.now() - began
}
