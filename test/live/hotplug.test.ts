/** Disks that come to a running guest and leave it, also in the middle of a stream. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  Connect,
  VIR_DOMAIN_AFFECT_CONFIG,
  VIR_DOMAIN_AFFECT_LIVE,
  VIR_DOMAIN_START_PAUSED,
  VIR_DOMAIN_XML_INACTIVE,
  type Domain,
} from '../../src/index.js'
import {
  diskXml,
  powerOff,
  recordEvents,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { backingOf, checkImage, emptyImage, overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024
const both = VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_AFFECT_CONFIG

/** Names of the nodes that QEMU has. */
async function nodesOf(dom: Domain): Promise<string[]> {
  const answer = await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes","arguments":{"flat":true}}')
  return (JSON.parse(answer) as { return: { 'node-name': string }[] }).return.map((node) => node['node-name'])
}

test('a disk is plugged in, used, streamed, and unplugged when that is over', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const first = await emptyImage(root.folder, 'qcow2', 4 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { name: 'plug', devices: diskXml('vda', first) })
  const events = recordEvents(root.conn)
  const nodes = await nodesOf(dom)

  await dom.attachDevice(diskXml('vdb', path), both)
  const [live, kept] = [await dom.getXMLDesc(), await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)]
  const place = /<target dev='vdb'[^]*?(<address type='pci'[^>]*>)/
  assert.match(live, /<alias name='virtio-disk1'\/>/)
  assert.equal(place.exec(live)?.[1], place.exec(kept)?.[1])
  await guest.base('vdb', base.seed, base.size)
  await guest.work('vdb')
  await assert.rejects(
    dom.attachDevice(diskXml('vdb', first)),
    virError('VIR_ERR_OPERATION_INVALID', /^target 'vdb' already exists$/),
  )

  const stream = await dom.stream('vdb', { bandwidth: 4 * MiB })
  const busy = virError('VIR_ERR_OPERATION_UNSUPPORTED', /^disk 'vdb' already in active block job$/)
  await assert.rejects(dom.detachDevice(diskXml('vdb', path), both), busy)
  assert.equal(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), kept)
  await stream.setBandwidth(0)
  await stream.finished
  await guest.stop()
  assert.equal((await guest.verify('vdb')).bad, 0)
  const digest = await guest.digest('vdb')

  await dom.detachDevice(diskXml('vdb', path), both)
  await until('the disk is gone', () => events.some((event) => event.kind === 'device-removed'))
  for (const flags of [0, VIR_DOMAIN_XML_INACTIVE]) assert.ok(!(await dom.getXMLDesc(flags)).includes("'vdb'"))
  assert.deepEqual(await nodesOf(dom), nodes)
  assert.deepEqual([...(await guest.disks()).keys()], ['vda'])
  assert.deepEqual(
    events.flatMap((event) => ('alias' in event && event.kind !== 'io-error' ? [`${event.kind} ${event.alias}`] : [])),
    ['device-added virtio-disk1', 'device-removed virtio-disk1'],
  )
  await checkImage(path)
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).digest, digest)
  await powerOff(dom, guest)
})

for (const engine of ['job', 'pull'] as const) {
  test(`engine '${engine}': a guest that lets go of a disk in mid-stream ends the stream, and nothing is left of it`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 16 * MiB)
    const at = { path: join(root.folder, 'base.nbd') }
    await qemuNbd(t, base.path, at)
    const first = await emptyImage(root.folder, 'qcow2', 4 * MiB)
    const path = await overlay(root.folder, nbdUri(at))
    const { dom, guest } = await startGuest(t, root, { name: `plug-${engine}`, devices: diskXml('vda', first) })
    const nodes = await nodesOf(dom)
    await dom.attachDevice(diskXml('vdb', path))
    await guest.base('vdb', base.seed, base.size)
    assert.equal((await guest.command('write vdb 5')).text, 'seq=1 err=0')
    const stream = await dom.stream('vdb', { bandwidth: 1 * MiB, engine })
    await until('the stream moves', async () => ((await stream.info())?.offset ?? 0) > 0)
    const eject = `d=$(readlink -f /sys/block/vdb/device); d=\${d%/virtio*}; d=\${d##*/};
      for s in /sys/bus/pci/slots/*; do [ "$(cat $s/address)" = "\${d%.*}" ] && echo 0 > $s/power; done; true`
    await guest.command(`sh ${eject.replaceAll('\n', ' ')}`)

    await assert.rejects(stream.finished, virError('VIR_ERR_OPERATION_FAILED', /disk 'vdb' was unplugged$/))
    await until('the disk is gone', async () => !(await dom.getXMLDesc()).includes("'vdb'"))
    assert.deepEqual(await dom.streamDiskInfo(), [])
    assert.deepEqual(await nodesOf(dom), nodes)
    assert.match(await dom.qemuMonitorCommand('{"execute":"query-jobs"}'), /"return":\[\]/)
    await checkImage(path)
    assert.equal(await backingOf(path), nbdUri(at))
    const { bad, written } = await checkPattern(path, 'qcow2', base.seed)
    assert.deepEqual({ bad, written }, { bad: 0, written: 1 })
    await powerOff(dom, guest)
  })
}

