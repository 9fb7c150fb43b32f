import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as vs from '../../src/index.js'
import type { Connect, Domain, HypervisorDriver, LockDriver, VirErrorCode } from '../../src/index.js'
import { ref, scripted } from './scripted-driver.js'

const done = (): Promise<never> => Promise.resolve(undefined as never)

async function refused(call: Promise<unknown>, code: VirErrorCode, message: RegExp): Promise<void> {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof vs.VirError)
    assert.match(error.message, message)
    assert.equal(error.code, code)
    return true
  })
}

const domainOf = (conn: Connect): Promise<Domain> => conn.domainLookupByName('guest')

test('a call with legal arguments is exactly one call of the driver', async () => {
  const { conn, calls } = await scripted({ domainBlockPull: done })
  const dom = await domainOf(conn)
  calls.length = 0
  await dom.blockPull('vda', 3)
  await dom.blockPull('vda', 3, vs.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
  assert.deepEqual(
    calls.map(({ name, args }) => [name, ...args.slice(1)]),
    [
      ['domainBlockPull', 'vda', 3 * 1024 * 1024],
      ['domainBlockPull', 'vda', 3],
    ],
  )
  assert.equal((calls[0]?.args[0] as Domain).uuid, ref.uuid)
})

test('an operation that the driver lacks is said to be unsupported, by the name of libvirt', async () => {
  const { conn } = await scripted({})
  const dom = await domainOf(conn)
  const text = 'this function is not supported by the connection driver:'
  await refused(dom.blockPull('vda'), 'VIR_ERR_NO_SUPPORT', new RegExp(`^${text} virDomainBlockPull$`))
  await refused(dom.qemuMonitorCommand('{}'), 'VIR_ERR_NO_SUPPORT', new RegExp(`${text} virDomainQemuMonitorCommand$`))
  await refused(conn.getType(), 'VIR_ERR_NO_SUPPORT', new RegExp(`${text} virConnectGetType$`))
})

test('what a driver throws that is not a VirError is wrapped once, with its cause', async () => {
  const cause = new RangeError('out of bounds')
  const { conn } = await scripted({ domainSuspend: () => Promise.reject(cause) })
  const dom = await domainOf(conn)
  await assert.rejects(dom.suspend(), (error) => {
    assert.ok(error instanceof vs.VirError)
    assert.deepEqual([error.code, error.message, error.cause], ['VIR_ERR_INTERNAL_ERROR', 'out of bounds', cause])
    return true
  })
})

test("a driver's own VirError comes through as it is", async () => {
  const own = new vs.VirError('VIR_ERR_OPERATION_INVALID', 'VIR_FROM_TEST', 'not now')
  const { conn } = await scripted({ domainSuspend: () => Promise.reject(own) })
  await assert.rejects((await domainOf(conn)).suspend(), (error) => error === own)
})

test('a closed connection refuses every call, and closing it again is nothing', async () => {
  let closed = 0
  const { conn, calls } = await scripted({
    domainSuspend: done,
    connectClose: () => {
      closed += 1
      return done()
    },
  })
  const dom = await domainOf(conn)
  await conn.close()
  await conn.close()
  calls.length = 0
  await refused(dom.suspend(), 'VIR_ERR_INVALID_CONN', /the connection is closed/)
  await refused(conn.getURI(), 'VIR_ERR_INVALID_CONN', /the connection is closed/)
  assert.throws(() => conn.domainEvents(), { code: 'VIR_ERR_INVALID_CONN' })
  assert.equal(calls.length, 0)
  assert.equal(closed, 1)
})

test('`await using` closes a connection', async () => {
  const { conn } = await scripted({})
  {
    await using inUse = conn
    assert.equal(await inUse.getURI(), 'scripted:///')
  }
  await refused(conn.getURI(), 'VIR_ERR_INVALID_CONN', /closed/)
})

test('a connection for reading refuses what changes something, and passwords', async () => {
  const { conn, calls } = await scripted(
    {
      domainSuspend: done,
      domainDefineXML: done,
      domainOpenConsole: done,
      domainGetState: () => Promise.resolve({ state: 1, reason: 1 }),
      domainGetXMLDesc: () => Promise.resolve('<domain/>'),
    },
    { readOnly: true },
  )
  const dom = await domainOf(conn)
  calls.length = 0
  const denied = 'VIR_ERR_OPERATION_DENIED'
  await refused(dom.suspend(), denied, /virDomainSuspend forbidden for read only access/)
  await refused(conn.domainDefineXML('<domain/>'), denied, /virDomainDefineXML forbidden for read only access/)
  await refused(dom.openConsole(), denied, /virDomainOpenConsole forbidden/)
  await refused(dom.getXMLDesc(vs.VIR_DOMAIN_XML_SECURE), denied, /secure flag forbidden/)
  assert.equal(calls.length, 0)
  assert.deepEqual(await dom.getState(), { state: 1, reason: 1 })
  assert.equal(await dom.getXMLDesc(), '<domain/>')
})

test('every operation of a driver that changes something is refused on a connection for reading', async () => {
  const { conn } = await scripted({}, { readOnly: true })
  const dom = await domainOf(conn)
  const calls = [
    () => dom.create(),
    () => dom.destroy(),
    () => dom.shutdown(),
    () => dom.reboot(),
    () => dom.reset(),
    () => dom.suspend(),
    () => dom.resume(),
    () => dom.undefine(),
    () => dom.save('/x'),
    () => dom.managedSave(),
    () => dom.managedSaveRemove(),
    () => dom.setAutostart(true),
    () => dom.blockResize('vda', 1),
    () => dom.blockCommit('vda'),
    () => dom.updateDevice('<disk/>'),
    () => dom.blockPull('vda'),
    () => dom.blockRebase('vda'),
    () => dom.blockJobAbort('vda'),
    () => dom.blockJobSetSpeed('vda', 1),
    () => dom.streamDisk('vda', 0, vs.VIR_STREAM_DISK_START),
    () => dom.qemuMonitorCommand('{}'),
    () => dom.openConsole(),
    () => conn.domainDefineXML('<domain/>'),
    () => conn.domainCreateXML('<domain/>'),
    () => conn.domainRestore('/x'),
  ]
  for (const call of calls) await refused(call(), 'VIR_ERR_OPERATION_DENIED', /forbidden for read only access/)
})

test('names must be there, be strings and have no NUL', async () => {
  const { conn, calls } = await scripted({ domainBlockPull: done })
  const dom = await domainOf(conn)
  calls.length = 0
  const bad = 'VIR_ERR_INVALID_ARG'
  await refused(dom.blockPull(undefined as never), bad, /^disk in virDomainBlockPull must not be NULL$/)
  await refused(dom.blockPull(null as never), bad, /must not be NULL/)
  await refused(dom.blockPull(''), bad, /must not be empty/)
  await refused(dom.blockPull(7 as never), bad, /must be a string, not a number/)
  await refused(dom.blockPull('vda\0'), bad, /must not contain NUL/)
  await refused(conn.domainLookupByName(undefined as never), bad, /^name in virDomainLookupByName must not be NULL$/)
  await refused(conn.domainLookupByUUIDString('xyz'), bad, /must be a valid UUID, not 'xyz'/)
  assert.equal(calls.length, 0)
})

test('numbers must be whole, not negative and exact', async () => {
  const { conn, calls } = await scripted({
    domainBlockPull: done,
    domainStreamDisk: done,
    domainLookupByID: done,
    domainBlockResize: done,
  })
  const dom = await domainOf(conn)
  calls.length = 0
  for (const wrong of [-1, 0.5, NaN, '1'])
    await refused(
      dom.blockPull('vda', wrong as number),
      'VIR_ERR_INVALID_ARG',
      /^bandwidth in virDomainBlockPull must be/,
    )
  await refused(dom.blockPull('vda', Infinity), 'VIR_ERR_OVERFLOW', /at most 9007199254740991/)
  await refused(dom.blockPull('vda', 2 ** 53, 64), 'VIR_ERR_OVERFLOW', /at most 9007199254740991/)
  await refused(dom.blockPull('vda', 2 ** 40), 'VIR_ERR_OVERFLOW', /bandwidth must be less than 8589934592 MiB/)
  await refused(dom.streamDisk('vda', 2 ** 60, vs.VIR_STREAM_DISK_ONE), 'VIR_ERR_OVERFLOW', /offset/)
  await refused(dom.blockResize('vda', 0), 'VIR_ERR_INVALID_ARG', /size in virDomainBlockResize must not be 0/)
  await refused(dom.blockResize('vda', 2 ** 43), 'VIR_ERR_OVERFLOW', /size must be less than 8796093022208 KiB/)
  await refused(conn.domainLookupByID(-1), 'VIR_ERR_INVALID_ARG', /^id in virDomainLookupByID must be zero or greater$/)
  assert.equal(calls.length, 0)
})

test('unknown flags are refused by their bits, and flags that exclude each other', async () => {
  const { conn, calls } = await scripted({ domainCreate: done, domainSave: done, domainUndefine: done })
  const dom = await domainOf(conn)
  calls.length = 0
  const bad = 'VIR_ERR_INVALID_ARG'
  await refused(dom.create(0x4000_0001), bad, /^unsupported flags \(0x40000000\) in function virDomainCreate$/)
  await refused(dom.create(2 ** 32), bad, /unsigned 32-bit/)
  await refused(dom.create(-1), bad, /unsigned 32-bit/)
  await refused(
    dom.save('/x', undefined, vs.VIR_DOMAIN_SAVE_RUNNING | vs.VIR_DOMAIN_SAVE_PAUSED),
    bad,
    /'VIR_DOMAIN_SAVE_RUNNING' and 'VIR_DOMAIN_SAVE_PAUSED' .* mutually exclusive/,
  )
  await refused(
    dom.undefine(vs.VIR_DOMAIN_UNDEFINE_NVRAM | vs.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM),
    bad,
    /mutually exclusive/,
  )
  assert.equal(calls.length, 0)
})

test('the rules of streamDisk hold before the driver is asked', async () => {
  const { conn, calls } = await scripted({ domainStreamDisk: () => Promise.resolve(0) })
  const dom = await domainOf(conn)
  calls.length = 0
  const bad = 'VIR_ERR_INVALID_ARG'
  const { VIR_STREAM_DISK_ONE: ONE, VIR_STREAM_DISK_START: START, VIR_STREAM_DISK_STOP: STOP } = vs
  await refused(dom.streamDisk('vda', 5, START), bad, /^offset must be 0 for continuous streaming$/)
  await refused(dom.streamDisk('vda', 5, STOP), bad, /^offset must be 0 for continuous streaming$/)
  for (const flags of [0, ONE | START, START | STOP, ONE | START | STOP])
    await refused(dom.streamDisk('vda', 0, flags), bad, /exactly one of/)
  await refused(dom.streamDisk('vda', 0, START | 8), bad, /unsupported flags \(0x8\)/)
  await refused(dom.streamDisk('', 0, START), bad, /disk in virDomainStreamDisk must not be empty/)
  await refused(dom.streamDisk('vda', 0, START, { policy: 'fast' as never }), bad, /'full' or 'idle', not 'fast'/)
  await refused(dom.streamDisk('vda', 0, START, { bandwidth: -1 }), bad, /bandwidth/)
  await refused(dom.streamDisk('vda', 0, START, { base: '' }), bad, /base/)
  await refused(dom.streamDisk('vda', 0, ONE, { unit: 0 }), bad, /unit must be at least 1 byte, not '0'/)
  const signal = AbortSignal.abort(new Error('changed my mind'))
  await refused(dom.streamDisk('vda', 0, START, { signal }), 'VIR_ERR_OPERATION_ABORTED', /before it began/)
  assert.equal(calls.length, 0)

  assert.equal(await dom.streamDisk('vda', 0, START, { bandwidth: 7, base: '/base' }), 0)
  assert.deepEqual(calls[0]?.args.slice(1), ['vda', 0, START, { bandwidth: 7, base: '/base' }])
  assert.equal(await dom.streamDisk('vda', 5, ONE), 0)
})

test("the proposal's functions are the same calls, and its count limits the answer", async () => {
  const state = {
    path: 'virtio-disk0',
    offset: 1,
    size: 2,
    disk: 'vda',
    mode: 'full',
    bandwidth: 0,
    status: 'running',
  } as const
  const { conn, calls } = await scripted({
    domainStreamDisk: () => Promise.resolve(0),
    domainStreamDiskInfo: () => Promise.resolve([state, { ...state, disk: 'vdb' }]),
  })
  const dom = await domainOf(conn)
  assert.equal(await vs.virDomainStreamDisk(dom, 'vda', 0, vs.VIR_STREAM_DISK_START), 0)
  assert.equal(calls.at(-1)?.name, 'domainStreamDisk')
  assert.deepEqual(await vs.virDomainStreamDiskInfo(dom, 1, 0), [state])
  assert.equal((await vs.virDomainStreamDiskInfo(dom, 16)).length, 2)
  await refused(vs.virDomainStreamDiskInfo(dom, -1), 'VIR_ERR_INVALID_ARG', /nr_states/)
})

test('the limit of a block job is told in MiB/s, or in bytes/s when that is asked for', async () => {
  const info = { type: 1, bandwidth: 1_500_000, cur: 1, end: 2 }
  const { conn } = await scripted({ domainGetBlockJobInfo: () => Promise.resolve(info) })
  const dom = await domainOf(conn)
  assert.equal((await dom.blockJobInfo('vda'))?.bandwidth, 2)
  assert.equal((await dom.blockJobInfo('vda', vs.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES))?.bandwidth, 1_500_000)
})

test('a handle knows the id of the run that it started, and that there is none after destroy', async () => {
  const { conn } = await scripted({ domainCreate: () => Promise.resolve({ ...ref, id: 9 }), domainDestroy: done })
  const dom = await domainOf(conn)
  await dom.create()
  assert.equal(dom.id, 9)
  await dom.destroy()
  assert.equal(dom.id, -1)
  assert.equal(JSON.stringify(dom), JSON.stringify({ name: ref.name, uuid: ref.uuid, id: -1 }))
})

test('a UUID is found however it is written', async () => {
  const { conn, calls } = await scripted({ domainLookupByUUID: () => Promise.resolve(ref) })
  await conn.domainLookupByUUIDString('6695EB01F6A4830479AA97F2502E193F')
  assert.deepEqual(calls.at(-1)?.args, ['6695eb01-f6a4-8304-79aa-97f2502e193f'])
})

test('opening finds the driver by scheme or by name, and says what is wrong otherwise', async () => {
  const drivers: HypervisorDriver[] = [
    { name: 'first', uriSchemes: ['one'], open: () => Promise.resolve(undefined) },
    {
      name: 'second',
      uriSchemes: ['one'],
      open: () => Promise.resolve({ connectGetType: () => Promise.resolve('2nd') }),
    },
    { name: 'broken', uriSchemes: ['three'], open: () => Promise.reject(new Error('no such file')) },
  ]
  assert.equal(await (await vs.Connect.open('one:///', { drivers })).getType(), '2nd')
  assert.equal(await (await vs.Connect.open('other:///', { drivers, driver: 'second' })).getType(), '2nd')
  await refused(vs.Connect.open('one:///', { drivers, driver: 'first' }), 'VIR_ERR_NO_CONNECT', /'one:\/\/\/'/)
  await refused(vs.Connect.open('none:///', { drivers }), 'VIR_ERR_NO_CONNECT', /no connection driver available/)
  await refused(vs.Connect.open('no uri', { drivers }), 'VIR_ERR_INVALID_ARG', /'no uri' is not a connection URI/)
  await refused(
    vs.Connect.open('one:///', { drivers, driver: 'x' }),
    'VIR_ERR_INVALID_ARG',
    /no driver 'x', only 'first'/,
  )
  await refused(vs.Connect.open('three:///', { drivers }), 'VIR_ERR_INTERNAL_ERROR', /no such file/)
})

test('security drivers and the lock manager are handed to the driver', async () => {
  const security = [{ name: 'dac', probe: () => Promise.resolve(undefined) }]
  const lockManager: LockDriver = {
    name: 'virtlockd',
    acquire: (owner, resources) => Promise.resolve({ owner, resources }),
    release: () => Promise.resolve(undefined),
    inquire: () => Promise.resolve(true),
  }
  const { host } = await scripted({}, { security, lockManager })
  assert.equal(host.security, security)
  assert.equal(host.lockManager, lockManager)
  assert.equal((await scripted({})).host.security, undefined)
})
