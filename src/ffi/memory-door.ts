/** A socket at which a QEMU that is not ours finds the way of its memory. */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { MemoryWay } from '../migration/memory-way.js'
import { native } from '../native.js'
import { joinDuplex } from '../tunnel/join.js'

/** libvirtd gives the socket to the user of its QEMU, who must find it: nobody else can open it, or list the folder. */
const PASS_THROUGH = 0o711

export class MemoryDoor implements AsyncDisposable {
  readonly #folder: string
  readonly #way: MemoryWay
  readonly #server: Server
  #used = false

  private constructor(folder: string, way: MemoryWay, server: Server) {
    this.#folder = folder
    this.#way = way
    this.#server = server
  }

  /** Whoever comes first is joined to the channel. */
  static open(way: MemoryWay): MemoryDoor {
    const folder = mkdtempSync(join(tmpdir(), 'virstream-memory-'))
    chmodSync(folder, PASS_THROUGH)
    const server = createServer({ allowHalfOpen: true })
    const door = new MemoryDoor(folder, way, server)
    server.on('connection', (socket) => {
      door.#used = true
      server.close()
      // the QEMU at either side says what went wrong
      joinDuplex(way.channel, socket, way.through).catch(() => undefined)
    })
    server.listen({ fd: native.listenUnix(door.#path, 0o600, 1) })
    return door
  }

  get #path(): string {
    return join(this.#folder, 'socket')
  }

  /** as QEMU knows it */
  get uri(): string {
    return `unix://${this.#path}`
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#server.close()
    if (!this.#used) this.#way.channel.destroy()
    rmSync(this.#folder, { recursive: true, force: true })
    return Promise.resolve()
  }
}
