/** What cannot be streamed, and what cannot be asked: each with its code and a sentence, and nothing changes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  Connect,
  virDomainStreamDisk,
  virDomainStreamDiskInfo,
  VIR_STREAM_DISK_CANCEL,
  VIR_STREAM_DISK_ONE,
  VIR_STREAM_DISK_START,
  VIR_STREAM_DISK_STOP,
} from '../../src/index.js'
import { diskXml, plainXml, startPlain, testRoot, virError } from '../support/domain.js'
import { backingOf, emptyImage, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

const cdrom = (target: string, path?: string): string => `<disk type='file' device='cdrom'>
  <driver name='qemu' type='raw'/>${path === undefined ? '' : `<source file='${path}'/>`}
  <target dev='${target}' bus='sata'/><readonly/></disk>`

test('disks that have nothing to stream are refused, each with its reason', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const image = (name: string, format: string): Promise<string> => emptyImage(root.folder, format, MiB, name)
  const devices = [
    diskXml('vda', await overlay(root.folder, base.path), { extra: '<readonly/>' }),
    diskXml('vdb', await image('plain.qcow2', 'qcow2')),
    diskXml('vdc', await image('plain.raw', 'raw'), { format: 'raw' }),
    cdrom('sda', await image('cd.iso', 'raw')),
    cdrom('sdb'),
  ]
  const dom = await startPlain(root, { name: 'refusing', devices: devices.join('') })
  const before = await dom.getXMLDesc(0)
  const refusals: [string, ReturnType<typeof virError>][] = [
    ['vda', virError('VIR_ERR_OPERATION_INVALID', /^disk 'vda' is read-only$/)],
    ['vdb', virError('VIR_ERR_OPERATION_INVALID', /^disk 'vdb' has no backing image/)],
    ['vdc', virError('VIR_ERR_CONFIG_UNSUPPORTED', /^disk 'vdc' has format 'raw', which has no backing image/)],
    ['sda', virError('VIR_ERR_OPERATION_INVALID', /^disk 'sda' is a 'cdrom' and cannot be streamed$/)],
    ['sdb', virError('VIR_ERR_OPERATION_INVALID', /^disk 'sdb' has no medium$/)],
    ['vdz', virError('VIR_ERR_INVALID_ARG', /^invalid path 'vdz'/)],
  ]
  for (const [disk, refusal] of refusals) {
    await assert.rejects(dom.streamDisk(disk, 0, VIR_STREAM_DISK_START), refusal)
    await assert.rejects(dom.stream(disk), refusal)
    await assert.rejects(dom.blockPull(disk), refusal)
  }
  assert.deepEqual(await dom.streamDiskInfo(), [])
  assert.equal(await dom.getXMLDesc(0), before)
})

test('arguments that make no sense are refused before anything is asked of QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'asked', devices: diskXml('vda', path) })
  const offset = virError('VIR_ERR_INVALID_ARG', /^offset must be 0 for continuous streaming$/)
  await assert.rejects(dom.streamDisk('vda', 512, VIR_STREAM_DISK_START), offset)
  await assert.rejects(dom.streamDisk('vda', 512, VIR_STREAM_DISK_STOP), offset)
  const oneMode = virError('VIR_ERR_INVALID_ARG', /^exactly one of VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START and/)
  for (const flags of [0, 3, 6, 7]) await assert.rejects(dom.streamDisk('vda', 0, flags), oneMode)
  await assert.rejects(dom.streamDisk('vda', 0, 8), virError('VIR_ERR_INVALID_ARG', /unsupported flags \(0x8\)/))
  await assert.rejects(
    dom.streamDisk('', 0, VIR_STREAM_DISK_START),
    virError('VIR_ERR_INVALID_ARG', /must not be empty/),
  )
  await assert.rejects(
    dom.streamDisk(undefined as unknown as string, 0, VIR_STREAM_DISK_START),
    virError('VIR_ERR_INVALID_ARG', /must not be NULL/),
  )
  await assert.rejects(
    dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: -1 }),
    virError('VIR_ERR_INVALID_ARG', /bandwidth in virDomainStreamDisk must be zero or greater/),
  )
  await assert.rejects(
    dom.streamDisk('vda', 2 ** 60, VIR_STREAM_DISK_ONE),
    virError('VIR_ERR_OVERFLOW', /offset in virDomainStreamDisk must be at most/),
  )
  for (const stop of [VIR_STREAM_DISK_STOP, VIR_STREAM_DISK_CANCEL])
    await assert.rejects(
      dom.streamDisk('vda', 0, stop),
      virError('VIR_ERR_OPERATION_INVALID', /^disk 'vda' does not have an active block job$/),
    )
  assert.equal(await backingOf(path), base.path)
})

test('a disk has one stream at a time, and the second does the first no harm', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'once', devices: diskXml('vda', path) })
  const busy = virError('VIR_ERR_OPERATION_INVALID', /^disk 'vda' already in active block job$/)
  const stream = await dom.stream('vda', { bandwidth: MiB })
  await assert.rejects(virDomainStreamDisk(dom, 'virtio-disk0', 0, VIR_STREAM_DISK_START), busy)
  await assert.rejects(dom.blockPull(path), busy)
  await assert.rejects(dom.stream('vda'), busy)
  assert.equal((await virDomainStreamDiskInfo(dom, 10)).length, 1)
  assert.equal((await virDomainStreamDiskInfo(dom, 0)).length, 0)
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(path), undefined)
})

test('of two calls that start a stream at the same moment one wins', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'race', devices: diskXml('vda', path) })
  const begin = (): Promise<number> => dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
  const results = await Promise.allSettled([begin(), begin(), begin()])
  assert.deepEqual(results.map((result) => result.status).toSorted(), ['fulfilled', 'rejected', 'rejected'])
  assert.equal((await dom.streamDiskInfo()).length, 1)
  const stops = [dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP), dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)]
  const stopped = await Promise.allSettled(stops)
  assert.deepEqual(stopped.map((result) => result.status).toSorted(), ['fulfilled', 'rejected'])
  assert.deepEqual(await dom.streamDiskInfo(), [])
})

test('a domain that does not run refuses what needs a running one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const path = await emptyImage(root.folder, 'qcow2', MiB)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices: diskXml('vda', path) }))
  const notRunning = virError('VIR_ERR_OPERATION_INVALID', /^domain is not running$/)
  const calls = [
    () => dom.suspend(),
    () => dom.resume(),
    () => dom.shutdown(),
    () => dom.reboot(),
    () => dom.reset(),
    () => dom.destroy(),
    () => dom.managedSave(),
    () => dom.blockStats('vda'),
    () => dom.openConsole(),
  ]
  for (const call of calls) await assert.rejects(call(), notRunning, call.toString())
  await dom.undefine()
  await assert.rejects(dom.getState(), virError('VIR_ERR_NO_DOMAIN', /no domain with matching uuid/))
})

test('a connection for reading changes nothing', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  await root.conn.domainDefineXML(plainXml({ name: 'seen', devices: '' }))
  await root.conn.close()
  const conn = await Connect.openReadOnly(root.uri)
  root.conn = conn
  const dom = await conn.domainLookupByName('seen')
  const denied = virError('VIR_ERR_OPERATION_DENIED', /forbidden for read only access/)
  for (const call of [
    () => dom.create(),
    () => dom.undefine(),
    () => dom.streamDisk('vda', 0, VIR_STREAM_DISK_START),
    () => conn.domainDefineXML('<domain/>'),
  ])
    await assert.rejects(call(), denied, call.toString())
  assert.equal(await dom.isActive(), false)
})
