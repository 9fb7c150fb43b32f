import assert from 'node:assert/strict'
import { test } from 'node:test'
import { run } from '../../src/util/run.js'
import { VIR_DOMAIN_XML_INACTIVE, type DomainEvent } from '../../src/index.js'
import { diskXml, powerOff, startGuest, testRoot } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

async function backingOf(path: string): Promise<string | undefined> {
  const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', path], { timeout: 10_000 })
  return (JSON.parse(stdout) as { 'backing-filename'?: string })['backing-filename']
}

test('a guest boots on an overlay, its disk is streamed while it works, and in the end no base is needed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 64 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')

  const events: DomainEvent[] = []
  root.conn.on('block-job', (event) => events.push(event))
  const stream = await dom.stream('vda', { bandwidth: 32 * MiB })
  const states = await dom.streamDiskInfo()
  assert.equal(states.length, 1)
  assert.deepEqual(
    { path: states[0]?.path, disk: states[0]?.disk, size: states[0]?.size, mode: states[0]?.mode },
    { path: 'virtio-disk0', disk: 'vda', size: 64 * MiB, mode: 'full' },
  )
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
  assert.equal(events.length, 1)

  await run('rm', [base.path], { timeout: 1_000 })
  const stat = await guest.stop()
  assert.ok(stat.reads > 0 && stat.writes > 0)
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  const report = await checkPattern(path, 'qcow2', base.seed, base.size)
  assert.equal(report.digest, digest)
  assert.equal(report.bad, 0)
})
