/** A daemon and its clients, in one process; the hypervisor behind it is scripted or in memory. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sessionOf } from '../../src/api/session.js'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import type { DomainEvent } from '../../src/driver.js'
import { VirError } from '../../src/error.js'
import { CONSOLE, PROTOCOL_VERSION } from '../../src/remote/protocol.js'
import { dial } from '../../src/tunnel/dial.js'
import { listenTunnel } from '../../src/tunnel/listen.js'
import { Messages } from '../../src/tunnel/messages.js'
import type { ChannelRequest } from '../../src/tunnel/requests.js'
import { refused } from '../driver/support.js'
import { until } from '../support/domain.js'
import { ref, scriptedDriver } from './scripted.js'
import { testDaemon, testFolder } from './support.js'

/** Also when it is by an error. */
function closeOf(stream: Duplex | undefined): Promise<void> {
  return new Promise((resolve) => stream?.once('close', resolve))
}

const opening = { version: 1, readOnly: false }

test('an error keeps its code, its domain and its words', async (t) => {
  const why = new VirError('VIR_ERR_OPERATION_INVALID', 'VIR_FROM_QEMU', "domain 'x' says 'no' \u2013 ever")
  const { driver } = scriptedDriver({ domainSuspend: () => Promise.reject(why) })
  const { connect } = await testDaemon(t, driver)
  const dom = await (await connect()).domainLookupByName('guest')
  await assert.rejects(dom.suspend(), { name: 'VirError', code: why.code, domain: why.domain, message: why.message })
})

test('what the hypervisor behind the daemon cannot do is not supported, and what is no VirError becomes one', async (t) => {
  const { driver } = scriptedDriver({ domainReset: () => Promise.reject(new TypeError('a slip')) })
  const { connect } = await testDaemon(t, driver)
  const dom = await (await connect()).domainLookupByName('guest')
  await refused(dom.resume(), 'VIR_ERR_NO_SUPPORT', /virDomainResume/)
  await refused(dom.reset(), 'VIR_ERR_INTERNAL_ERROR', /a slip/)
})

test('bandwidths and sizes come to the driver in bytes, converted once, also those of a migration', async (t) => {
  const { driver, calls } = scriptedDriver({
    domainBlockPull: () => Promise.resolve(),
    domainBlockRebase: () => Promise.resolve(),
    domainBlockResize: () => Promise.resolve(),
    domainBlockJobSetSpeed: () => Promise.resolve(),
    domainGetBlockJobInfo: () => Promise.resolve({ type: 1, bandwidth: 3_000_000, cur: 1, end: 2 }),
    domainMigrateBegin: () => Promise.reject(new VirError('VIR_ERR_OPERATION_INVALID', 'VIR_FROM_QEMU', 'enough')),
  })
  const { connect } = await testDaemon(t, driver)
  const [conn, other] = [await connect(), await connect()]
  const dom = await conn.domainLookupByName('guest')
  await dom.blockPull('vda', 2)
  await dom.blockRebase('vda', '/base', 5, c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES)
  await dom.blockResize('vda', 3)
  await dom.blockJobSetSpeed('vda', 1)
  assert.equal((await dom.blockJobInfo('vda'))?.bandwidth, 3)
  assert.equal((await dom.blockJobInfo('vda', c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES))?.bandwidth, 3_000_000)
  await refused(
    dom.migrate(other, { bandwidth: 4, diskStreamBandwidth: 7 }, c.VIR_MIGRATE_LIVE),
    'VIR_ERR_OPERATION_INVALID',
  )
  const given = calls.map(({ name, args }) => [name, ...args.slice(1)])
  assert.deepEqual(given, [
    ['domainBlockPull', 'vda', 2 * 1024 * 1024],
    ['domainBlockRebase', 'vda', '/base', 5, c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES],
    ['domainBlockResize', 'vda', 3 * 1024],
    ['domainBlockJobSetSpeed', 'vda', 1024 * 1024],
    ['domainGetBlockJobInfo', 'vda'],
    ['domainGetBlockJobInfo', 'vda'],
    ['domainMigrateBegin', { bandwidth: 4 * 1024 * 1024, diskStreamBandwidth: 7 }, c.VIR_MIGRATE_LIVE],
  ])
})

