/** One end of a measured transfer, a process of its own: `bench/tunnel.ts` tells it by messages what to do. */
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { connect as connectTls, createServer as createTlsServer } from 'node:tls'
import { tuneTcp } from '../src/tunnel/carrier.js'
import { loadCredentials, tlsOptions } from '../src/tunnel/pki.js'
import { Tunnel } from '../src/tunnel/tunnel.js'

export type Carrying = 'direct' | 'tunnel'

export type Order =
  | { do: 'listen'; host: string; way: Carrying; pkipath: string | undefined }
  | { do: 'send'; host: string; port: number; way: Carrying; pkipath: string | undefined; bytes: number }
  | { do: 'cpu' }

export interface Transfer {
  ms: number
  cpuMs: number
  /** ms that each request of 64 bytes took meanwhile */
  pings: number[]
}

const PING = Buffer.alloc(64)
const BLOCK = Buffer.alloc(64 * 1024, 'virstream')

/** Counts to the end, then says how much it was. */
function sink(stream: Duplex): void {
  let length = 0
  stream.on('error', () => undefined)
  stream.on('data', (bytes: Buffer) => (length += bytes.length))
  stream.on('end', () => stream.end(String(length)))
}

function echo(stream: Duplex): void {
  stream.on('error', () => undefined)
  stream.pipe(stream)
}

async function listen({ host, way, pkipath }: Order & { do: 'listen' }): Promise<number> {
  let connections = 0
  const take = (socket: Socket): void => {
    socket.on('error', () => undefined)
    if (way === 'tunnel') void serveTunnel(socket)
    else if (connections++ % 2 === 0) sink(socket)
    else echo(socket)
  }
  const server =
    pkipath === undefined
      ? createServer({ allowHalfOpen: true, noDelay: true }, take)
      : createTlsServer(
          { ...tlsOptions(await loadCredentials('server', pkipath)), requestCert: true, allowHalfOpen: true },
          take,
        )
  server.on('connection', (socket: Socket) => {
    if (way === 'tunnel') tuneTcp(socket)
  })
  server.listen(0, host)
  await once(server, 'listening')
  const address = server.address()
  return typeof address === 'object' ? (address?.port ?? 0) : 0
}

async function serveTunnel(socket: Socket): Promise<void> {
  const tunnel = await Tunnel.server(socket, { authorize: () => undefined })
  tunnel.onOpen = (request) => (request.service === 'echo' ? echo(request.accept()) : sink(request.accept()))
}

async function connected(order: Order & { do: 'send' }): Promise<Socket> {
  const { host, port, way, pkipath } = order
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
  await once(socket, 'connect')
  if (way === 'tunnel') tuneTcp(socket)
  if (pkipath === undefined) return socket
  const secure = connectTls({
    socket,
    ...tlsOptions(await loadCredentials('client', pkipath)),
    servername: 'localhost',
  })
  await once(secure, 'secureConnect')
  return secure
}

/** The two streams of a transfer: bulk, and requests. */
async function streams(order: Order & { do: 'send' }): Promise<[bulk: Duplex, requests: Duplex, end: () => void]> {
  if (order.way === 'direct') {
    const bulk = await connected(order)
    const requests = await connected(order)
    return [bulk, requests, () => requests.destroy()]
  }
  const tunnel = await Tunnel.client(await connected(order))
  return [await tunnel.open('sink'), await tunnel.open('echo'), () => tunnel.destroy()]
}

async function send(order: Order & { do: 'send' }): Promise<Transfer> {
  const [bulk, requests, end] = await streams(order)
  const cpu = process.cpuUsage()
  const began = performance.now()
  const pinging = new AbortController()
  const pings = ping(requests, pinging.signal)
  for (let left = order.bytes; left > 0; left -= BLOCK.length)
    if (!bulk.write(BLOCK.subarray(0, left))) await once(bulk, 'drain')
  bulk.end()
  const [answer] = (await once(bulk, 'data')) as [Buffer]
  const ms = performance.now() - began
  pinging.abort()
  if (answer.toString() !== String(order.bytes)) throw new Error(`${answer.toString()} of ${order.bytes} bytes arrived`)
  const { user, system } = process.cpuUsage(cpu)
  const times = await pings
  end()
  return { ms, cpuMs: (user + system) / 1000, pings: times }
}

async function ping(stream: Duplex, signal: AbortSignal): Promise<number[]> {
  const times: number[] = []
  do {
    const began = performance.now()
    stream.write(PING)
    for (let got = 0; got < PING.length;) got += ((await once(stream, 'data')) as [Buffer])[0].length
    times.push(performance.now() - began)
  } while (!signal.aborted)
  return times
}

async function carryOut(order: Order): Promise<unknown> {
  if (order.do === 'listen') return await listen(order)
  if (order.do === 'send') return await send(order)
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

process.on('message', (order: Order) => {
  carryOut(order).then(
    (result) => process.send?.({ result }),
    (error: unknown) => process.send?.({ error: String(error) }),
  )
})
process.on('disconnect', () => process.exit())
