/** QEMU's monitor through libvirt. libvirt marks the domain as tainted ('custom-monitor'). */
import type { SeenDisk } from '../conf/glance.js'
import { failFrom } from '../error.js'
import type { Connection } from './connection.js'
import { fillIn } from './numbers.js'
import { monitorCommand } from './passthrough.js'

const fail = failFrom('VIR_FROM_QEMU')

interface Reply {
  return?: unknown
  error?: { class: string; desc: string }
}

interface Block {
  qdev?: string
  inserted?: { 'node-name'?: string; image?: { 'cluster-size'?: number } }
}

export class Monitor {
  readonly #conn: Connection
  readonly #domain: bigint

  constructor(conn: Connection, domain: bigint) {
    this.#conn = conn
    this.#domain = domain
  }

  /** What QEMU answers; VIR_ERR_OPERATION_FAILED with its words when it refuses. `fds` go along (libvirt 8.2, local only). */
  async run(execute: string, args: object, fds: readonly number[] = []): Promise<unknown> {
    const command = JSON.stringify({ execute, arguments: args })
    const text =
      fds.length === 0 ? await monitorCommand(this.#conn, this.#domain, command, 0) : await this.#send(command, fds)
    const reply = JSON.parse(text) as Reply
    if (reply.error !== undefined)
      throw fail('VIR_ERR_OPERATION_FAILED', `QEMU refuses '${execute}': ${reply.error.desc}`)
    return reply.return
  }

  /** The node of the disk's own image, whose name cannot be foretold, and the bytes of its clusters. */
  async imageOf({ alias, target }: SeenDisk): Promise<{ node: string; cluster: number }> {
    const blocks = (await this.run('query-block', {})) as Block[]
    const inserted = blocks.find(({ qdev }) => aliasOf(qdev) === alias)?.inserted
    const node = inserted?.['node-name']
    if (alias === undefined || node === undefined)
      throw fail('VIR_ERR_OPERATION_INVALID', `QEMU has no device for disk '${target}'`)
    return { node, cluster: inserted?.image?.['cluster-size'] ?? 1 }
  }

  async #send(command: string, fds: readonly number[]): Promise<string> {
    const [files, none, list, out] = [new Uint8Array(Int32Array.from(fds).buffer), fillIn(4), fillIn(8), fillIn(8)]
    await this.#conn.call(
      'virDomainQemuMonitorCommandWithFiles',
      this.#domain,
      command,
      fds.length,
      files,
      none.bytes,
      list.bytes,
      out.bytes,
      0,
    )
    return this.#conn.lib.takeText(out.address(0))
  }
}

/** 'virtio-disk0' of '/machine/peripheral/virtio-disk0/virtio-backend' and of 'virtio-disk0'. */
function aliasOf(qdev: string | undefined): string | undefined {
  return qdev?.replace(/^\/machine\/peripheral\//, '').replace(/\/.*$/, '')
}
