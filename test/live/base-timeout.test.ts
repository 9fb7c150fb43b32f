/** A base that is away for longer than its timeout: the guest is paused, and goes on when the base is back. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import {
  Connect,
  VIR_DOMAIN_EVENT_IO_ERROR_PAUSE,
  VIR_DOMAIN_EVENT_SUSPENDED,
  VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_XML_INACTIVE,
  type Domain,
  type StreamDiskState,
} from '../../src/index.js'
import { diskXml, plainXml, qemuPid, startGuest, startPlain, testRoot, until, virError } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { assertStreamed, untilWaits } from '../support/streamed.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024

/** A guest on an overlay of a base behind qemu-nbd. */
async function setUp(t: TestContext, name: string, driver = '') {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const at = { path: join(root.folder, 'base.nbd') }
  const server = await qemuNbd(t, base.path, at)
  const path = await overlay(root.folder, nbdUri(at))
  const { dom, guest } = await startGuest(t, root, { name, devices: diskXml('vda', path, { driver }) })
  await guest.base('vda', base.seed, base.size)
  return { root, base, server, path, dom, guest }
}

const stateOf = async (dom: Domain): Promise<StreamDiskState | undefined> => (await dom.streamDiskInfo())[0]

for (const engine of ['job', 'pull'] as const) {
  test(`engine '${engine}': past its timeout the guest is paused, with the base back guest and stream go on`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
    const { root, base, server, path, dom, guest } = await setUp(t, `timeout-${engine}`)
    const events = root.conn.domainEvents({ domain: dom, kinds: ['io-error', 'lifecycle'] })
    await guest.work('vda')
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB, engine, baseTimeout: 2 })
    await until('the stream moves', async () => ((await stateOf(dom))?.offset ?? 0) > 1 * MiB)
    await server.kill()
    await until('the guest is paused', async () => (await dom.getState()).state === VIR_DOMAIN_PAUSED)
    assert.equal((await dom.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)
    assert.match((await untilWaits(dom)).error ?? '', /the base does not answer: /)
    await assert.rejects(
      dom.resume(),
      virError('VIR_ERR_OPERATION_FAILED', /^the guest is paused again: base '.*base\.nbd.*' does not answer: /),
    )
    assert.equal((await dom.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)

    await server.start()
    await dom.resume()
    assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
    // it may just have ended by itself
    await stream.setBandwidth(0).catch(() => stream.finished)
    await stream.finished
    await assertStreamed({ dom, guest, path, base })

    events.close()
    const seen = []
    for await (const event of events) seen.push(event)
    const error = seen.find((event) => event.kind === 'io-error')
    assert.deepEqual([error?.disk, error?.action, error?.path], ['vda', VIR_DOMAIN_EVENT_IO_ERROR_PAUSE, path])
    assert.ok(
      seen.some(
        (event) =>
          event.kind === 'lifecycle' &&
          event.event === VIR_DOMAIN_EVENT_SUSPENDED &&
          event.detail === VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
      ),
    )
  })
}

test('the time comes from the settings or the definition, and what cannot pause the guest gets none', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const at = { path: join(root.folder, 'base.nbd') }
  await qemuNbd(t, base.path, at)
  const path = await overlay(root.folder, nbdUri(at))
  await root.conn.close()
  await writeFile(join(root.folder, 'root/etc/qemu.json'), '{"baseTimeout": 7}')
  root.conn = await Connect.open(root.uri)
  const delayOf = (dom: Domain): string | undefined =>
    /"reconnect-delay":(\d+)/.exec(readFileSync(`/proc/${qemuPid(root, dom)}/cmdline`, 'utf8'))?.[1]

  const usual = await startPlain(root, { name: 'timeout-usual', devices: diskXml('vda', path) })
  assert.equal(delayOf(usual), '7')
  assert.match(await usual.getXMLDesc(), /error_policy='stop'/)
  assert.doesNotMatch(await usual.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), /error_policy|reconnect/)
  for (const baseTimeout of [0, -1, 1.5])
    await assert.rejects(usual.stream('vda', { baseTimeout }), virError('VIR_ERR_INVALID_ARG', /baseTimeout/))
  await usual.destroy()

  const request = (time: string): string =>
    `<metadata><s:stream xmlns:s='urn:virstream:stream:1' disk='vda' bandwidth='1' baseTimeout='${time}'/></metadata>`
  const devices = diskXml('vda', path, { driver: "error_policy='report'" })
  await assert.rejects(
    root.conn.domainDefineXML(plainXml({ name: 'timeout-none', devices, extra: request('soon') })),
    virError('VIR_ERR_XML_ERROR', /'soon' is not a time/),
  )
  const own = await startPlain(root, { name: 'timeout-own', devices, extra: request('9') })
  assert.equal(delayOf(own), '4000000000')
  await assert.rejects(
    own.stream('vda', { baseTimeout: 5 }),
    virError('VIR_ERR_OPERATION_INVALID', /^errors of disk 'vda' do not pause the guest/),
  )
  await own.destroy()
})
