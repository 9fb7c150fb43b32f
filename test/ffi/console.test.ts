/** Consoles of guests that a libvirtd has. */
import assert from 'node:assert/strict'
import type { Duplex } from 'node:stream'
import { after, test } from 'node:test'
import { Connect } from '../../src/index.js'
import { plainXml } from '../support/domain.js'
import { daemonFor } from './support.js'

// a connection keeps no process alive, and this test waits for events
const alive = setInterval(() => undefined, 60_000)
after(() => clearInterval(alive))

/** Why it was closed; undefined: by no error. */
function closeOf(stream: Duplex): Promise<Error | undefined> {
  return new Promise((resolve) => {
    let why: Error | undefined
    stream.on('error', (error) => (why = error)).once('close', () => resolve(why))
  })
}

test('a console ends with its connection, whoever ends that', { timeout: 60_000 }, async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const [closed, lost] = [await Connect.open(daemon.uri), await Connect.open(daemon.uri)]
  t.after(() => Promise.all([closed.close(), lost.close()]))
  const { name } = await closed.domainCreateXML(plainXml({ devices: `<console type='pty'/>` }))
  const first = closeOf((await (await closed.domainLookupByName(name)).openConsole()).resume())
  await closed.close()
  assert.equal(await first, undefined)
  const second = closeOf((await (await lost.domainLookupByName(name)).openConsole()).resume())
  daemon.kill()
  assert.match((await second)?.message ?? '', /the connection is lost/)
})
