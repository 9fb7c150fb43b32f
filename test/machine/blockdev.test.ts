import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { DiskDef, StorageSource } from '../../src/conf/domain-def.js'
import { diskNodes, formatNode, imageOptions, type BlockdevOptions } from '../../src/machine/blockdev.js'
import { QmpSchema } from '../support/qmp-schema.js'
import type { SchemaInfo } from '../../src/machine/capabilities-schema.js'
import { run } from '../../src/util/run.js'
import { emptyImage, temporaryFolder } from '../support/images.js'
import { startQemuNbd } from '../support/nbd-server.js'
import { requires } from '../support/requires.js'
import { startQemu, withoutMachine, type TestQemu } from './command-qemu.js'

const MiB = 1024 * 1024

function file(path: string, index: number, format: string, backingStore: StorageSource | null = null): StorageSource {
  return { type: 'file', path, index, format, backingStore }
}

function diskOf(source: StorageSource | undefined, more: Partial<DiskDef> = {}): DiskDef {
  const rest = { readonly: false, shareable: false, driver: {}, ...more }
  return { device: 'disk', target: 'vda', bus: 'virtio', ...(source && { source }), ...rest }
}

const nodeOf = (nodes: BlockdevOptions[], name: string): BlockdevOptions => {
  const found = nodes.find((node) => node['node-name'] === name)
  assert.ok(found, `there is no node '${name}'`)
  return found
}

async function addAll(qemu: TestQemu, schema: QmpSchema, nodes: BlockdevOptions[]): Promise<void> {
  for (const node of nodes) {
    assert.deepEqual(schema.checkCommand('blockdev-add', node), [])
    await qemu.execute('blockdev-add', node)
  }
}

async function schemaOf(qemu: TestQemu): Promise<QmpSchema> {
  return new QmpSchema(await qemu.execute<SchemaInfo[]>('query-qmp-schema'))
}

/** base (raw) ← middle (qcow2) ← top (qcow2), as files and as a definition. */
async function chain(t: TestContext): Promise<{ folder: string; top: StorageSource; middle: StorageSource }> {
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base, with comma.raw')
  const [middle, top] = [join(folder, 'middle.qcow2'), join(folder, 'top.qcow2')]
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', middle])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', middle, '-F', 'qcow2', top])
  const middleSource = file(middle, 2, 'qcow2', file(base, 3, 'raw'))
  return { folder, top: file(top, 1, 'qcow2', middleSource), middle: middleSource }
}

test('a chain of three images becomes nodes from the bottom up, with a guard below the own image', () => {
  const source = file('/t', 1, 'qcow2', file('/m', 2, 'qcow2', file('/b', 3, 'raw')))
  const { nodes, device, format } = diskNodes(diskOf(source))
  assert.deepEqual(
    nodes.map((node) => node['node-name']),
    [
      ...['node-3-storage', 'node-3-format', 'node-2-storage', 'node-2-format'],
      ...['node-2-guard', 'node-1-storage', 'node-1-format'],
    ],
  )
  assert.equal(nodeOf(nodes, 'node-1-format')['backing'], 'node-2-guard')
  assert.equal(nodeOf(nodes, 'node-2-format')['backing'], 'node-3-format')
  assert.equal('backing' in nodeOf(nodes, 'node-3-format'), false)
  assert.deepEqual(
    nodes.map((node) => node['read-only']),
    [undefined, true, undefined, true, true, undefined, false],
  )
  assert.deepEqual([device, format], ['node-1-format', 'node-1-format'])
})

test('without the quorum driver there is no guard', () => {
  const source = file('/t', 1, 'qcow2', file('/b', 2, 'raw'))
  const { nodes } = diskNodes(diskOf(source), { caps: { hasBlockDriver: (name) => name !== 'quorum' } })
  assert.equal(nodeOf(nodes, 'node-1-format')['backing'], 'node-2-format')
  assert.equal(nodes.length, 4)
})

test('QEMU takes a chain with guard and copy-on-read and sees the backing images', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const { top } = await chain(t)
  const { nodes, device, format } = diskNodes(diskOf(top, { driver: { copyOnRead: 'on' } }))
  assert.deepEqual([device, format], ['cor-vda', 'node-1-format'])
  await addAll(qemu, await schemaOf(qemu), nodes)
  const known = await qemu.execute<{ 'node-name': string; drv: string; backing_file_depth: number; ro: boolean }[]>(
    'query-named-block-nodes', // with flat=true the depth is always 0
  )
  const told = new Map(known.map((node) => [node['node-name'], node]))
  assert.equal(told.get('node-2-guard')?.drv, 'quorum')
  assert.equal(told.get('node-2-format')?.backing_file_depth, 1)
  assert.deepEqual([told.get('node-1-format')?.ro, told.get('node-2-format')?.ro], [false, true])
})

