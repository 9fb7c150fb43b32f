/** Other sizes for disks. */
import assert from 'node:assert/strict'
import * as c from '../../src/index.js'
import { define, refused } from './support.js'
import type { Each } from './support.js'

const MiB = 1024 * 1024

export function resizes(each: Each): void {
  each('a disk of a running domain gets another size, in KiB or in bytes', async (opened) => {
    const dom = await define(opened, 'thin')
    await refused(dom.blockResize('vda', 1024), 'VIR_ERR_OPERATION_INVALID', /domain is not running/)
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const capacity = async (): Promise<number> => (await dom.blockInfo('vda')).capacity
    const before = await capacity()
    await dom.blockResize('vda', (before + MiB) / 1024)
    assert.equal(await capacity(), before + MiB)
    await dom.blockResize('virtio-disk0', before + 513, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    assert.equal(await capacity(), before + 1024, 'qcow2 has whole sectors')
    await dom.blockResize('vda', MiB, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    assert.equal(await capacity(), MiB)
    await dom.destroy()
    assert.equal(await capacity(), MiB)
  })

  each('a disk that has no size to change is refused another one', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await refused(dom.blockResize('vdz', 1024), 'VIR_ERR_INVALID_ARG', /disk 'vdz'/)
    await refused(dom.blockResize('sda', 1024), 'VIR_ERR_OPERATION_UNSUPPORTED', /empty or readonly disk 'sda'/)
    await dom.destroy()
  })
}