test('a read-only connection changes nothing, also when the client does not ask itself', async (t) => {
  const { driver, calls } = scriptedDriver({
    domainDestroy: () => Promise.resolve(),
    domainGetState: () => Promise.resolve({ state: 1, reason: 1 }),
  })
  const { connect, uri } = await testDaemon(t, driver)
  const conn = await connect({ readOnly: true })
  const dom = await conn.domainLookupByName('guest')
  assert.deepEqual(await dom.getState(), { state: 1, reason: 1 })
  await refused(dom.destroy(), 'VIR_ERR_OPERATION_DENIED')

  const tunnel = await dial(uri)
  t.after(() => tunnel.destroy())
  for (const params of [{ version: 1, readOnly: true }, { version: 1 }]) {
    const messages = new Messages(await tunnel.open('virstream', params))
    await refused(messages.request('domainDestroy', [ref, 0]), 'VIR_ERR_OPERATION_DENIED', /virDomainDestroy/)
  }
  assert.deepEqual(
    calls.map(({ name }) => name),
    ['domainGetState'],
  )
})

test('what comes over the wire is checked as what an application says', async (t) => {
  const { driver } = scriptedDriver({
    domainDestroy: () => Promise.resolve(),
    domainStreamDisk: () => Promise.resolve(0),
    domainMigrateFinish: () => Promise.resolve(undefined),
  })
  const { uri } = await testDaemon(t, driver)
  const tunnel = await dial(uri)
  t.after(() => tunnel.destroy())
  const messages = new Messages(await tunnel.open('virstream', opening))
  const ask = (method: string, params: unknown): Promise<unknown> => messages.request(method, params)
  await refused(ask('connectClose', []), 'VIR_ERR_RPC', /no procedure 'connectClose'/)
  await refused(ask('constructor', []), 'VIR_ERR_RPC', /no procedure 'constructor'/)
  await refused(ask('domainDestroy', 'all'), 'VIR_ERR_RPC', /list/)
  await refused(ask('domainDestroy', [{ name: 'guest' }, 0]), 'VIR_ERR_INVALID_DOMAIN')
  await refused(ask('domainDestroy', [ref, 'now']), 'VIR_ERR_INVALID_ARG', /flags/)
  await refused(ask('domainStreamDisk', [ref, 'vda', 0, 2, 'fast']), 'VIR_ERR_INVALID_ARG', /options/)
  await refused(ask('domainStreamDisk', [ref, 'vda', 1, 2, {}]), 'VIR_ERR_INVALID_ARG', /offset must be 0/)
  await refused(ask('domainMigrateFinish', [{ wrong: 1 }, 1, '', true]), 'VIR_ERR_INVALID_ARG', /'wrong'/)
  await refused(ask('domainMigrateFinish', [{}, 1, 'x'.repeat(300_000), true]), 'VIR_ERR_INVALID_ARG', /cookie/)
  assert.equal(await ask('domainMigrateFinish', [{}, 1, 'x', true]), null)
})

test('a version that is not spoken, and a service that is not there, are refused by name', async (t) => {
  const { uri, connect } = await testDaemon(t)
  const tunnel = await dial(uri)
  t.after(() => tunnel.destroy())
  await assert.rejects(tunnel.open('virstream', { version: 2 }), /version 2 of the protocol/)
  await assert.rejects(tunnel.open('something'), /no service 'something'/)
  await assert.rejects(tunnel.open('migration-ram'), /cannot be migrated/)
  const channel = await tunnel.open('virstream', opening)
  channel.write('this is no message at all')
  await closeOf(channel)
  assert.equal((await (await connect()).listAllDomains()).length, 1, 'the others are served as before')
})

test('hundreds of calls at once are all answered, and a slow one keeps nobody waiting', async (t) => {
  let release!: () => void
  const { driver } = scriptedDriver({
    domainGetXMLDesc: (_ref, flags) => Promise.resolve('x'.repeat(60_000) + String(flags)),
    domainSave: () => new Promise((resolve) => (release = resolve)),
  })
  const { connect } = await testDaemon(t, driver)
  const dom = await (await connect()).domainLookupByName('guest')
  const saves = Array.from({ length: 40 }, () => dom.save('/somewhere').catch(() => undefined))
  const texts = await Promise.all(Array.from({ length: 400 }, () => dom.getXMLDesc(2)))
  assert.ok(texts.every((text) => text.length === 60_001))
  release()
  await Promise.race(saves)
})

