/** Images that are written into those below them. */
import assert from 'node:assert/strict'
import * as c from '../../src/index.js'
import type { Domain, EventOfKind } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { recordEvents, until } from '../support/domain.js'
import { define, refused } from './support.js'
import type { Each, Opened } from './support.js'

const { VIR_DOMAIN_BLOCK_COMMIT_ACTIVE: ACTIVE, VIR_DOMAIN_BLOCK_COMMIT_SHALLOW: SHALLOW } = c
const IN_BYTES = c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES

/** Paths of the images of vda as the XML has them, the disk's own first. */
async function imagesOf(dom: Domain, flags = 0): Promise<string[]> {
  const xml = await dom.getXMLDesc(flags)
  const [disk = ''] = /<disk type='file' device='disk'>[^]*?<\/disk>/.exec(xml) ?? []
  return [...disk.replace(/<mirror[^]*<\/mirror>/, '').matchAll(/<source file='([^']*)'/g)].map(([, path = '']) => path)
}

/** Answers the event of a block job with this status, as soon as it has come. */
function listen({ conn }: Opened): (status: number) => Promise<EventOfKind<'block-job'>> {
  const events = recordEvents(conn)
  return async (status) => {
    const find = (): EventOfKind<'block-job'> | undefined =>
      events.flatMap((event) => (event.kind === 'block-job' && event.status === status ? [event] : [])).at(-1)
    await until(`an event of a block job with status ${status}`, () => find() !== undefined)
    const found = find()
    assert.ok(found)
    events.length = 0
    return found
  }
}

/** Its own image holds something, so that there is something to commit. */
async function start(opened: Opened): Promise<{ dom: Domain; images: [string, string] }> {
  const dom = await define(opened, 'thin')
  const [path = ''] = await imagesOf(dom)
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 0 4M', path], { timeout: 10_000 })
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  const [own = '', base = ''] = await imagesOf(dom)
  return { dom, images: [own, base] }
}

export function commits(each: Each): void {
  each('the own image of a disk is committed: ready, then its base takes its place', async (opened) => {
    const { dom, images } = await start(opened)
    const [own, base] = images
    const heard = listen(opened)
    await dom.blockCommit('vda', base, undefined, 0, ACTIVE)
    const ready = await heard(c.VIR_DOMAIN_BLOCK_JOB_READY)
    assert.deepEqual([ready.disk, ready.path, ready.type], ['vda', own, c.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT])
    const info = await dom.blockJobInfo('vda')
    assert.equal(info?.type, c.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT)
    assert.equal(info.cur, info.end)
    assert.match(await dom.getXMLDesc(), /<mirror type='file' job='active-commit' ready='yes'>/)
    assert.deepEqual(await imagesOf(dom), images)
    await dom.blockJobAbort('vda', c.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    const end = await heard(c.VIR_DOMAIN_BLOCK_JOB_COMPLETED)
    assert.deepEqual([end.disk, end.path, end.type], ['vda', base, c.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT])
    for (const flags of [0, c.VIR_DOMAIN_XML_INACTIVE]) {
      assert.deepEqual(await imagesOf(dom, flags), [base])
      assert.doesNotMatch(await dom.getXMLDesc(flags), /<mirror|type='qcow2'/)
    }
    assert.equal(await dom.blockJobInfo('vda'), undefined)
    await dom.destroy()
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await dom.destroy()
  })

  each('a commit that is aborted leaves the disk as it was, ready or not', async (opened) => {
    const { dom, images } = await start(opened)
    const before = await dom.getXMLDesc()
    for (const bandwidth of [1, 0]) {
      const heard = listen(opened)
      await dom.blockCommit('vda', undefined, undefined, bandwidth, ACTIVE | SHALLOW | IN_BYTES)
      if (bandwidth === 0) await heard(c.VIR_DOMAIN_BLOCK_JOB_READY)
      await dom.blockJobAbort('vda')
      const { type } = await heard(c.VIR_DOMAIN_BLOCK_JOB_CANCELED)
      assert.equal(type, c.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT)
    }
    assert.equal(await dom.getXMLDesc(), before)
    assert.deepEqual(await imagesOf(dom), images)
    await dom.destroy()
  })

  each('while a disk is committed other jobs and a pivot that is too soon are refused', async (opened) => {
    const { dom, images } = await start(opened)
    const { VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT: pivot } = c
    await refused(dom.blockJobAbort('vda', pivot), 'VIR_ERR_INVALID_ARG', /active block job/)
    await dom.blockCommit('vda', undefined, undefined, 1, ACTIVE | IN_BYTES)
    assert.deepEqual(await dom.streamDiskInfo(), [])
    await refused(dom.blockJobAbort('vda', pivot), 'VIR_ERR_BLOCK_COPY_ACTIVE', /not ready for pivot yet/)
    await refused(dom.managedSave(), 'VIR_ERR_OPERATION_INVALID', /active block job/)
    await refused(dom.stream('vda'), 'VIR_ERR_OPERATION_INVALID', /already in active block job/)
    await refused(dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_STOP), 'VIR_ERR_OPERATION_INVALID')
    await dom.blockJobSetSpeed('vda', 2, c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
    const info = await dom.blockJobInfo('vda', c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    assert.equal(info?.bandwidth, 2)
    await dom.blockJobAbort('vda')
    await dom.stream('vda', { bandwidth: 1 })
    await refused(dom.blockJobAbort('vda', pivot), 'VIR_ERR_BLOCK_COPY_ACTIVE', /not ready for pivot yet/)
    await refused(dom.blockCommit('vda', images[1], undefined, 0, ACTIVE), 'VIR_ERR_OPERATION_UNSUPPORTED', /active block job/) // prettier-ignore
    await dom.destroy()
  })

  each('a commit of what cannot be committed is refused', async (opened) => {
    const dom = await define(opened, 'thin')
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    const [own, base] = await imagesOf(dom)
    const bad = 'VIR_ERR_INVALID_ARG'
    await refused(dom.blockCommit('vda'), bad, /commit of 'vda' active layer requires active flag/)
    await refused(dom.blockCommit('vdz', undefined, undefined, 0, ACTIVE), bad, /'vdz' not found in domain/)
    await refused(dom.blockCommit('sda', undefined, undefined, 0, ACTIVE), bad)
    await refused(dom.blockCommit('vda', undefined, base, 0, ACTIVE), bad)
    await refused(dom.blockCommit('vda', undefined, base), bad, /could not find base image in chain for 'vda'/)
    await refused(dom.blockCommit('vda', '/nope', undefined, 0, ACTIVE), bad, /could not find image '\/nope' beneath/)
    await refused(dom.blockCommit('vda', undefined, '/nope'), bad, /could not find image '\/nope' in chain for 'vda'/)
    await refused(dom.blockCommit('vda', undefined, 'vda[77]'), bad, /could not find backing store index '77'/)
    await refused(dom.blockCommit('vda', own, undefined, 0, ACTIVE), bad, /could not find image/)
    await dom.destroy()
  })
}
