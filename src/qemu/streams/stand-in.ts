/**
 * QEMU's requests to an NBD server that is gone wait for somebody at its address, and nothing else makes them end. Where that
 * address can be had on this host (a unix socket, a port of the host itself) we stand in for the server, out of what is
 * at its new place, until QEMU reads from there by itself.
 */
import { open } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { native } from '../../native.js'
import { NbdClient } from '../../nbd/client.js'
import type { NbdServed } from '../../nbd/served.js'
import { serveNbd } from '../../nbd/server.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { isListenedOn } from '../../util/listened-on.js'
import { removeSocket } from '../access/targets.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import type { StreamHost, Vm } from '../core/vm.js'
import { dial } from '../blocks/link-watch.js'

const fail = failFrom('VIR_FROM_QEMU')

type NetworkSource = Extract<StorageSource, { type: 'network' }>

/** ms: QEMU tries again after 1, 2, 4, 8 and then every 16 seconds */
const LONGEST_RETRY = 18_000
/** ms that QEMU's requests get to be answered once it is connected */
const ANSWERS = 300
/** ms for a server to answer our greeting */
const GREETING = 2_000

export class StandIn implements AsyncDisposable {
  readonly #server: Server
  readonly #content: Content
  readonly #sockets = new Set<Socket>()
  #connected = false
  readonly #leave: () => Promise<void>

  private constructor(server: Server, name: string, content: Content, leave: () => Promise<void>) {
    this.#server = server
    this.#content = content
    this.#leave = leave
    const exports = new Map([[name, content.served]])
    server.on('connection', (socket) => {
      this.#connected = true
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      // how a connection ends tells us nothing
      serveNbd(socket, exports).catch(() => undefined)
    })
  }

  /**
   * Listens where `at` was, for what `host` waits for, and serves what is in `from`. VIR_ERR_OPERATION_INVALID when that place
   * cannot be had here, or `from` is reached in a way that we cannot read.
   */
  static async open(vm: Vm, host: StreamHost, at: NetworkSource, from: StorageSource): Promise<StandIn> {
    const content = await openContent(from)
    try {
      const place = at.hosts[0]
      const path = place?.transport === 'unix' ? place.socket : undefined
      const server = createServer()
      if (path === undefined) await listen(server, { host: place?.name ?? '', port: place?.port ?? 10809 })
      else await listenAt(server, path, vm, host)
      const leave = (): Promise<void> => (path === undefined ? Promise.resolve() : leaveSocket(vm, host, path))
      return new StandIn(server, at.name ?? '', content, leave)
    } catch (error) {
      await content.close()
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        `requests wait for base '${formatBackingString(at)}', and nobody can answer them in its place here: ${messageOf(error)}`,
        error,
      )
    }
  }

  /** Resolves when QEMU's requests have been answered, or there are none. */
  async answered(): Promise<void> {
    const end = performance.now() + LONGEST_RETRY
    while (!this.#connected && performance.now() < end) await delay(50)
    if (this.#connected) await delay(ANSWERS)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    for (const socket of this.#sockets) socket.destroy()
    await closed
    await this.#leave()
    await this.#content.close()
  }
}

interface Content {
  served: NbdServed
  close: () => Promise<unknown>
}

async function openContent(from: StorageSource): Promise<Content> {
  if (from.type !== 'network') {
    const file = await open(from.path, 'r')
    const { size } = await file.stat()
    const read = async (offset: number, length: number): Promise<Buffer> => {
      const bytes = Buffer.alloc(length)
      await file.read(bytes, 0, length, offset)
      return bytes
    }
    return { served: { size, read }, close: () => file.close() }
  }
  if (from.protocol !== 'nbd')
    throw fail(
      'VIR_ERR_OPERATION_INVALID',
      `requests wait for the former base, and '${from.protocol}' cannot answer them`,
    )
  const client = await greet(from)
  const read = (offset: number, length: number): Promise<Buffer> => client.read(offset, length)
  return { served: { size: client.size, read }, close: () => client.disconnect() }
}

/** A connection to an NBD server that has agreed to serve us. */
async function greet(source: NetworkSource): Promise<NbdClient> {
  const signal = AbortSignal.timeout(GREETING)
  return NbdClient.connect(dial(source), { export: source.name ?? '', signal })
}

/** Whether the NBD server of `source` serves: one that hangs still takes connections. */
export async function isServed(source: NetworkSource): Promise<boolean> {
  try {
    await (await greet(source)).disconnect()
    return true
  } catch {
    return false
  }
}

async function listenAt(server: Server, path: string, vm: Vm, host: StreamHost): Promise<void> {
  // what a server that was killed leaves behind; one that lives has been found out before
  removeSocket(path)
  host.standIn = path
  saveStatus(vm, host)
  const fd = host.access.listen(path, 16)
  try {
    await host.access.grantRuntime(path)
    await listen(server, { fd })
  } catch (error) {
    native.close(fd)
    await leaveSocket(vm, host, path)
    throw error
  }
}

/** The place is free for the server that was there. */
async function leaveSocket(vm: Vm, host: StreamHost, path: string): Promise<void> {
  await host.access.revokeRuntime(path)
  removeSocket(path)
  delete host.standIn
  if (vm.host === host) saveStatusOrSay(vm, host, () => undefined)
}

/** A process that was killed has left a socket of this `path`: with it many a server would not come up again. */
export async function removeLeftSocket(path: string): Promise<void> {
  if (!(await isListenedOn(path))) removeSocket(path)
}

function listen(server: Server, where: { fd: number } | { host: string; port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(where, () => resolve())
  })
}
