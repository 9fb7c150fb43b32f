/** Disks that get another size while a guest uses them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { VIR_DOMAIN_BLOCK_RESIZE_BYTES, VIR_STREAM_DISK_ONE } from '../../src/index.js'
import { diskXml, powerOff, startGuest, testRoot, until, virError } from '../support/domain.js'
import { checkImage, emptyImage, overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const KiB = 1024
const MiB = 1024 * KiB

test('disks grow and shrink while a guest runs: it is told, and never reads what it must not', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const make = (name: string, size?: number): Promise<string> =>
    overlay(root.folder, base.path, { name, ...(size !== undefined && { size }) })
  const paths = { vda: await make('a.qcow2'), vdb: await make('b.qcow2'), vdc: await make('c.qcow2', 4 * MiB) }
  const raw = await emptyImage(root.folder, 'raw', 4 * MiB)
  const { dom, guest } = await startGuest(t, root, {
    devices: `${diskXml('vda', paths.vda)}${diskXml('vdb', paths.vdb, { driver: "copy_on_read='on'" })}
      ${diskXml('vdc', paths.vdc)}${diskXml('vdd', raw, { format: 'raw', driver: "iothread='1'" })}`,
    extra: '<iothreads>1</iothreads>',
  })
  const resize = async (disk: string, size: number): Promise<void> => {
    await dom.blockResize(disk, size, VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    await until(`the guest sees that ${disk} has ${size} bytes`, async () => (await guest.disks()).get(disk) === size)
  }

  // a stream keeps the size as it is; a single unit does so only while it lasts
  const stream = await dom.stream('vda', { bandwidth: 1 })
  const busy = virError('VIR_ERR_OPERATION_INVALID', /^disk 'vda' already in active block job$/)
  await assert.rejects(dom.blockResize('vda', 16 * KiB), busy)
  await stream.stop()
  assert.ok((await dom.streamDisk('vda', 0, VIR_STREAM_DISK_ONE, { unit: 256 * KiB })) > 0)
  await resize('vda', 12 * MiB)
  await resize('vdb', 12 * MiB)
  // what the base holds behind the old end of its overlay never becomes visible
  await resize('vdc', 8 * MiB)
  await resize('vdc', 2 * MiB)
  await resize('vdc', 10 * MiB)
  await resize('vdd', 6 * MiB)
  await resize('vdd', 3 * MiB)

  const known = { vda: 8 * MiB, vdb: 8 * MiB, vdc: 2 * MiB }
  for (const [disk, size] of Object.entries(known)) await guest.base(disk, base.seed, size)
  await guest.base('vdd', 0)
  for (const disk of [...Object.keys(known), 'vdd']) await guest.work(disk)
  const { finished } = await dom.stream('vda')
  await finished
  await guest.stop()
  for (const disk of [...Object.keys(known), 'vdd']) {
    const { bad, err, written } = await guest.verify(disk)
    assert.deepEqual({ disk, bad, err, some: written > 0 }, { disk, bad: 0, err: 0, some: true })
  }
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  for (const [disk, path] of Object.entries(paths)) {
    await checkImage(path)
    const report = await checkPattern(path, 'qcow2', base.seed, known[disk as keyof typeof known])
    assert.deepEqual({ disk, bad: report.bad }, { disk, bad: 0 })
    if (disk === 'vda') assert.equal(report.digest, digest)
  }
})