test('an image is reopened with another backing link from its complete options', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const { top } = await chain(t)
  const disk = diskOf(top, { driver: { cache: 'none', discard: 'unmap', detectZeroes: 'unmap' } })
  const schema = await schemaOf(qemu)
  await addAll(qemu, schema, diskNodes(disk).nodes)
  const options = formatNode(top, { ...imageOptions(disk, top), backing: 'node-3-format' })
  assert.deepEqual(schema.checkCommand('blockdev-reopen', { options: [options] }), [])
  await qemu.execute('blockdev-reopen', { options: [options] })
  await qemu.execute('blockdev-del', { 'node-name': 'node-2-guard' })
  await assert.rejects(qemu.execute('blockdev-del', { 'node-name': 'node-3-format' }), /node is used as backing/)
})

const cacheModes = {
  none: { direct: true, 'no-flush': false },
  writethrough: { direct: false, 'no-flush': false },
  writeback: { direct: false, 'no-flush': false },
  directsync: { direct: true, 'no-flush': false },
  unsafe: { direct: false, 'no-flush': true },
  default: undefined,
} as const

test('each cache mode becomes options of every node of the chain', () => {
  for (const [mode, cache] of Object.entries(cacheModes)) {
    const disk = diskOf(file('/t', 1, 'qcow2', file('/b', 2, 'raw')), { driver: { cache: mode as 'none' } })
    for (const node of diskNodes(disk).nodes.filter((one) => one.driver !== 'quorum')) {
      assert.deepEqual(node['cache'], cache, `${mode}: ${node['node-name']}`)
    }
  }
})

test('aio and discard hold for the whole chain, zero detection and the metadata cache only for the own image', () => {
  const driver = { io: 'native', discard: 'unmap', detectZeroes: 'unmap', metadataCacheSize: 4 * MiB } as const
  const { nodes } = diskNodes(diskOf(file('/t', 1, 'qcow2', file('/b', 2, 'qcow2')), { driver }))
  assert.deepEqual(
    [nodeOf(nodes, 'node-1-storage')['aio'], nodeOf(nodes, 'node-2-storage')['aio']],
    ['native', 'native'],
  )
  assert.deepEqual(
    [nodeOf(nodes, 'node-1-format')['detect-zeroes'], nodeOf(nodes, 'node-2-format')['detect-zeroes']],
    ['unmap', undefined],
  )
  assert.deepEqual(
    [nodeOf(nodes, 'node-1-format')['cache-size'], nodeOf(nodes, 'node-2-format')['cache-size']],
    [4 * MiB, undefined],
  )
})

test('detecting zeroes in order to unmap falls back to writing them where discards are ignored', () => {
  const { nodes } = diskNodes(diskOf(file('/t', 1, 'raw'), { driver: { detectZeroes: 'unmap' } }))
  assert.equal(nodeOf(nodes, 'node-1-format')['detect-zeroes'], 'on')
})

test('a slice is offset and size of a raw image, and a node of its own below another format', async (t) => {
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  const folder = await temporaryFolder(t)
  const inner = await emptyImage(folder, 'qcow2', MiB)
  const outer = await emptyImage(folder, 'raw', 8 * MiB)
  await run('dd', [`if=${inner}`, `of=${outer}`, 'bs=1M', 'seek=1', 'conv=notrunc'])
  const slice = { offset: MiB, size: 4 * MiB }
  const schema = await schemaOf(qemu)
  const readonly = true
  await addAll(qemu, schema, diskNodes(diskOf({ ...file(outer, 1, 'qcow2'), slice }, { readonly })).nodes)
  await addAll(qemu, schema, diskNodes(diskOf({ ...file(outer, 2, 'raw'), slice }, { readonly })).nodes)
  const known =
    await qemu.execute<{ 'node-name': string; image: { 'virtual-size': number } }[]>('query-named-block-nodes')
  const size = (name: string): number | undefined => known.find((n) => n['node-name'] === name)?.image['virtual-size']
  assert.deepEqual(['node-1-format', 'node-1-slice', 'node-2-format'].map(size), [MiB, 4 * MiB, 4 * MiB])
})

