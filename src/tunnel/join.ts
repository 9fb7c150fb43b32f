/** Joins streams to streams: a channel to a socket, to a descriptor that a program gets, to a unix path. */
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { connect, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { native } from '../native.js'
import { isListenedOn } from '../util/listened-on.js'
import { asTunnelError, TunnelError } from './error.js'
import type { ChannelRequest } from './requests.js'

/** Streams that the bytes go through on their way to either side: each is the caller's to make, for one join. */
export interface Through {
  readonly toA?: Duplex
  readonly toB?: Duplex
}

/**
 * Carries bytes both ways with back-pressure. An end of one side is a half close of the other. Resolves when both directions
 * have ended; rejects with a TunnelError when either side breaks or is broken already, or what they go through, all destroyed
 * with that error then.
 */
export function joinDuplex(a: Duplex, b: Duplex, { toA, toB }: Through = {}): Promise<void> {
  return new Promise((resolve, reject) => {
    let open = 2
    const fail = (thrown: unknown): void => {
      const error = asTunnelError(thrown, 'ECONNRESET', 'a joined stream broke')
      for (const stream of [a, b, toA, toB]) stream?.destroy(error)
      reject(error)
    }
    for (const [from, to, through] of [
      [a, b, toB],
      [b, a, toA],
    ] as const) {
      from.on('error', fail)
      from.once('close', () => {
        open -= 1
        if (!from.readableEnded || !from.writableFinished)
          fail(from.errored ?? new Error('it was closed before its end'))
        else if (open === 0) resolve()
      })
      carry(from, through ?? to)
      if (through === undefined) continue
      through.on('error', fail)
      carry(through, to)
    }
    // of one that is closed by now nothing more is heard
    for (const stream of [a, b]) if (stream.destroyed) fail(stream.errored ?? new Error('it was closed before'))
  })
}

function carry(from: Duplex, to: Duplex): void {
  from.on('data', (bytes: Buffer) => {
    if (!to.write(bytes)) from.pause()
  })
  to.on('drain', () => from.resume())
  // nor of the end of one that has ended by now
  if (from.readableEnded) to.end()
  else from.once('end', () => to.end())
}

/** A connection to a unix path; half-open. Rejects with TunnelError ECONNREFUSED. */
export async function unixSocket(path: string): Promise<Socket> {
  const socket = connect({ path, allowHalfOpen: true })
  // it may break before whoever gets it listens, and is found destroyed then
  socket.on('error', () => undefined)
  try {
    await once(socket, 'connect')
    return socket
  } catch (error) {
    throw asTunnelError(error, 'ECONNREFUSED', `cannot connect to '${path}'`)
  }
}

/** Makes way for a listener. Rejects with TunnelError EINVAL when somebody listens there. */
export async function removeDeadSocket(path: string): Promise<void> {
  if (await isListenedOn(path)) throw new TunnelError('EINVAL', `somebody listens on '${path}' already`)
  await rm(path, { force: true })
}

/** Connects to a unix path and joins the requested channel to it; refuses the channel when that can't be. Never rejects. */
export async function joinUnix(request: ChannelRequest, path: string): Promise<TunnelError | undefined> {
  let socket: Socket | undefined
  try {
    socket = await unixSocket(path)
    await joinDuplex(request.accept(), socket)
    return undefined
  } catch (thrown) {
    const error = asTunnelError(thrown, 'ECONNRESET', `the channel to '${path}' broke`)
    socket?.destroy()
    request.refuse(error.message)
    return error
  }
}

export interface JoinedDescriptor {
  /** one end of a pair of connected unix sockets, blocking mode left to who gets it: pass it on, then `native.close` it */
  fd: number
  /** as that of joinDuplex */
  joined: Promise<void>
}

/** A descriptor that is the other end of `stream` (the first side of `through`), for a program that takes descriptors (QEMU: getfd). `pair` makes it. */
export function descriptorFor(
  stream: Duplex,
  pair = (): [number, number] => native.socketpair(),
  through?: Through,
): JoinedDescriptor {
  const [fd, ours] = pair()
  const socket = new Socket({ fd: ours, readable: true, writable: true, allowHalfOpen: true })
  return { fd, joined: joinDuplex(stream, socket, through) }
}
