/** `virstream+tls://host/`, `virstream+unix:///path`: a hypervisor behind a daemon. */
import type { DriverHost, HypervisorDriver, HypervisorOps } from '../driver.js'
import { messageOf } from '../error.js'
import { dial } from '../tunnel/dial.js'
import { wireError } from './errors.js'
import { RemoteConnection } from './connection.js'

export const remoteDriver: HypervisorDriver = {
  name: 'remote',
  uriSchemes: ['virstream+tls', 'virstream+unix', 'virstream+tcp'],
  async open(uri, host) {
    if (!remoteDriver.uriSchemes.includes(uri.protocol.slice(0, -1))) return undefined
    return openRemote(uri.href, host)
  },
}

/** Opens the daemon at `uri`. VIR_ERR_SYSTEM_ERROR when nobody listens there, VIR_ERR_AUTH_FAILED when it does not let us in. */
export async function openRemote(uri: string, host: DriverHost): Promise<Partial<HypervisorOps>> {
  const tunnel = await dial(uri).catch((error: unknown) => {
    throw wireError(error, `cannot connect to '${uri}'`)
  })
  try {
    return (await RemoteConnection.open(tunnel, uri, host)).operations()
  } catch (error) {
    tunnel.destroy()
    host.logger.debug({ err: error }, `the daemon at '${uri}' is of no use: ${messageOf(error)}`)
    throw error
  }
}
