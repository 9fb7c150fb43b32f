/** Memory that goes over by a transport: real guests that know what their memory and their disk must hold. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { PassThrough, Transform } from 'node:stream'
import { test } from 'node:test'
import { constants, createGunzip, createGzip } from 'node:zlib'
import { Stack } from '../../scripts/program.js'
import {
  VIR_DOMAIN_ABORT_JOB_POSTCOPY,
  VIR_DOMAIN_EVENT_RESUMED,
  VIR_DOMAIN_EVENT_RESUMED_POSTCOPY,
  VIR_DOMAIN_JOB_STATS_COMPLETED,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_POSTCOPY_RESUME,
  VIR_MIGRATE_STREAM_DISKS,
  VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY,
  type DomainJobStats,
  type MigrateParams,
  type MigrationTransport,
} from '../../src/index.js'
import { reconnect, twoApart } from '../support/apart.js'
import { diskXml, lifecycleOf, recordEvents, startPlain, testRoot, until, virError } from '../support/domain.js'
import { emptyImage } from '../support/images.js'
import { assertWhole, guestWithMemory, start } from '../support/memory-guest.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS
const MiB = 1 << 20

const gzip: MigrationTransport = {
  name: 'gzip',
  encode: () => createGzip({ level: 1, flush: constants.Z_SYNC_FLUSH }),
  decode: () => createGunzip(),
}

/** One that breaks at a side after 8 MiB. */
function torn(name: string, at: 'encode' | 'decode'): MigrationTransport {
  const tear = (): Transform => {
    let left = 8 * MiB
    return new Transform({
      transform(chunk: Buffer, _encoding, done) {
        left -= chunk.length
        if (left > 0) done(null, chunk)
        else done(new Error(`${name} is torn`))
      },
    })
  }
  const whole = (): Transform => new PassThrough()
  return { name, encode: at === 'encode' ? tear : whole, decode: at === 'decode' ? tear : whole }
}

test('memory goes compressed, with its disk in each way, and comes back so, right to the last byte', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const own = { transports: [gzip, torn('torn-here', 'encode'), torn('torn-there', 'decode')] }
  const [here, there] = [await testRoot(t, own), await testRoot(t, own)]
  const { dom, params, guest, memory } = await guestWithMemory(t, here, there, 'text')
  await guest.command('sh (while :; do date > /tick; sleep 0.05; done) > /dev/null 2>&1 &')
  await guest.work('vda', 'slowly')
  const assertShorter = ({ transport, transportBytes = 0, memProcessed }: DomainJobStats, name: string): void => {
    assert.equal(transport, name)
    assert.ok(transportBytes > 0 && transportBytes < memProcessed / 2, `${transportBytes} of ${memProcessed}`)
  }
  for (const transport of ['torn-here', 'torn-there']) {
    await assert.rejects(
      dom.migrate(there.conn, { ...params, transport }, STREAM),
      virError('VIR_ERR_OPERATION_FAILED', /could not be migrated/),
    )
    assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
    assert.deepEqual(await there.conn.listAllDomains(), [])
  }

  await dom.migrate(there.conn, { ...params, transport: 'zstd', diskStreamBandwidth: 2 * MiB }, STREAM)
  assertShorter(await dom.getJobStats(), 'zstd')
  await dom.abortJob()
  await assertWhole(t, here, memory)

  const uri = `zstd+unix://${join(there.folder, 'root/run/migration/tunnel.sock')}`
  const mirrored = await dom.migrate(there.conn, { ...params, uri }, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK)
  assertShorter(await dom.getJobStats(VIR_DOMAIN_JOB_STATS_COMPLETED), 'zstd')
  await assertWhole(t, there, memory)

  const xml = (await mirrored.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replace(
    join(there.folder, 'guest.serial'),
    join(here.folder, 'guest.serial'),
  )
  const cache = { compression: 'xbzrle', compressionXbzrleCache: 32 * MiB }
  const how = { destinationXML: xml, transport: 'gzip', ...cache, bandwidth: 16, downtime: 1 }
  const going = start(mirrored, here, how, VIR_MIGRATE_LIVE)
  await until('pages go as what has changed', async () => ((await mirrored.getJobStats()).compressionPages ?? 0) > 0)
  const { transport, transportBytes = 0, ...stats } = await mirrored.getJobStats()
  assert.deepEqual([transport, stats.compressionCache], ['gzip', 32 * MiB])
  assert.ok(transportBytes > 0 && (stats.compressionBytes ?? 0) > 0, JSON.stringify(stats))
  assert.ok((stats.compressionCacheMisses ?? 0) > 0 && stats.compressionOverflow !== undefined, JSON.stringify(stats))
  await mirrored.migrateSetMaxDowntime(1_000)
  await going
  await assertWhole(t, here, memory)
  assert.deepEqual(leftOf(there), [])
})