test('an NBD base over a unix socket and over TCP is reached, reconnecting for ever', async (t) => {
  if (!requires(t, 'program:qemu-nbd')) return
  const folder = await temporaryFolder(t)
  const image = await emptyImage(folder, 'raw', MiB)
  const common = { image, format: 'raw', export: 'base' }
  const servers = [await startQemuNbd(t, { ...common, socket: join(folder, 'sock') }), await startQemuNbd(t, common)]
  const qemu = await startQemu(t, withoutMachine)
  if (!qemu) return
  for (const [at, { source }] of servers.entries()) {
    const { nodes } = diskNodes(diskOf({ ...source, format: 'raw', index: at + 1 }, { readonly: true }))
    assert.equal(nodes[0]?.['reconnect-delay'], 4_000_000_000)
    await addAll(qemu, await schemaOf(qemu), nodes)
  }
})

function nbd(more: Partial<Extract<StorageSource, { type: 'network' }>> = {}): StorageSource {
  return { type: 'network', protocol: 'nbd', hosts: [{ name: 'server.example' }], format: 'raw', index: 1, ...more }
}

test('NBD without a port uses the registered one, as text', () => {
  const { nodes } = diskNodes(diskOf(nbd()))
  assert.deepEqual(nodes[0]?.['server'], { type: 'inet', host: 'server.example', port: '10809' })
  assert.equal('export' in nodes[0], false)
})

test('the XML says how long an NBD node tries to reconnect', () => {
  assert.equal(diskNodes(diskOf(nbd({ reconnectDelay: 10 }))).nodes[0]?.['reconnect-delay'], 10)
})

test('NBD with TLS names the credentials, and is refused where there are none', () => {
  const source = nbd({ tls: 'yes' })
  assert.equal(diskNodes(diskOf(source), { tlsCreds: 'creds' }).nodes[0]?.['tls-creds'], 'creds')
  assert.throws(() => diskNodes(diskOf(source)), { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
})

test('a web image has its URL in the node and its cookies in a secret', () => {
  const { nodes, secrets } = diskNodes(
    diskOf({
      ...{ type: 'network', protocol: 'https', name: 'img/a b.qcow2', query: 'x=1&y=2', format: 'raw', index: 7 },
      ...{ hosts: [{ name: '::1', port: 8443 }], ssl: { verify: 'no' }, readahead: 65536, timeout: 6 },
      cookies: [
        { name: 'a', value: '1' },
        { name: 'b', value: '2' },
      ],
    }),
  )
  const url = 'https://[::1]:8443/img/a b.qcow2?x=1&y=2'
  const common = { 'node-name': 'node-7-storage', 'auto-read-only': true, discard: 'unmap' }
  const specific = { driver: 'https', url, sslverify: false, readahead: 65536, timeout: 6 }
  assert.deepEqual(nodes[0], { ...common, ...specific, 'cookie-secret': 'node-7-cookies' })
  assert.deepEqual(secrets, [{ id: 'node-7-cookies', data: 'a=1; b=2' }])
})

test('what QEMU cannot do is refused by name', () => {
  const refused = (source: StorageSource, code = 'VIR_ERR_CONFIG_UNSUPPORTED'): void =>
    assert.throws(() => diskNodes(diskOf(source)), { code })
  refused(file('/x', 1, 'constructor'))
  refused(file('/x', 1, 'raw', file('/y', 2, 'raw')))
  refused({ type: 'network', protocol: 'nbd', hosts: [{ name: 'a' }, { name: 'b' }], format: 'raw', index: 1 })
  refused({ type: 'network', protocol: 'http', hosts: [], format: 'raw', index: 1 })
  refused({ type: 'file', path: '/x', index: 1, format: 'qcow2' }, 'VIR_ERR_INTERNAL_ERROR')
  refused({ type: 'file', path: '/x', format: 'raw' }, 'VIR_ERR_INTERNAL_ERROR')
  assert.throws(() => diskNodes(diskOf(undefined)), { code: 'VIR_ERR_OPERATION_INVALID' })
})

test('node names stay within the 31 bytes that QEMU allows', () => {
  const source = file('/t', 4_294_967_295, 'qcow2', file('/b', 4_294_967_294, 'raw'))
  const { nodes } = diskNodes(diskOf(source, { target: 'vdzzzzzzz', driver: { copyOnRead: 'on' } }))
  for (const node of nodes) assert.ok(node['node-name'].length <= 31, node['node-name'])
})