test('a unit that is not waited for any more is given up at the hypervisor', async (t) => {
  const signals: AbortSignal[] = []
  const given = (): AbortSignal | undefined => signals[0]
  const { driver } = scriptedDriver({
    domainStreamDisk: (_ref, _disk, _offset, _flags, { signal }) => {
      if (signal !== undefined) signals.push(signal)
      return new Promise(() => undefined)
    },
  })
  const { connect } = await testDaemon(t, driver)
  const dom = await (await connect()).domainLookupByName('guest')
  const controller = new AbortController()
  const unit = dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_ONE, { signal: controller.signal })
  while (given() === undefined) await delay(5)
  assert.equal(given()?.aborted, false)
  controller.abort()
  await assert.rejects(unit)
  while (given()?.aborted !== true) await delay(5)
})

const stopped: DomainEvent = { kind: 'lifecycle', domain: ref, event: c.VIR_DOMAIN_EVENT_STOPPED, detail: 1 }

test('events come to every client, with the domain as a handle, before the answer of the call that caused them', async (t) => {
  const scripted = scriptedDriver({
    domainDestroy: () => {
      scripted.host().emit(stopped)
      return Promise.resolve()
    },
  })
  const { connect } = await testDaemon(t, scripted.driver)
  const [one, two] = [await connect(), await connect({ readOnly: true })]
  const [heard, alsoHeard] = [one.domainEvents(), two.domainEvents({ kinds: ['lifecycle'] })]
  await (await one.domainLookupByName('guest')).destroy()
  heard.close()
  const events = []
  for await (const event of heard) events.push(event)
  assert.equal(events.length, 1)
  const next = await alsoHeard.next()
  assert.ok(next.value?.kind === 'lifecycle')
  assert.equal(next.value.domain.name, 'guest')
  assert.equal(next.value.event, c.VIR_DOMAIN_EVENT_STOPPED)
})

test('a client that does not take its events loses some, is told how many, and holds nobody up', async (t) => {
  const { driver, host } = scriptedDriver({})
  const { uri, connect } = await testDaemon(t, driver)
  const tunnel = await dial(uri)
  t.after(() => tunnel.destroy())
  const heard: { kind: string; dropped?: number }[] = []
  let takeThem!: () => void
  const stalled = new Promise<void>((resolve) => (takeThem = resolve))
  const messages = new Messages(await tunnel.open('virstream', opening), {
    onRequest: async (_method, params) => {
      heard.push(...(params as typeof heard))
      await stalled
    },
  })
  const good = (await connect()).domainEvents({ bound: 10_000 })
  await messages.request('connectListAllDomains', [0])
  const all = 5000
  for (let sent = 0; sent < all; sent += 100) {
    for (let each = 0; each < 100; each += 1) host().emit(stopped)
    await delay(1)
  }
  for (let count = 0; count < all; count += 1) assert.equal((await good.next()).value?.kind, 'lifecycle')
  assert.ok(heard.length < all)
  takeThem()
  const dropped = (): number => heard.reduce((sum, event) => sum + (event.dropped ?? 0), 0)
  while (heard.filter(({ kind }) => kind === 'lifecycle').length + dropped() < all) await delay(10)
  assert.ok(dropped() > 0)
})

test('when the daemon ends, calls fail, and listeners hear of it as their last event', async (t) => {
  const { driver } = scriptedDriver({ domainSuspend: () => new Promise(() => undefined) })
  const { daemon, connect } = await testDaemon(t, driver)
  const conn = await connect()
  const events = conn.domainEvents({ kinds: ['lifecycle'] })
  const reasons: number[] = []
  conn.on('close', ({ reason }) => reasons.push(reason))
  const dom = await conn.domainLookupByName('guest')
  const pending = refused(dom.suspend(), 'VIR_ERR_RPC')
  await delay(20)
  await daemon.close()
  await pending
  await refused(dom.suspend(), 'VIR_ERR_RPC')
  const last = await events.next()
  assert.ok(last.value?.kind === 'close')
  assert.equal(last.value.reason, c.VIR_CONNECT_CLOSE_REASON_EOF)
  assert.equal((await events.next()).done, true)
  assert.deepEqual(reasons, [c.VIR_CONNECT_CLOSE_REASON_EOF])
  await conn.close()
})