test('a link that is cut within compressed memory leaves the guest; memory that follows compressed is gone on with after a break', async (context) => {
  if (!requires(context, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const apart = await twoApart(t)
  const { here, there, link } = apart
  const { dom, params, guest, memory } = await guestWithMemory(t, here, there, 'text')
  await guest.work('vda', 'slowly')
  const slow: MigrateParams = {
    ...params,
    uri: there.uri,
    transport: 'zstd',
    bandwidth: 4,
    diskStreamBandwidth: 8 * MiB,
  }
  const going = start(dom, there, slow, STREAM)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 4 * MiB)
  link.cut()
  await assert.rejects(going, virError('VIR_ERR_OPERATION_FAILED', /./))
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await reconnect(apart)

  const events = recordEvents(there.direct)
  const postcopy = VIR_MIGRATE_POSTCOPY | STREAM
  const following = start(dom, there, { ...slow, transport: 'auto', bandwidth: 1, bandwidthPostcopy: 1 }, postcopy)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.migrateStartPostCopy()
  const reason = async (): Promise<number> => (await dom.getState()).reason
  const runs = `${VIR_DOMAIN_EVENT_RESUMED}/${VIR_DOMAIN_EVENT_RESUMED_POSTCOPY}`
  await until('it runs there', () => lifecycleOf(events).includes(runs))
  const { memProcessed } = await dom.getJobStats()
  await until('more of it follows', async () => (await dom.getJobStats()).memProcessed > memProcessed + MiB)
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_POSTCOPY)
  await until('it is interrupted', async () => (await reason()) === VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
  const resumed = start(dom, there, {}, postcopy | VIR_MIGRATE_POSTCOPY_RESUME)
  await until('it goes on', async () => (await reason()) === VIR_DOMAIN_PAUSED_POSTCOPY)
  await dom.migrateSetMaxSpeed(0, VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)
  await Promise.all([following, resumed])
  assert.equal((await dom.getJobStats()).transport, 'zstd')
  await assertWhole(t, there, memory)
  await until('the source is free', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
})

test('a transport that a side does not have, or that is named twice, is refused, and the guest stays', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t, { transports: [gzip] }), await testRoot(t)]
  const image = await emptyImage(here.folder, 'qcow2', MiB, 'disk.qcow2')
  const dom = await startPlain(here, { devices: diskXml('vda', image) })
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const refused = (params: MigrateParams, code: Parameters<typeof virError>[0], words: RegExp): Promise<void> =>
    assert.rejects(dom.migrate(there.conn, { destinationXML, ...params }, STREAM), virError(code, words))
  const unsupported = 'VIR_ERR_ARGUMENT_UNSUPPORTED'
  await refused({ transport: 'pigeon' }, unsupported, /no transport 'pigeon' on this host$/)
  await refused({ uri: 'pigeon+tls://there/' }, unsupported, /no transport 'pigeon' on this host$/)
  await refused({ transport: 'gzip' }, unsupported, /no transport 'gzip' on this host$/)
  await refused({ uri: 'zstd+tls://there/', transport: 'gzip' }, 'VIR_ERR_INVALID_ARG', /another transport than 'gzip'/)
  await refused({ transport: 'xbzrle', compression: 'mt' }, 'VIR_ERR_INVALID_ARG', /with compression 'mt'/)
  await refused({ transport: 7 as never }, 'VIR_ERR_INVALID_ARG', /transport/)
  await refused({ uri: 'zstd+tcp://192.0.2.1/' }, 'VIR_ERR_OPERATION_FAILED', /'virstream\+tcp:\/\/192\.0\.2\.1\/'/)
  assert.equal(await dom.isActive(), true)
  assert.deepEqual(await there.conn.listAllDomains(), [])
  assert.deepEqual(leftOf(there), [])
})
