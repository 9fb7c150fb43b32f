/** The whole way of a stream, on a guest that works on its disk meanwhile. */
import assert from 'node:assert/strict'
import { rm } from 'node:fs/promises'
import { test } from 'node:test'
import {
  VIR_DOMAIN_BLOCK_JOB_CANCELED,
  VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES,
  VIR_DOMAIN_BLOCK_JOB_TYPE_PULL,
  VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES,
  VIR_DOMAIN_XML_INACTIVE,
  VIR_STREAM_DISK_START,
  VIR_STREAM_DISK_STOP,
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
import { backingOf, checkImage, overlay, ownBytes, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

test('a guest boots on an overlay, its disk is streamed while it works, and in the end no base is needed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 64 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')

  const events = recordEvents(root.conn)
  const stream = await dom.stream('vda', { bandwidth: MiB })
  const states = await dom.streamDiskInfo()
  assert.deepEqual(states, [
    {
      path: 'virtio-disk0',
      offset: states[0]?.offset,
      size: 64 * MiB,
      disk: 'vda',
      mode: 'full',
      engine: 'pull',
      bandwidth: MiB,
      status: 'running',
    },
  ])
  await stream.setBandwidth(32 * MiB)
  const offsets: number[] = []
  for await (const progress of stream) offsets.push(progress.offset)
  await stream.finished
  assert.deepEqual(
    offsets,
    offsets.toSorted((a, b) => a - b),
  )
  assert.equal(offsets.at(-1), 64 * MiB)

  assert.deepEqual(await dom.streamDiskInfo(), [])
  assert.equal(await backingOf(path), undefined)
  assert.match(await dom.getXMLDesc(0), /<backingStore\/>/)
  assert.doesNotMatch(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
  const jobs = events.filter((event) => event.kind === 'block-job')
  assert.deepEqual(
    jobs.map(({ domain, disk, type, status }) => ({ name: domain.name, disk, path, type, status })),
    [
      {
        name: 'guest',
        disk: 'vda',
        path,
        type: VIR_DOMAIN_BLOCK_JOB_TYPE_PULL,
        status: VIR_DOMAIN_BLOCK_JOB_COMPLETED,
      },
    ],
  )

  await rm(base.path)
  const stat = await guest.stop()
  assert.ok(stat.reads > 0 && stat.writes > 0)
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  await checkImage(path)
  const report = await checkPattern(path, 'qcow2', base.seed, base.size)
  assert.equal(report.digest, digest)
  assert.equal(report.bad, 0)

  await dom.create()
  assert.match(await dom.getXMLDesc(0), /<backingStore\/>/)
})

test('a stream that is stopped keeps what it copied, and the next one goes on from there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 64 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'stopped', devices: diskXml('vda', path) })
  const events = recordEvents(root.conn)
  const offsetOf = async (): Promise<number> => (await dom.streamDiskInfo())[0]?.offset ?? -1

  assert.equal(await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 4 * MiB }), 0)
  await until('8 MiB are copied', async () => (await offsetOf()) >= 8 * MiB)
  const reached = await offsetOf()
  assert.equal(await dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP), 0)
  assert.deepEqual(await dom.streamDiskInfo(), [])
  assert.equal(await backingOf(path), base.path)
  assert.match(await dom.getXMLDesc(0), /<backingStore type='file'/)

  // what has been copied is not copied again: that would take longer than is waited for
  const stream = await dom.stream('vda', { bandwidth: 64 * 1024 })
  await until('the second stream is where the first one was', async () => (await offsetOf()) >= reached)
  await stream.setBandwidth(0)
  await stream.finished
  const statuses = events.flatMap((event) => (event.kind === 'block-job' ? [event.status] : []))
  assert.deepEqual(statuses, [VIR_DOMAIN_BLOCK_JOB_CANCELED, VIR_DOMAIN_BLOCK_JOB_COMPLETED])

  await dom.destroy()
  await checkImage(path)
  const { bad, base: right } = await checkPattern(path, 'qcow2', base.seed)
  assert.deepEqual({ bad, right }, { bad: 0, right: base.size / 4096 })
})

