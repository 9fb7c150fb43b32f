/** Real libvirt, through its library: every URI that no driver of our own takes. */
import type { HypervisorDriver, HypervisorOps } from '../driver.js'
import { blockOps } from './block.js'
import { Connection } from './connection.js'
import { consoleOps } from './console.js'
import { hearEvents } from './events.js'
import { lifecycleOps } from './lifecycle.js'
import { limitOps } from './migration-limits.js'
import { migrationOps } from './migration.js'
import { queryOps } from './queries.js'
import { passthroughOps } from './passthrough.js'
import { streamOps } from './stream.js'
import { Streams } from './streams.js'

export const ffiDriver: HypervisorDriver = {
  name: 'ffi',
  uriSchemes: ['*'],
  async open(uri, host): Promise<Partial<HypervisorOps> | undefined> {
    // ours, and nothing that libvirt knows
    if (uri.protocol.startsWith('virstream')) return undefined
    const connection = await Connection.open(uri, host)
    const streams = new Streams(connection)
    await hearEvents(connection, (domain, event) => streams.hear(domain, event))
    return {
      ...queryOps(connection),
      ...lifecycleOps(connection),
      ...limitOps(connection),
      ...blockOps(connection),
      ...streamOps(connection, streams),
      ...consoleOps(connection),
      ...passthroughOps(connection),
      ...migrationOps(connection),
      connectClose: () => connection.close(),
    }
  },
}
