/** Daemons of the tests: in this process on the in-memory driver, or as a process of its own. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import type { HypervisorDriver } from '../../src/driver.js'
import { Connect, type OpenOptions } from '../../src/index.js'
import { Daemon, type DaemonOptions } from '../../src/remote/daemon.js'
import { testDriver } from '../../src/test-driver/driver.js'
import type { Cleanup } from '../support/images.js'

export interface TestDaemon {
  daemon: Daemon
  /** of its unix socket */
  uri: string
  folder: string
  connect: (options?: OpenOptions) => Promise<Connect>
}

/** A folder that is removed at the end of the test. */
export async function testFolder(t: Cleanup): Promise<string> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-remote-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** A daemon in this process. Connections to it are closed with the test, then the daemon. */
export async function testDaemon(
  t: Cleanup,
  driver: HypervisorDriver = testDriver,
  options: Partial<DaemonOptions> = {},
): Promise<TestDaemon> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-remote-'))
  const daemon = await Daemon.start({
    driver,
    uri: 'test:///default',
    unix: [join(folder, 'sock')],
    listen: [],
    pki: undefined,
    allowedDns: undefined,
    logger: pino({ enabled: false }),
    ...options,
  })
  const [uri = ''] = daemon.uris
  const connections: Connect[] = []
  t.after(async () => {
    for (const connection of connections) await connection.close()
    await daemon.close()
    await rm(folder, { recursive: true, force: true })
  })
  const connect = async (how: OpenOptions = {}): Promise<Connect> => {
    const connection = await Connect.open(uri, how)
    connections.push(connection)
    return connection
  }
  return { daemon, uri, folder, connect }
}
