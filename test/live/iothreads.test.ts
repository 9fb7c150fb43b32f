/** Disks with I/O threads: QEMU moves them between its threads when a guest takes hold of its devices and when it is reset. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import {
  VIR_DOMAIN_START_PAUSED,
  VIR_STREAM_DISK_ONE,
  VirError,
  type DiskStream,
  type Domain,
} from '../../src/index.js'
import { agentOf, diskXml, guestXml, reopen, testRoot, type TestRoot } from '../support/domain.js'
import { backingOf, overlay, patternImage, type PatternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024
const CONTROLLER = `<controller type='scsi' model='virtio-scsi'><driver iothread='2'/></controller>`

interface Stage {
  root: TestRoot
  base: PatternImage
  paths: string[]
  dom: Domain
}

/** A guest with the disks vda (virtio) and sda (SCSI) on overlays of one base, started by hand. */
async function stage(t: TestContext, size: number): Promise<Stage> {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, size)
  const paths = [
    await overlay(root.folder, base.path, { name: 'vda.qcow2' }),
    await overlay(root.folder, base.path, { name: 'sda.qcow2' }),
  ]
  const [vda = '', sda = ''] = paths
  const devices = `${diskXml('vda', vda, { driver: "iothread='1'" })}${diskXml('sda', sda, { bus: 'scsi' })}${CONTROLLER}`
  const xml = await guestXml(root.folder, { devices, extra: '<iothreads>2</iothreads>' })
  return { root, base, paths, dom: await root.conn.domainDefineXML(xml) }
}

test('a stream of a disk that the guest does not use yet waits for it, also across processes, and a unit is refused', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const { root, base, paths, ...s } = await stage(t, 16 * MiB)
  await s.dom.create(VIR_DOMAIN_START_PAUSED)
  await s.dom.streamDisk('vda', 0, VIR_STREAM_DISK_ONE).then(
    () => assert.fail('a unit was streamed'),
    (error: unknown) => assert.equal((error as VirError).message, "the guest does not use disk 'vda' yet"),
  )
  // SCSI disks are in their thread from the beginning
  await (
    await s.dom.stream('sda')
  ).finished
  await s.dom.stream('vda')
  const [state] = await s.dom.streamDiskInfo()
  assert.deepEqual(
    { status: state?.status, error: state?.error, size: state?.size },
    { status: 'waiting', error: "the guest does not use disk 'vda' yet", size: base.size },
  )
  await reopen(root)
  const dom = await root.conn.domainLookupByName('guest')
  const stream = await dom.attachStream('vda')
  assert.equal((await stream.info())?.status, 'waiting')
  await stream.stop()
  assert.deepEqual(await dom.streamDiskInfo(), [])
  const again = await dom.stream('vda', { engine: 'job' })
  assert.equal((await again.info())?.status, 'waiting')
  await dom.resume()
  await again.finished
  const guest = await agentOf(t, root.folder)
  for (const [i, disk] of ['vda', 'sda'].entries()) {
    await guest.base(disk, base.seed, base.size)
    const { bad, err } = await guest.verify(disk)
    assert.deepEqual({ disk, bad, err }, { disk, bad: 0, err: 0 })
    assert.equal(await backingOf(paths[i] ?? ''), undefined)
  }
})

/**
 * Stops a stream; true if it has come to its end before: a job of QEMU 7.2 copies a chunk at each reset, whatever its
 * bandwidth, and so may have all before the last one.
 */
async function stopOrEnd(stream: DiskStream): Promise<boolean> {
  try {
    await stream.stop()
  } catch (error) {
    if ((await stream.info()) !== undefined) throw error
  }
  return stream.finished.then(
    () => true,
    (error: unknown) => {
      if (error instanceof VirError && error.code === 'VIR_ERR_OPERATION_ABORTED') return false
      throw error
    },
  )
}

for (const engine of ['pull', 'job'] as const)
  test(`streams by engine '${engine}' begin and are stopped while the guest is reset again and again`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64')) return
    const { root, base, ...s } = await stage(t, 64 * MiB)
    await s.dom.create()
    let over = false
    const resets = async (): Promise<void> => {
      for (let i = 0; i < 30; i++) {
        await delay(100 + ((i * 97) % 300))
        await s.dom.reset()
      }
      over = true
    }
    const streams = async (disk: string): Promise<void> => {
      for (let i = 0; !over; i++) {
        const stream = await s.dom.stream(disk, { engine, bandwidth: MiB / 4 })
        await delay((i * 61) % 400)
        if (await stopOrEnd(stream)) return
      }
      await (
        await s.dom.stream(disk, { engine })
      ).finished
    }
    await Promise.all([resets(), streams('vda'), streams('sda')])
    const guest = await agentOf(t, root.folder)
    for (const disk of ['vda', 'sda']) {
      await guest.base(disk, base.seed, base.size)
      const { bad, err } = await guest.verify(disk)
      assert.deepEqual({ disk, bad, err }, { disk, bad: 0, err: 0 })
    }
  })
