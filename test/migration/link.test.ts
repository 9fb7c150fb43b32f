/** The source's end of a migration's connection. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { MigrationLink } from '../../src/migration/link.js'
import { listenTunnel } from '../../src/tunnel/listen.js'
import type { Tunnel } from '../../src/tunnel/tunnel.js'
import { temporaryFolder } from '../support/images.js'

test('a link that is ended while it is being made leaves no connection', async (t) => {
  const path = join(await temporaryFolder(t), 'sock')
  const tunnels: Tunnel[] = []
  const onTunnel = (tunnel: Tunnel): void => {
    tunnel.onOpen = (request) => void request.accept().resume()
    tunnels.push(tunnel)
  }
  const listener = await listenTunnel({ unix: path }, { authorize: () => undefined, onTunnel })
  t.after(() => listener.close())
  const link = new MigrationLink({
    ...{ id: 'id', key: 'key', uri: listener.uri },
    onOpen: (request) => request.refuse('no'),
    onRequest: () => ({}),
    onRestored: () => undefined,
    warn: (text) => assert.fail(text),
  })
  const made = link.connect()
  link.destroy()
  await assert.rejects(made, /was closed/)
  assert.equal(link.isUp, false)
  assert.equal(tunnels.length, 1)
  await tunnels[0]?.closed
})
