/** What a disk is called by an application: target, alias or source path, on every bus; and what is refused. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP, type Domain } from '../../src/index.js'
import { diskXml, startPlain, testRoot, virError, type TestRoot } from '../support/domain.js'
import { backingOf, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

interface Named {
  target: string
  bus: string
  alias: string
  /** XML of its address, where it is not the one that comes by itself */
  extra?: string
}

const q35: Named[] = [
  { target: 'vda', bus: 'virtio', alias: 'virtio-disk0' },
  { target: 'vdc', bus: 'virtio', alias: 'virtio-disk2' },
  { target: 'sda', bus: 'scsi', alias: 'scsi0-0-0-0' },
  {
    target: 'sdb',
    bus: 'scsi',
    alias: 'scsi1-0-0-2',
    extra: "<address type='drive' controller='1' bus='0' target='0' unit='2'/>",
  },
  {
    target: 'sdc',
    bus: 'sata',
    alias: 'sata0-0-1',
    extra: "<address type='drive' controller='0' bus='0' target='0' unit='1'/>",
  },
  { target: 'sdd', bus: 'usb', alias: 'usb-disk3' },
  { target: 'sde', bus: 'virtio', alias: 'ua-root', extra: "<alias name='ua-root'/>" },
]

const pc: Named[] = [
  { target: 'hda', bus: 'ide', alias: 'ide0-0-0' },
  { target: 'hdd', bus: 'ide', alias: 'ide0-1-1' },
  { target: 'sda', bus: 'usb', alias: 'usb-disk0' },
]

const controllers = `<controller type='scsi' index='0' model='virtio-scsi'/>
  <controller type='scsi' index='1' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>`

async function start(
  t: TestContext,
  machine: string,
  disks: readonly Named[],
): Promise<{ root: TestRoot; dom: Domain }> {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 2 * MiB)
  const xml = disks.map(async ({ target, bus, extra }) => {
    const path = await overlay(root.folder, base.path, { name: `${target}.qcow2` })
    return diskXml(target, path, { bus, ...(extra !== undefined && { extra }) })
  })
  const devices = (machine === 'q35' ? controllers : '') + (await Promise.all(xml)).join('')
  return { root, dom: await startPlain(root, { name: machine, machine, devices }) }
}

async function nameEachWay(root: TestRoot, dom: Domain, { target, alias }: Named): Promise<void> {
  const path = `${root.folder}/${target}.qcow2`
  for (const name of [target, alias, path]) {
    await dom.streamDisk(name, 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
    const states = await dom.streamDiskInfo()
    assert.deepEqual(
      states.map((state) => [state.path, state.disk, state.size]),
      [[alias, target, 2 * MiB]],
      `named '${name}'`,
    )
    assert.equal((await dom.blockJobInfo(name))?.end, 2 * MiB)
    await dom.streamDisk(name, 0, VIR_STREAM_DISK_STOP)
    assert.deepEqual(await dom.streamDiskInfo(), [])
  }
  await (
    await dom.stream(alias)
  ).finished
  assert.equal(await backingOf(path), undefined)
}

for (const [machine, disks] of [
  ['q35', q35],
  ['pc', pc],
] as const) {
  const buses = [...new Set(disks.map((disk) => disk.bus))].join(', ')
  test(`disks of ${machine} on ${buses} are streamed by target, by alias and by source path`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
    const { root, dom } = await start(t, machine, disks)
    for (const disk of disks) await nameEachWay(root, dom, disk)
  })
}

test("QEMU's own names of drives, nodes, filters and devices are refused", async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, dom } = await start(t, 'q35', q35)
  const names = ['drive-virtio-disk0', 'node-1-format', 'node-1-storage', 'node-2-guard', 'libvirt-1-format']
  names.push('cor-vda', 'stream-vda', '#block123', '/machine/peripheral/virtio-disk0/virtio-backend')
  const inside = virError('VIR_ERR_INVALID_ARG', /^invalid path '.+': that is a name inside QEMU, use /)
  for (const name of names) {
    await assert.rejects(dom.streamDisk(name, 0, VIR_STREAM_DISK_START), inside, name)
    await assert.rejects(dom.blockPull(name), inside, name)
    await assert.rejects(dom.blockJobInfo(name), inside, name)
    await assert.rejects(dom.blockJobAbort(name), inside, name)
  }
  const unknown = virError('VIR_ERR_INVALID_ARG', /^invalid path 'vdb'/)
  await assert.rejects(dom.streamDisk('vdb', 0, VIR_STREAM_DISK_START), unknown)
  const base = virError('VIR_ERR_INVALID_ARG', /^invalid path '/)
  await assert.rejects(dom.streamDisk(`${root.folder}/base-7.raw`, 0, VIR_STREAM_DISK_START), base)
  assert.deepEqual(await dom.streamDiskInfo(), [])
})

test('a path that two disks have names neither of them', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const { path } = await patternImage(root.folder, MiB)
  const devices = ['vda', 'vdb'].map((target) => diskXml(target, path, { format: 'raw', extra: '<readonly/>' }))
  const dom = await startPlain(root, { name: 'shared', devices: devices.join('') })
  const ambiguous = virError('VIR_ERR_INVALID_ARG', /it is the source of disks 'vda' and 'vdb', use a target/)
  await assert.rejects(dom.streamDisk(path, 0, VIR_STREAM_DISK_START), ambiguous)
})
