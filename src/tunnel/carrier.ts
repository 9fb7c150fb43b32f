/** What a socket is told before it carries a tunnel. */
import type { Socket } from 'node:net'
import { native } from '../native.js'

/** Bytes that may wait in the kernel unsent: what comes later but matters more waits behind them. */
const NOT_SENT = 128 * 1024

/** The number of an open socket's descriptor. Node knows it but has no public word for it: undefined where it has changed. */
export function descriptorOf(socket: Socket): number | undefined {
  const handle: unknown = '_handle' in socket ? socket._handle : undefined
  if (typeof handle !== 'object' || handle === null || !('fd' in handle)) return undefined
  return typeof handle.fd === 'number' && handle.fd >= 0 ? handle.fd : undefined
}

/** Low latency on a connected TCP socket; the link is watched by PINGs, so the kernel need not. */
export function tuneTcp(socket: Socket): void {
  socket.setNoDelay(true)
  const fd = descriptorOf(socket)
  try {
    if (fd !== undefined) native.setNotSentLowat(fd, NOT_SENT)
  } catch {
    // a socket that has none: small requests wait longer beside bulk, that is all
  }
}
