import { existsSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import type { DiskDef } from '../conf/domain-def.js'
import { native } from '../native.js'
import { NbdClient } from '../nbd/client.js'
import { formatNodeName } from './blockdev.js'
import type { Monitor } from './monitor.js'

const exportId = (target: string): string => `vs-${target}`

/**
 * Read-only exports of a running domain's disks from the NBD server embedded in its QEMU, on a private socket that it got
 * as a descriptor, and our own connections to them. A request through an export never drains the disk, so that it cannot
 * freeze the guest while a base does not answer.
 */
export class NbdExports {
  readonly #monitor: Monitor
  readonly #socket: string
  readonly #clients = new Map<string, NbdClient>()

  constructor(monitor: Monitor, runDir: string) {
    this.#monitor = monitor
    this.#socket = join(runDir, 'nbd.sock')
  }

  /** Exports the disk and connects to it; one that an earlier process left is taken over. */
  async open(disk: DiskDef): Promise<void> {
    if (disk.source === undefined || this.#clients.has(disk.target)) return
    await this.#startServer()
    const id = exportId(disk.target)
    const present = (await this.#monitor.queryBlockExports()).some((candidate) => candidate.id === id)
    if (!present) await this.#monitor.blockExportAdd(id, formatNodeName(disk.source))
    const socket = new Socket({ fd: native.connectUnix(this.#socket), readable: true, writable: true })
    socket.unref()
    this.#clients.set(disk.target, await NbdClient.connect(socket, { export: id }))
  }

  async #startServer(): Promise<void> {
    if (existsSync(this.#socket)) return
    const listener = native.listenUnix(this.#socket, 0o600, 16)
    try {
      await this.#monitor.nbdServerStart(listener)
    } finally {
      native.close(listener)
    }
  }

  /** What the disk's image holds in QEMU's caches goes to the host's storage. */
  async flush(target: string): Promise<void> {
    await this.#clients.get(target)?.flush()
  }

  /** Ends the connection and the export; the server stays for the next one. */
  async remove(target: string): Promise<void> {
    const client = this.#clients.get(target)
    if (client === undefined) return
    this.#clients.delete(target)
    await client.disconnect().catch(() => undefined)
    await this.#monitor.blockExportDel(exportId(target))
  }

  /** Our connections end, the exports stay: another process may take them over. */
  close(): void {
    for (const client of this.#clients.values()) client.destroy()
    this.#clients.clear()
  }
}
