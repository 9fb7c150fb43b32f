import { createServer } from 'node:net'
import type { DomainDef } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** libvirt's default range of VNC ports */
const FIRST = 5900
const LAST = 65535

function isFree(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ host, port }, () => server.close(() => resolve(true)))
  })
}

/** Fills in the port of every VNC server that asks for any free one. */
export async function freeVncPorts(def: DomainDef): Promise<void> {
  const given = new Set<number>()
  for (const graphics of def.graphics) {
    const wantsPort = graphics.port === undefined || graphics.port === -1
    const onSocket = graphics.listens.some((listen) => listen.type === 'socket')
    if (graphics.type !== 'vnc' || onSocket || !(graphics.autoport === true || wantsPort)) continue
    const host = graphics.listens.find((listen) => listen.type === 'address')?.address ?? '127.0.0.1'
    graphics.port = await freePort(host, given)
    given.add(graphics.port)
  }
}

async function freePort(host: string, taken: ReadonlySet<number>): Promise<number> {
  for (let port = FIRST; port <= LAST; port++) if (!taken.has(port) && (await isFree(host, port))) return port
  throw fail('VIR_ERR_INTERNAL_ERROR', `no free port between ${FIRST} and ${LAST} for VNC on '${host}'`)
}
