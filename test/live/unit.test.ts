/** VIR_STREAM_DISK_ONE: unit by unit, on every bus, while the guest works and while it is reset. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { VIR_STREAM_DISK_ONE, VirError } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { diskXml, startGuest, startPlain, testRoot, until } from '../support/domain.js'
import { backingOf, checkImage, overlay, patternImage, type PatternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const KiB = 1024
const MiB = 1024 * KiB

interface BusDisk {
  target: string
  base: PatternImage
  path: string
}

/** A disk on each bus; their sizes tell the guest's names of them apart. Two of them have I/O threads. */
const BUSES = [
  { target: 'vda', bus: 'virtio', driver: "iothread='1'" },
  { target: 'vdb', bus: 'virtio' },
  { target: 'sda', bus: 'scsi' },
  { target: 'sdb', bus: 'sata' },
  { target: 'sdc', bus: 'usb' },
  { target: 'hda', bus: 'ide' },
]
const CONTROLLERS = `<controller type='scsi' model='virtio-scsi'><driver iothread='2'/></controller>
  <controller type='usb' model='qemu-xhci'/>`

test('unit by unit disks on virtio, SCSI, SATA, USB and IDE are streamed while the guest works on them and is reset', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const disks: BusDisk[] = []
  for (const [i, { target }] of BUSES.entries()) {
    const base = await patternImage(root.folder, (2 + i) * MiB, 11 + i)
    disks.push({ target, base, path: await overlay(root.folder, base.path, { name: `${target}.qcow2` }) })
  }
  const devices = disks.map(({ target, path }, i) => diskXml(target, path, { ...BUSES[i] })).join('')
  const { dom, guest } = await startGuest(t, root, {
    devices: devices + CONTROLLERS,
    machine: 'pc',
    flavour: 'generic',
    extra: '<iothreads>2</iothreads>',
  })
  const step = (target: string, offset: number): Promise<number> =>
    dom.streamDisk(target, offset, VIR_STREAM_DISK_ONE, { unit: 256 * KiB })

  await until('the guest has found its disks', async () => (await guest.disks()).size >= disks.length)
  const names = new Map([...(await guest.disks())].map(([name, size]) => [size, name]))
  const nameOf = ({ base }: BusDisk): string => names.get(base.size) ?? ''
  for (const disk of disks) {
    await guest.base(nameOf(disk), disk.base.seed, disk.base.size)
    await guest.work(nameOf(disk), 'slowly')
  }
  // about a half of each while the guest works
  const offsets = new Map<string, number>()
  for (const { target, base } of disks) {
    let offset = 0
    while (offset < base.size / 2) offset = await step(target, offset)
    offsets.set(target, offset)
  }
  const { writes, bad: wrong, errors } = await guest.stop()
  assert.ok(writes > disks.length, `${writes} writes`)
  assert.deepEqual({ wrong, errors }, { wrong: 0, errors: 0 })
  const digests = new Map<string, string>()
  for (const disk of disks) {
    const { bad, err } = await guest.verify(nameOf(disk))
    assert.deepEqual({ disk: disk.target, bad, err }, { disk: disk.target, bad: 0, err: 0 })
    await guest.command(`flush ${nameOf(disk)}`)
    digests.set(disk.target, await guest.digest(nameOf(disk)))
  }

  // the rest while it is reset and boots anew
  await dom.reset()
  for (const { target, base, path } of disks) {
    for (let offset = offsets.get(target) ?? 0; offset < base.size;) offset = await step(target, offset)
    while ((await backingOf(path)) !== undefined) await step(target, 0)
  }
  await dom.destroy()
  for (const { target, base, path } of disks) {
    await checkImage(path)
    const { bad, written, digest } = await checkPattern(path, 'qcow2', base.seed, base.size)
    assert.ok(written > 0, target)
    assert.deepEqual({ target, bad, digest }, { target, bad: 0, digest: digests.get(target) })
  }
})

test('a unit begins at the next extent that only the base holds, and ends where nothing is left behind it', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 0 2M', path], { timeout: 10_000 })
  const dom = await startPlain(root, { devices: diskXml('vda', path) })
  const one = (offset: number, unit: number) => dom.streamDisk('vda', offset, VIR_STREAM_DISK_ONE, { unit })
  assert.equal(await one(0, 2 * MiB), 4 * MiB)
  assert.equal(await one(6 * MiB, 2 * MiB), 8 * MiB, 'nothing is left behind it')
  assert.notEqual(await backingOf(path), undefined, 'but something before it')
  await assert.rejects(one(9 * MiB, MiB), (error) => error instanceof VirError && error.code === 'VIR_ERR_INVALID_ARG')
  await assert.rejects(one(0, 33 * MiB), (error) => error instanceof VirError && error.code === 'VIR_ERR_INVALID_ARG')
  // whole clusters of 64 KiB, from the beginning of that in which the offset lies
  assert.equal(await one(100, 1), 4 * MiB + 64 * KiB)
  assert.equal(await one(4 * MiB + 64 * KiB + 100, 100 * KiB), 4 * MiB + 192 * KiB)
  assert.equal(await one(0, 2 * MiB), 8 * MiB)
  assert.equal(await backingOf(path), undefined)
  await assert.rejects(one(0, MiB), (error) => error instanceof VirError && error.code === 'VIR_ERR_OPERATION_INVALID')
})