test('a disk that goes while its stream waits for its turn takes that along', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  await root.conn.close()
  await writeFile(join(root.folder, 'root/etc/qemu.json'), JSON.stringify({ streams: { maxStreams: 1 } }))
  root.conn = await Connect.open(root.uri)
  const base = await patternImage(root.folder, 16 * MiB)
  const [first, second] = [
    await overlay(root.folder, base.path),
    await overlay(root.folder, base.path, { name: 'second.qcow2' }),
  ]
  // a guest need not let go of what is on this bus
  const devices = `${diskXml('vda', first)}${diskXml('sda', second, { bus: 'usb' })}`
  const dom = await startPlain(root, { name: 'turn', devices })
  await dom.stream('vda', { bandwidth: 64 * 1024, engine: 'job' })
  const stream = await dom.stream('sda', { engine: 'job' })
  const alias = /<target dev='sda'[^]*?<alias name='([^']+)'/.exec(await dom.getXMLDesc())?.[1] ?? ''
  await dom.qemuMonitorCommand(JSON.stringify({ execute: 'device_del', arguments: { id: alias } }))
  await assert.rejects(stream.finished, virError('VIR_ERR_OPERATION_FAILED', /disk 'sda' was unplugged$/))
  await until('the disk is gone', async () => !(await dom.getXMLDesc()).includes("'sda'"))
  assert.ok(!(await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes"}')).includes(second))
  await dom.destroy()
})

test('a disk that cannot be plugged in leaves nothing behind', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const [first, second] = [await emptyImage(root.folder, 'qcow2', MiB), await emptyImage(root.folder, 'raw', MiB)]
  const dom = await startPlain(root, { name: 'plug-not', devices: diskXml('vda', first) })
  const [xml, kept, nodes] = [await dom.getXMLDesc(), await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), await nodesOf(dom)]
  const other = await startPlain(root, { name: 'plug-other', devices: diskXml('vda', second, { format: 'raw' }) })
  const refused: [string, ReturnType<typeof virError>][] = [
    [diskXml('vdb', '/nosuch.qcow2'), virError('VIR_ERR_SYSTEM_ERROR', /\/nosuch\.qcow2/)],
    [diskXml('vdb', second, { format: 'raw' }), virError('VIR_ERR_RESOURCE_BUSY', /image '.*' is in use by/)],
    [diskXml('sda', second, { format: 'raw', bus: 'sata' }), virError('VIR_ERR_OPERATION_UNSUPPORTED', /'sata'/)],
    [
      diskXml('sda', second, { format: 'raw', bus: 'scsi' }),
      virError('VIR_ERR_OPERATION_UNSUPPORTED', /'scsi' has no/),
    ],
    ["<input type='tablet' bus='usb'/>", virError('VIR_ERR_OPERATION_UNSUPPORTED', /device 'input' is not supported/)],
  ]
  for (const [device, error] of refused) await assert.rejects(dom.attachDevice(device, both), error)
  assert.deepEqual([await dom.getXMLDesc(), await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)], [xml, kept])
  assert.deepEqual(await nodesOf(dom), nodes)
  const missing = virError('VIR_ERR_DEVICE_MISSING', /'vdc'/)
  await assert.rejects(dom.detachDevice(diskXml('vdc', first)), missing)
  await assert.rejects(dom.detachDevice(diskXml('vdc', first), VIR_DOMAIN_AFFECT_CONFIG), missing)
  await other.destroy()
  await dom.destroy()

  // shut off, the definition is what there is
  await assert.rejects(
    dom.attachDevice(diskXml('vdb', second), both),
    virError('VIR_ERR_OPERATION_INVALID', /not running/),
  )
  await dom.attachDevice(diskXml('vdb', second, { format: 'raw' }))
  await dom.create(VIR_DOMAIN_START_PAUSED)
  assert.match(await dom.getXMLDesc(), /<target dev='vdb'/)
  await dom.destroy()
  await dom.detachDevice(diskXml('vdb', second))
  assert.equal(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), kept)
})
