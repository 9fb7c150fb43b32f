/** Memory that follows its guest comes over another connection, which breaks before it is used. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Incoming } from '../../src/qemu/migration/incoming.js'
import { takeChannel } from '../../src/qemu/migration/postcopy-target.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { unixSocket } from '../../src/tunnel/join.js'
import type { ChannelRequest } from '../../src/tunnel/requests.js'
import { temporaryFolder } from '../support/images.js'
import { bareQemu } from './bare.js'

test('a QEMU does not wait for memory on a connection for which there is no channel any more', async (t) => {
  const { qemu } = await bareQemu(t)
  const path = join(await temporaryFolder(t), 'memory.sock')
  const server = createServer().listen(path)
  t.after(() => void server.close())
  const taken = once(server, 'connection') as Promise<[Socket]>
  const refused: string[] = []
  const request: ChannelRequest = {
    ...{ service: '', params: {} },
    accept: () => {
      throw new TunnelError('ECONNRESET', 'the other side has given up')
    },
    refuse: (reason) => void refused.push(reason),
  }
  const memory = { recovery: { connect: () => unixSocket(path) } }
  await takeChannel(qemu, { record: { memoryFollows: true }, memory } as unknown as Incoming, request)
  assert.deepEqual(refused, ['the other side has given up'])
  const [socket] = await taken
  await once(socket.resume(), 'close', { signal: AbortSignal.timeout(10_000) })
})