test('the libvirt way: blockPull, blockJobInfo, blockJobSetSpeed and blockJobAbort', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'pulled', devices: diskXml('vda', path) })
  const events = recordEvents(root.conn)

  assert.equal(await dom.blockJobInfo('vda'), undefined)
  await dom.blockPull('vda', 2)
  const info = await dom.blockJobInfo('vda')
  assert.deepEqual(info, { type: VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, bandwidth: 2, cur: info?.cur, end: 32 * MiB })
  assert.equal((await dom.blockJobInfo('vda', 1))?.bandwidth, 2 * MiB)
  await dom.blockJobSetSpeed('vda', 4)
  assert.equal((await dom.streamDiskInfo())[0]?.bandwidth, 4 * MiB)
  await dom.blockJobAbort('vda')
  assert.equal(await dom.blockJobInfo('vda'), undefined)
  await assert.rejects(dom.blockJobAbort('vda'), virError('VIR_ERR_INVALID_ARG', /does not have an active block job/))
  await assert.rejects(dom.blockJobSetSpeed('vda', 1), virError('VIR_ERR_INVALID_ARG', /active block job/))

  await dom.blockPull('vda', 700_000, VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
  assert.equal((await dom.streamDiskInfo())[0]?.bandwidth, 700_000)
  await dom.blockJobSetSpeed('vda', 0, VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
  await until('the pull has ended', () => events.some((e) => e.kind === 'block-job' && e.status === 0))
  assert.equal(await backingOf(path), undefined)
  await dom.destroy()
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a signal stops a stream, and whoever attaches to one sees its end', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'signalled', devices: diskXml('vda', path) })

  const controller = new AbortController()
  const aborted = await dom.stream('vda', { bandwidth: MiB, signal: controller.signal })
  controller.abort()
  await assert.rejects(aborted.finished, virError('VIR_ERR_OPERATION_ABORTED', /stopped/))
  assert.deepEqual(await dom.streamDiskInfo(), [])

  const first = await dom.stream('vda', { bandwidth: MiB })
  const second = await dom.attachStream('virtio-disk0')
  await second.setBandwidth(0)
  await Promise.all([first.finished, second.finished])
  assert.equal(await backingOf(path), undefined)
})

test('two disks of a guest are streamed at once while it works on both', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const bases = [await patternImage(root.folder, 32 * MiB, 7), await patternImage(root.folder, 48 * MiB, 8)] as const
  const paths = [
    await overlay(root.folder, bases[0].path, { name: 'a.qcow2' }),
    await overlay(root.folder, bases[1].path, { name: 'b.qcow2' }),
  ] as const
  const devices = diskXml('vda', paths[0]) + diskXml('vdb', paths[1])
  const { dom, guest } = await startGuest(t, root, { name: 'twins', devices })
  await guest.base('vda', 7, bases[0].size)
  await guest.base('vdb', 8, bases[1].size)
  await guest.work('vda')
  await guest.work('vdb')
  const bandwidth = MiB
  const streams = await Promise.all([dom.stream('vda', { bandwidth }), dom.stream('vdb', { bandwidth })])
  assert.deepEqual((await dom.streamDiskInfo()).map((state) => state.disk).toSorted(), ['vda', 'vdb'])
  for (const stream of streams) await stream.setBandwidth(16 * MiB)
  await Promise.all(streams.map((stream) => stream.finished))
  await guest.stop()
  for (const [i, disk] of ['vda', 'vdb'].entries()) {
    const { bad, err } = await guest.verify(disk)
    assert.deepEqual({ disk, bad, err }, { disk, bad: 0, err: 0 })
    assert.equal(await backingOf(paths[i] ?? ''), undefined)
  }
  await powerOff(dom, guest)
})

test("with copy_on_read='on' what the guest reads is kept, and a stream takes the rest", async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const kept = await overlay(root.folder, base.path, { name: 'kept.qcow2' })
  const plain = await overlay(root.folder, base.path, { name: 'plain.qcow2' })
  const devices = diskXml('vda', kept, { driver: "copy_on_read='on'" }) + diskXml('vdb', plain)
  const { dom, guest } = await startGuest(t, root, { name: 'cor', devices })
  for (const disk of ['vda', 'vdb']) {
    await guest.base(disk, base.seed, base.size)
    await guest.verify(disk)
  }
  const stats = await Promise.all(['vda', 'vdb'].map((disk) => dom.blockInfo(disk)))
  assert.ok((stats[0]?.allocation ?? 0) > 16 * MiB, JSON.stringify(stats))
  assert.ok((stats[1]?.allocation ?? 0) < 2 * MiB, JSON.stringify(stats))
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(kept), undefined)
  await guest.work('vda')
  await guest.stop()
  assert.equal((await guest.verify('vda')).bad, 0)
  await powerOff(dom, guest)
  assert.equal(await ownBytes(kept), base.size)
  await checkImage(kept)
})