test('a link that breaks is told of as an error, and the daemon forgets the client', async (t) => {
  const { daemon, uri, folder } = await testDaemon(t)
  const links: Socket[] = []
  const middle = createServer((link) => {
    links.push(link)
    link.pipe(connect(fileURLToPath(uri.replace('virstream+unix', 'file')))).pipe(link)
  })
  middle.listen(join(folder, 'middle'))
  t.after(() => middle.close())
  const conn = await c.Connect.open(`virstream+unix://${join(folder, 'middle')}`)
  const events = conn.domainEvents()
  assert.match((await daemon.busy()) ?? '', /clients/)
  for (const link of links) link.destroy()
  const last = await events.next()
  assert.ok(last.value?.kind === 'close')
  assert.equal(last.value.reason, c.VIR_CONNECT_CLOSE_REASON_ERROR)
  await refused(conn.listAllDomains(), 'VIR_ERR_RPC')
  await conn.close()
  while ((await daemon.busy()) !== undefined) await delay(10)
})

test('who closes a connection himself is told of nothing', async (t) => {
  const { connect } = await testDaemon(t)
  const conn = await connect()
  const events = conn.domainEvents()
  await conn.close()
  assert.equal((await events.next()).done, true)
})

test('a console is a channel of its own, both ways, and ends with the connection', async (t) => {
  const made: Duplex[] = []
  const { driver } = scriptedDriver({
    domainOpenConsole: () => {
      const echo = new Duplex({
        read: () => undefined,
        write(chunk: Buffer, _encoding, done) {
          this.push(String(chunk).toUpperCase())
          done()
        },
      })
      made.push(echo)
      return Promise.resolve(echo)
    },
  })
  const { connect } = await testDaemon(t, driver)
  const conn = await connect()
  const dom = await conn.domainLookupByName('guest')
  const console = await dom.openConsole('serial0', c.VIR_DOMAIN_CONSOLE_SAFE)
  console.write('hello')
  const [answer] = (await once(console, 'data')) as [Buffer]
  assert.equal(String(answer), 'HELLO')
  const [first] = made
  const over = closeOf(first)
  console.destroy()
  await over
  await dom.openConsole()
  const [, second] = made
  const alsoOver = closeOf(second)
  await conn.close()
  await alsoOver
})

test('a connection whose tunnel a migration has too leaves no console on it that was opened while it was closed', async (t) => {
  const [waiting, controls] = [new Array<ChannelRequest>(), new Array<Messages>()]
  const operations = ['domainLookupByName', 'domainOpenConsole']
  const onRequest = (method: string): unknown => (method === 'domainOpenConsole' ? 'id' : ref)
  const onOpen = (request: ChannelRequest): void => {
    if (request.service === CONSOLE) waiting.push(request)
    else
      controls.push(new Messages(request.accept({ version: PROTOCOL_VERSION, program: '', operations }), { onRequest }))
  }
  const listener = await listenTunnel(
    { unix: join(await testFolder(t), 'sock') },
    { authorize: () => undefined, onTunnel: (tunnel) => (tunnel.onOpen = onOpen) },
  )
  t.after(() => listener.close())
  const conn = await Connect.open(listener.uri)
  const [tunnel] = listener.tunnels
  await sessionOf(conn).call('connectTunnel', () => [])
  const opened = (await conn.domainLookupByName('guest')).openConsole()
  await until('a channel is asked for', () => waiting.length > 0)
  await conn.close()
  waiting[0]?.accept()
  await refused(opened, 'VIR_ERR_RPC', /was closed/)
  assert.equal(await tunnel?.closed, undefined)
})

test('a console that nobody opened is refused', async (t) => {
  const { uri } = await testDaemon(t)
  const tunnel = await dial(uri)
  t.after(() => tunnel.destroy())
  await assert.rejects(tunnel.open('virstream-console', { id: 'guessed' }), /no such console/)
})

test('a client that comes while a daemon looks whether anybody needs it is seen', async (t) => {
  let look!: () => void
  const looked = new Promise<[]>((resolve) => (look = () => resolve([])))
  const { driver } = scriptedDriver({ connectListAllDomains: () => looked })
  const { daemon, connect } = await testDaemon(t, driver)
  const busy = daemon.busy()
  await connect()
  look()
  assert.equal(await busy, 'there are clients')
})
