/** Streams. */
import assert from 'node:assert/strict'
import * as c from '../../src/index.js'
import { define, nextJobEnd, refused } from './support.js'
import type { Each } from './support.js'

export function streams(each: Each): void {
  each('a stream runs to its end: the backing link is gone from both definitions, and it is told', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    assert.match(await dom.getXMLDesc(), /<backingStore type/)
    const events = opened.conn.domainEvents({ domain: dom, kinds: ['block-job'] })
    const stream = await dom.stream('vda')
    const offsets: number[] = []
    for await (const { offset } of stream) offsets.push(offset)
    await stream.finished
    const end = await nextJobEnd(events)
    assert.deepEqual(
      [end.disk, end.type, end.status, end.error],
      ['vda', c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, c.VIR_DOMAIN_BLOCK_JOB_COMPLETED, undefined],
    )
    assert.deepEqual(
      offsets,
      offsets.toSorted((a, b) => a - b),
    )
    assert.equal(offsets.at(-1), (await dom.blockInfo('vda')).capacity)
    assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/)
    assert.doesNotMatch(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
    await refused(dom.stream('vda'), 'VIR_ERR_OPERATION_INVALID', /no backing image/)
    await dom.destroy()
  })

  each('a stream is shown, limited and stopped', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    assert.deepEqual(await dom.streamDiskInfo(), [])
    assert.equal(await dom.blockJobInfo('vda'), undefined)
    const events = opened.conn.domainEvents({ domain: dom, kinds: ['block-job'] })
    assert.equal(await dom.streamDisk('virtio-disk0', 0, c.VIR_STREAM_DISK_START, { bandwidth: 1 }), 0)
    const [state] = await dom.streamDiskInfo()
    assert.deepEqual([state?.disk, state?.path, state?.mode, state?.bandwidth], ['vda', 'virtio-disk0', 'full', 1])
    await dom.blockJobSetSpeed('vda', 2, c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
    const info = await dom.blockJobInfo('vda', c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    assert.deepEqual([info?.type, info?.bandwidth], [c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, 2])
    await refused(dom.stream('vda'), 'VIR_ERR_OPERATION_INVALID', /already in active block job/)
    await refused(dom.managedSave(), 'VIR_ERR_OPERATION_INVALID', /active block job/)
    assert.equal(await dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_STOP), 0)
    assert.equal((await nextJobEnd(events)).status, c.VIR_DOMAIN_BLOCK_JOB_CANCELED)
    assert.deepEqual(await dom.streamDiskInfo(), [])
    assert.match(await dom.getXMLDesc(), /<backingStore type/)
    await refused(dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_STOP), 'VIR_ERR_OPERATION_INVALID')
    await refused(dom.blockJobAbort('vda'), 'VIR_ERR_INVALID_ARG', /active block job/)
    await refused(dom.blockJobSetSpeed('vda', 1), 'VIR_ERR_INVALID_ARG', /active block job/)
    await dom.destroy()
  })

  each('a stream of what cannot be streamed is refused', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await refused(dom.stream('sda'), 'VIR_ERR_OPERATION_INVALID', /no medium/)
    await refused(dom.stream('vdz'), 'VIR_ERR_INVALID_ARG', /invalid path 'vdz'/)
    await refused(dom.stream('drive-virtio-disk0'), 'VIR_ERR_INVALID_ARG', /invalid path/)
    await refused(dom.stream('vda', { base: '/no/such/image' }), 'VIR_ERR_INVALID_ARG', /'\/no\/such\/image'/)
    await refused(dom.streamDisk('sda', 0, c.VIR_STREAM_DISK_ONE), 'VIR_ERR_OPERATION_INVALID', /no medium/)
    await dom.destroy()
  })

  each('two handles on one disk: the one that is later is refused, the first goes on', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const results = await Promise.allSettled([
      dom.stream('vda', { bandwidth: 1 }),
      dom.stream('virtio-disk0', { bandwidth: 1 }),
    ])
    assert.deepEqual(results.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected'])
    assert.equal((await dom.streamDiskInfo()).length, 1)
    await dom.destroy()
  })

  each(
    'unit by unit a disk is streamed to its end, which drops the backing link as a whole stream does',
    async (opened) => {
      const dom = await define(opened, 'thin')
      await dom.create(c.VIR_DOMAIN_START_PAUSED)
      const { capacity } = await dom.blockInfo('vda')
      const unit = capacity / 8
      const events = opened.conn.domainEvents({ domain: dom, kinds: ['stream-unit', 'block-job'] })
      const offsets = [0]
      for (let offset = 0; offset < capacity; offsets.push(offset)) {
        assert.match(await dom.getXMLDesc(), /<backingStore type/)
        offset = await dom.streamDisk('vda', offset, c.VIR_STREAM_DISK_ONE, { unit })
      }
      assert.deepEqual(
        offsets,
        offsets.toSorted((a, b) => a - b),
      )
      assert.ok(offsets.length > 2)
      assert.equal(offsets.at(-1), capacity)
      events.close()
      const heard: string[] = []
      for await (const event of events) heard.push(event.kind)
      assert.deepEqual([heard[0], heard.at(-1)], ['stream-unit', 'block-job'])
      assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/)
      assert.doesNotMatch(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
      await refused(dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_ONE), 'VIR_ERR_OPERATION_INVALID', /no backing image/)
      await dom.destroy()
    },
  )

  each('a unit behind the end of the disk, or while a stream runs, is refused', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const { capacity } = await dom.blockInfo('vda')
    await refused(dom.streamDisk('vda', capacity + 1, c.VIR_STREAM_DISK_ONE), 'VIR_ERR_INVALID_ARG', /behind the end/)
    await dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_START, { bandwidth: 1 })
    await refused(dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_ONE), 'VIR_ERR_OPERATION_INVALID', /active block job/)
    await dom.destroy()
  })
}
