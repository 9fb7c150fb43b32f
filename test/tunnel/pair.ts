/** Two ends of a tunnel, in one process. */
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { ClientOptions, ServerOptions } from '../../src/tunnel/options.js'
import { Tunnel } from '../../src/tunnel/tunnel.js'
import type { Cleanup } from '../support/images.js'
import { pipe, type PipeFaults } from '../nbd/pipe.js'

export interface PairOptions {
  client?: ClientOptions
  server?: Partial<ServerOptions>
  /** of what the client sends */
  faults?: PipeFaults
  /** of what the server sends; default: as `faults` */
  faultsBack?: PipeFaults
}

/** A client and a server that let each other in, joined in memory. */
export async function tunnelPair(t: Cleanup, options: PairOptions = {}): Promise<[client: Tunnel, server: Tunnel]> {
  return await tunnelOver(t, pipe(options.faults, options.faultsBack), options)
}

export async function tunnelOver(
  t: Cleanup,
  [near, far]: readonly [Duplex, Duplex],
  options: PairOptions = {},
): Promise<[client: Tunnel, server: Tunnel]> {
  const tunnels = await Promise.all([
    Tunnel.client(near, options.client),
    Tunnel.server(far, { authorize: () => undefined, ...options.server }),
  ])
  t.after(() => {
    for (const tunnel of tunnels) tunnel.destroy()
  })
  return tunnels
}

/** All that comes until the end. */
export async function readAll(stream: Duplex): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

/** Two ends of a TCP connection over loopback. */
export async function socketPair(t: Cleanup): Promise<[Socket, Socket]> {
  const server = createServer().listen(0, '127.0.0.1')
  t.after(() => void server.close())
  await once(server, 'listening')
  const accepted = once(server, 'connection') as Promise<[Socket]>
  const near = connect((server.address() as AddressInfo).port, '127.0.0.1')
  const [far] = await accepted
  return [near, far]
}
