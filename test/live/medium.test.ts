/** Media of drives: what they leave behind, and what becomes of a change that a killed process had begun. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Domain } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { reopen, startPlain, testRoot } from '../support/domain.js'
import { emptyImage, overlay } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

const drive = (source: string, format = 'raw'): string =>
  `<disk type='file' device='cdrom'><driver name='qemu' type='${format}'/>${source && `<source file='${source}'/>`}
    <target dev='sda' bus='sata'/><readonly/></disk>`

const execute = async (dom: Domain, command: string, args: object = {}): Promise<unknown> =>
  (
    JSON.parse(await dom.qemuMonitorCommand(JSON.stringify({ execute: command, arguments: args }))) as {
      return: unknown
    }
  ).return

async function nodesOf(dom: Domain): Promise<string[]> {
  const nodes = await execute(dom, 'query-named-block-nodes', { flat: true })
  return (nodes as { 'node-name': string }[]).map((node) => node['node-name']).toSorted()
}

/** What QEMU has in the drive. */
async function inserted(dom: Domain): Promise<string | undefined> {
  const devices = (await execute(dom, 'query-block')) as {
    qdev: string
    tray_open: boolean
    inserted?: { file: string }
  }[]
  const device = devices.find(({ qdev }) => qdev === 'sata0-0-0')
  assert.ok(device !== undefined && !device.tray_open)
  return device.inserted?.file
}

test('a medium that is changed leaves no nodes behind, and a change that was begun is ended by the next process', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const first = await emptyImage(root.folder, 'raw', MiB, 'first.iso')
  const second = await overlay(root.folder, first, { name: 'second.qcow2' })
  const dom = await startPlain(root, { name: 'media', devices: drive(first) })
  assert.equal(await inserted(dom), first)
  await dom.updateDevice(drive(second, 'qcow2'))
  assert.ok((await inserted(dom))?.includes(second))
  assert.equal((await nodesOf(dom)).length, 5, 'two images and a guard')
  await dom.updateDevice(drive(first))
  assert.equal(await inserted(dom), first)
  assert.equal((await nodesOf(dom)).length, 2)

  // as if a process had been killed between the two steps of a change
  for (const command of ['blockdev-open-tray', 'blockdev-remove-medium'])
    await execute(dom, command, { id: 'sata0-0-0' })
  await reopen(root)
  const again = await root.conn.domainLookupByName('media')
  assert.equal(await inserted(again), first)
  assert.match(await again.getXMLDesc(), /first\.iso/)
  await again.updateDevice(drive(''))
  assert.equal(await inserted(again), undefined)
  assert.deepEqual(await nodesOf(again), [])
  // nobody has them open any more
  for (const [image, format] of [
    [first, 'raw'],
    [second, 'qcow2'],
  ])
    // prettier-ignore
    await run('qemu-io', ['-f', format ?? '', '-c', 'write 0 512', image ?? ''], { timeout: 10_000 })
})
