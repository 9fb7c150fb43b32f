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

/** given to domains whose QEMU may not listen there yet, of whichever root */
const promised = new Set<number>()

/** Fills in the port of every VNC server that asks for any free one. They are its own while `work` has QEMU listen there. */
export async function withVncPorts<T>(def: DomainDef, work: () => Promise<T>): Promise<T> {
  const given: number[] = []
  try {
    for (const graphics of def.graphics) {
      const wantsPort = graphics.port === undefined || graphics.port === -1
      const onSocket = graphics.listens.some((listen) => listen.type === 'socket')
      if (graphics.type !== 'vnc' || onSocket || !(graphics.autoport === true || wantsPort)) continue
      const host = graphics.listens.find((listen) => listen.type === 'address')?.address ?? '127.0.0.1'
      graphics.port = await freePort(host)
      given.push(graphics.port)
    }
    return await work()
  } finally {
    for (const port of given) promised.delete(port)
  }
}

async function freePort(host: string): Promise<number> {
  for (let port = FIRST; port <= LAST; port++) {
    if (promised.has(port)) continue
    promised.add(port)
    if (await isFree(host, port)) return port
    promised.delete(port)
  }
  throw fail('VIR_ERR_INTERNAL_ERROR', `no free port between ${FIRST} and ${LAST} for VNC on '${host}'`)
}
