/** Where sources of migrations to a root of this process come in: a private socket in the root. A daemon has a port for all. */
import { join } from 'node:path'
import { listenTunnel, type TunnelListener } from '../../tunnel/listen.js'
import { UNKNOWN_HERE } from '../../migration/link.js'
import { routeIncoming } from './requests.js'
import type { Qemu } from '../core/qemu.js'

const listeners = new WeakMap<Qemu, Promise<TunnelListener>>()

/** Answers the URI; listens from the first call until `closeListener`. */
export async function listenForMigrations(qemu: Qemu): Promise<string> {
  let listener = listeners.get(qemu)
  if (listener === undefined) {
    listener = listen(qemu)
    listeners.set(qemu, listener)
    listener.catch(() => listeners.delete(qemu))
  }
  return (await listener).uri
}

function listen(qemu: Qemu): Promise<TunnelListener> {
  return listenTunnel(
    { unix: join(qemu.root.migrationDir, 'tunnel.sock') },
    {
      authorize({ token, params }) {
        const { migration } = params
        const incoming = typeof migration === 'string' ? qemu.incoming.get(migration) : undefined
        if (incoming === undefined || incoming.record.key !== token) throw new Error(UNKNOWN_HERE)
        return undefined
      },
      onTunnel: (tunnel) => (tunnel.onOpen = (request) => routeIncoming(qemu, request, tunnel)),
      onRefused: (error) => qemu.warn(`a connection for a migration was refused: ${error.message}`),
    },
  )
}

export async function closeListener(qemu: Qemu): Promise<void> {
  const listener = await listeners.get(qemu)?.catch(() => undefined)
  listeners.delete(qemu)
  await listener?.close()
  for (const tunnel of listener?.tunnels ?? []) tunnel.destroy()
}
