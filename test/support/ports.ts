/** Ports of this host that nobody has. */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'

const LOWEST = 10_000
/** from here on the kernel gives ports to every connection, and to whoever asks for any: none of them stays free for sure */
const [FIRST_OF_KERNEL = 32_768] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8')
  .split(/\s+/)
  .map(Number)
const ROOM = Math.max(1_000, FIRST_OF_KERNEL - LOWEST)

/** A TCP port on loopback that is free, and that nobody gets by chance until it is listened to. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = LOWEST + Math.floor(Math.random() * ROOM)
    if (await isFree(port)) return port
  }
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer().listen(port, '127.0.0.1')
  try {
    await once(server, 'listening')
  } catch {
    return false
  }
  server.close()
  await once(server, 'close')
  return true
}
