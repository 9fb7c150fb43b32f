/** libvirt's event loop on Node's: its timers, and that a frozen server is noticed by them. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import koffi from 'koffi'
import { Connect, VirError } from '../../src/index.js'
import { library } from '../../src/ffi/library.js'
import { daemonFor, libvirtIsThere, testUri } from './support.js'

const SIGSTOP = 19
const SIGCONT = 18

// the loop keeps no process alive, and these tests wait for it
const alive = setInterval(() => undefined, 60_000)
after(() => clearInterval(alive))

const onTimeout = koffi.proto('void', ['int', 'void *'])
const add = koffi.proto('int', ['int', 'void *', 'void *', 'void *'])
const update = koffi.proto('void', ['int', 'int'])
const remove = koffi.proto('int', ['int'])

/** A timer as libvirt makes them; `fired` is told how often it has come. */
function timer(milliseconds: number, fired: (times: number, id: number) => void): number {
  let times = 0
  const callback = koffi.register((id: number) => fired(++times, id), koffi.pointer(onTimeout))
  return koffi.call(library().functions.addTimeout, add, milliseconds, callback, null, null) as number
}
const change = (id: number, milliseconds: number): void => {
  koffi.call(library().functions.updateTimeout, update, id, milliseconds)
}
const end = (id: number): number => koffi.call(library().functions.removeTimeout, remove, id) as number

test('a timer comes again and again until it is put off or taken away', async (t) => {
  if (!libvirtIsThere(t)) return
  for (const milliseconds of [0, 2])
    await new Promise<void>((resolve) => {
      timer(milliseconds, (times, id) => {
        if (times === 2) change(id, -1)
        if (times === 2) setTimeout(() => change(id, milliseconds), 20)
        if (times === 4) assert.equal(end(id), 0)
        if (times === 4) setTimeout(resolve, 20)
        assert.ok(times <= 4)
      })
    })
  assert.equal(end(999_999), -1)
})

test('a timer that is put off does not come at its first time, and one that is brought forward does not wait for it', async (t) => {
  if (!libvirtIsThere(t)) return
  const order: string[] = []
  const put = timer(30, (_, id) => {
    order.push('put off')
    end(id)
  })
  const never = timer(-1, () => order.push('never'))
  await new Promise<void>((resolve) => {
    const brought = timer(3_600_000, (_, id) => {
      order.push('brought forward')
      end(id)
      resolve()
    })
    change(put, 7_200_000)
    change(brought, 60)
  })
  change(put, 1)
  while (order.length < 2) await new Promise(setImmediate)
  assert.deepEqual(order, ['brought forward', 'put off'])
  assert.equal(end(never), 0)
})

test('calls to a server that stands still are answered when it goes on, and fail when it never does', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(testUri(daemon))
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  daemon.kill(SIGSTOP)
  const calls = Array.from({ length: 40 }, () => dom.isActive())
  // what is on another connection does not wait for them
  const other = await Connect.open('test:///default', { driver: 'ffi' })
  await other.close()
  daemon.kill(SIGCONT)
  await Promise.all(calls)

  const lib = library()
  const raw = await lib.call('virConnectOpenAuth', testUri(daemon), null, 1)
  await lib.call('virConnectSetKeepAlive', raw, 1, 1)
  daemon.kill(SIGSTOP)
  await assert.rejects(lib.call('virConnectGetHostname', raw), VirError)
  daemon.kill(SIGCONT)
  await lib.call('virConnectClose', raw)
})
