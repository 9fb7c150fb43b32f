import { connect, isIP, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { isLoopback, parseTunnelUri, type TunnelAddress } from './address.js'
import { descriptorOf, tuneTcp } from './carrier.js'
import { asTunnelError, TunnelError } from './error.js'
import { native } from '../native.js'
import type { Peer } from './peer.js'
import { distinguishedName, loadCredentials, tlsOptions, type Credentials } from './pki.js'
import type { ClientOptions } from './options.js'
import { Tunnel } from './tunnel.js'

export interface DialOptions extends ClientOptions {
  /** ms until there is a connection, TLS included; default 10 000 */
  connectTimeout?: number
  /** of the client; default: read from the URI's pkipath or where libvirt keeps them */
  credentials?: Credentials
  signal?: AbortSignal
}

/**
 * Connects to where a tunnel is listened for. Rejects with TunnelError: EINVAL (URI, certificates that can't be read),
 * ECONNREFUSED (nobody there), EACCES (refused, or the server's certificate is not to be trusted), ETIMEDOUT; or with what
 * the signal was aborted with.
 */
export async function dial(uri: string, options: DialOptions = {}): Promise<Tunnel> {
  const address = parseTunnelUri(uri)
  const { signal } = options
  signal?.throwIfAborted()
  const socket = await startConnecting(address, options)
  // one that fails may say so twice: TLS, and the connection below it
  socket.on('error', () => undefined)
  const abort = (): void => void socket.destroy(signal?.reason as Error)
  signal?.addEventListener('abort', abort)
  // while certificates were read
  if (signal?.aborted === true) abort()
  try {
    await connected(socket, address, options.connectTimeout ?? 10_000)
    const tunnel = await Tunnel.client(socket, options, peerOf(socket, address))
    signal?.throwIfAborted()
    return tunnel
  } catch (error) {
    socket.destroy()
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

async function startConnecting(address: TunnelAddress, options: DialOptions): Promise<Socket> {
  if (address.kind === 'unix') return connect({ path: address.path, allowHalfOpen: true })
  const { host, port } = address
  if (address.kind === 'tcp') return connect({ host, port, allowHalfOpen: true })
  const credentials = options.credentials ?? (await loadCredentials('client', address.pkipath))
  // an address has no name that the server could choose its certificate by
  const servername = isIP(host) === 0 ? { servername: host } : {}
  const socket = connect({ host, port })
  socket.once('connect', () => tuneTcp(socket))
  try {
    const secure = connectTls({ socket, ...tlsOptions(credentials), ...servername, host })
    // a connection that fails is told of by the socket below
    socket.on('error', (error) => secure.destroy(error))
    return secure
  } catch (error) {
    socket.destroy()
    throw asTunnelError(error, 'EINVAL', 'the certificates cannot be used')
  }
}

function connected(socket: Socket, address: TunnelAddress, timeout: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const late = new TunnelError('ETIMEDOUT', `no connection within ${timeout} ms`)
    const timer = setTimeout(() => socket.destroy(late), timeout)
    const failed = (error: Error): void => {
      clearTimeout(timer)
      reject(asTunnelError(error, refusalOf(error), 'cannot connect'))
    }
    const gone = (): void =>
      failed(new TunnelError('ECONNRESET', 'cannot connect: the other side closed the connection'))
    socket.once('error', failed)
    socket.once('close', gone)
    socket.once(address.kind === 'tls' ? 'secureConnect' : 'connect', () => {
      clearTimeout(timer)
      socket.off('error', failed)
      socket.off('close', gone)
      if (address.kind === 'tcp') tuneTcp(socket)
      resolve()
    })
  })
}

/** What keeps a connection from coming about: the network, or certificates. */
function refusalOf(error: Error): 'ECONNREFUSED' | 'EACCES' {
  return 'syscall' in error ? 'ECONNREFUSED' : 'EACCES'
}

function peerOf(socket: Socket, address: TunnelAddress): Peer {
  if (address.kind === 'unix') {
    const fd = descriptorOf(socket)
    return { kind: 'unix', credentials: fd === undefined ? undefined : native.peerCredentials(fd) }
  }
  const remote = socket.remoteAddress ?? address.host
  if (address.kind === 'tls') return { kind: 'tls', address: remote, dn: distinguishedName(socket as never) }
  if (!isLoopback(remote)) throw new TunnelError('EINVAL', `'${remote}' is not on this machine`)
  return { kind: 'tcp', address: remote }
}
