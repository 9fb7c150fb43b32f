/** A unix socket whose bytes come out at another one so many ms later, in both directions: a link with a round trip time. */
import { createConnection, createServer, type Socket } from 'node:net'
import { once } from 'node:events'
import type { Cleanup } from '../test/support/images.js'
import { MiB } from './bench.js'

/** bytes that may be on their way in one direction */
const MOST = 64 * MiB

function passLater(from: Socket, to: Socket, ms: number): void {
  let onTheWay = 0
  from.on('data', (bytes: Buffer) => {
    onTheWay += bytes.length
    if (onTheWay > MOST) from.pause()
    setTimeout(() => {
      onTheWay -= bytes.length
      if (!to.destroyed) to.write(bytes)
      if (from.isPaused() && onTheWay <= MOST) from.resume()
    }, ms)
  })
  from.on('close', () => setTimeout(() => to.destroy(), ms))
  from.on('error', () => undefined)
}

/** `ms`: each way. */
export async function delayRelay(t: Cleanup, path: string, target: string, ms: number): Promise<void> {
  const sockets = new Set<Socket>()
  const server = createServer((near) => {
    const far = createConnection(target)
    for (const socket of [near, far]) sockets.add(socket)
    passLater(near, far, ms)
    passLater(far, near, ms)
  })
  server.listen(path)
  await once(server, 'listening')
  t.after(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
}
