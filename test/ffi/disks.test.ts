/** Disks of a libvirtd's domain that no driver of ours would run. */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import { plainXml, until, virError } from '../support/domain.js'
import { backingOf, checkImage, overlay, patternImage } from '../support/images.js'
import { cli } from '../cli/run.js'
import { daemonFor, testUri } from './support.js'

const MiB = 1024 * 1024

test('a volume of a pool is listed, named and streamed like any disk, beside one that QEMU has to itself', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const { folder, uri, virsh } = daemon
  const pool = join(folder, 'pool')
  mkdirSync(pool)
  const base = await patternImage(folder, 8 * MiB)
  const top = await overlay(pool, base.path, { name: 'top.qcow2' })
  await virsh('pool-create-as', 'pool', 'dir', '--target', pool)
  const volume = `<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='pool' volume='top.qcow2'/>
    <target dev='vda' bus='virtio'/></disk>`
  const nvme = `<disk type='nvme'><driver name='qemu' type='raw'/><source type='pci' managed='no' namespace='1'>
    <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source><target dev='vdb' bus='virtio'/></disk>`
  const conn = await Connect.open(uri)
  const dom = await conn.domainDefineXML(plainXml({ name: 'volumes', devices: volume + nvme }))
  t.after(async () => {
    await dom.destroy().catch(() => undefined)
    await conn.close()
  })
  const run = async (...words: string[]): Promise<string> => {
    const { status, stdout, stderr } = await cli(['-c', uri, ...words])
    assert.deepEqual([status, stderr], [0, ''])
    return stdout
  }
  assert.match(await run('domblklist', 'volumes', '--details'), /volume +disk +vda +top\.qcow2\n nvme +disk +vdb +-\n/)
  await run('detach-disk', 'volumes', 'vdb', '--config')
  assert.doesNotMatch(await dom.getXMLDesc(), /nvme/)

  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  assert.equal((await dom.blockInfo('vda')).capacity, 8 * MiB)
  assert.equal(await dom.streamDisk('virtio-disk0', 0, c.VIR_STREAM_DISK_ONE, { unit: MiB }), MiB)
  await (
    await dom.stream('top.qcow2')
  ).finished
  assert.match(await run('stream-disk', 'volumes', 'vda', '--attach', '--wait'), /nothing is left to stream/)
  await dom.destroy()
  await until('the image is free', async () => (await virsh('list', '--name')).trim() === '')
  assert.equal(await backingOf(top), undefined)
  await checkImage(top)
})

test('words of libvirt that make no sentence by themselves keep the one before them', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(testUri(daemon))
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  await assert.rejects(
    dom.qemuMonitorCommand('{}'),
    virError(
      'VIR_ERR_NO_SUPPORT',
      /^this function is not supported by the connection driver: virDomainQemuMonitorCommand$/,
    ),
  )
  await assert.rejects(
    Connect.open(daemon.uri.replace('qemu+unix:///system', 'foo+unix:///bar')),
    virError('VIR_ERR_NO_CONNECT', /^no connection driver available for foo:\/\/\/bar/),
  )
})

test('the versions are those of libvirt and its hypervisor', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const theirs = await daemon.virsh('version')
  const { stdout } = await cli(['-c', daemon.uri, 'version'])
  for (const what of ['Using API', 'Running hypervisor']) {
    const line = new RegExp(`^${what}: .*$`, 'm')
    assert.equal(line.exec(stdout)?.[0], line.exec(theirs)?.[0])
  }
})
