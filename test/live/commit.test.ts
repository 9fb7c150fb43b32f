/** Images that are written into those below them while a guest runs, whoever dies meanwhile. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import type { Domain, LockDriver, SecurityDriver } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import {
  diskXml,
  powerOff,
  qemuPid,
  recordEvents,
  reopen,
  startGuest,
  startPlain,
  testRoot,
  type TestRoot,
  until,
  virError,
} from '../support/domain.js'
import { driverProcess } from '../support/driver-process.js'
import { backingOf, checkImage, emptyImage, overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024
const { VIR_DOMAIN_BLOCK_COMMIT_ACTIVE: ACTIVE, VIR_DOMAIN_BLOCK_COMMIT_DELETE: DELETE } = c
const { VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT: PIVOT, VIR_DOMAIN_BLOCK_COMMIT_RELATIVE: RELATIVE } = c
const IN_BYTES = c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES

/** Names of the images of vda, its own first. */
async function imagesOf(dom: Domain, flags = 0): Promise<string[]> {
  const xml = (await dom.getXMLDesc(flags)).replace(/<mirror[^]*?<\/mirror>/, '')
  return [...xml.matchAll(/<source file='([^']*)'/g)].map(([, path = '']) => basename(path))
}

async function nodesOf(dom: Domain): Promise<string[]> {
  const answer = await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes","arguments":{"flat":true}}')
  return (JSON.parse(answer) as { return: { 'node-name': string }[] }).return.map((node) => node['node-name'])
}

/** 'base.raw' that is empty, below 'mid.qcow2' that holds the pattern, below more overlays; all by relative names. */
async function makeChain(folder: string, ...more: string[]): Promise<{ seed: number; size: number; top: string }> {
  const { path, seed, size } = await patternImage(folder, 16 * MiB)
  await emptyImage(folder, 'raw', size, 'base.raw')
  let top = await overlay(folder, 'base.raw', { name: 'mid.qcow2' })
  await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'qcow2', path, top])
  for (const name of more) top = await overlay(folder, basename(top), { name, backingFormat: 'qcow2' })
  return { seed, size, top }
}

const isReady = (dom: Domain): Promise<void> =>
  until('the commit is ready', async () => (await dom.getXMLDesc()).includes("ready='yes'"))
const jobIsOver = (dom: Domain): Promise<void> =>
  until('the job is over', async () => (await dom.blockJobInfo('vda')) === undefined)

test('a guest works on while images below its own are committed and deleted, and then its own, which a later process ends', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const { seed, size, top } = await makeChain(root.folder, 'snap.qcow2', 'top.qcow2')
  const { dom, guest } = await startGuest(t, root, { name: 'commit', devices: diskXml('vda', top) })
  const events = recordEvents(root.conn)
  const paths = (name: string): string => join(root.folder, name)
  await guest.base('vda', seed, size)
  await guest.work('vda')

  await dom.blockCommit('vda', paths('base.raw'), paths('mid.qcow2'), 0, DELETE | RELATIVE)
  await until('the images in the middle are committed', () => events.some((event) => event.kind === 'block-job'))
  assert.deepEqual(
    events.flatMap((event) =>
      event.kind === 'block-job' ? [[event.disk, event.type, event.status, event.error]] : [],
    ),
    [['vda', c.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, c.VIR_DOMAIN_BLOCK_JOB_COMPLETED, undefined]],
  )
  assert.equal(existsSync(paths('mid.qcow2')), false)
  assert.equal(await backingOf(paths('snap.qcow2')), 'base.raw')
  assert.deepEqual(await imagesOf(dom), ['top.qcow2', 'snap.qcow2', 'base.raw'])
  assert.equal((await nodesOf(dom)).filter((name) => /^node-\d+-(format|guard)$/.test(name)).length, 4)
  assert.equal((await guest.verify('vda')).bad, 0)

  await dom.blockCommit('vda', undefined, undefined, 0, ACTIVE | DELETE)
  await reopen(root)
  const again = await root.conn.domainLookupByName('commit')
  await isReady(again)
  await again.blockJobAbort('vda', PIVOT)
  for (const flags of [0, c.VIR_DOMAIN_XML_INACTIVE]) assert.deepEqual(await imagesOf(again, flags), ['base.raw'])
  for (const name of ['top.qcow2', 'snap.qcow2']) assert.equal(existsSync(paths(name)), false, name)
  assert.equal((await nodesOf(again)).filter((name) => name.startsWith('node-')).length, 2)
  await again.blockResize('vda', size + MiB, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
  await again.blockResize('vda', size, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
  const { writes, errors } = await guest.stop()
  assert.ok(writes > 0)
  assert.equal(errors, 0)
  assert.equal((await guest.verify('vda')).bad, 0)
  const digest = await guest.digest('vda')
  await powerOff(again, guest)
  assert.equal((await checkPattern(paths('base.raw'), 'raw', seed)).digest, digest)
})

/** The domain's QEMU is killed, and that is noticed. */
async function killQemu(root: TestRoot, dom: Domain): Promise<void> {
  process.kill(qemuPid(root, dom), 'SIGKILL')
  await until('the domain is shut off', async () => !(await dom.isActive()))
}

test('a QEMU that is killed before the pivot leaves the own image as it was, and one that is killed after it the base', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const { seed, top } = await makeChain(root.folder)
  const dom = await startPlain(root, { name: 'killed', devices: diskXml('vda', top) })
  const events = recordEvents(root.conn)
  const whole = async (path: string, format: string): Promise<void> => {
    if (format === 'qcow2') await checkImage(path, format)
    assert.equal((await checkPattern(path, format, seed)).bad, 0)
  }
  const definition = await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE)

  await dom.blockCommit('vda', undefined, undefined, 4 * MiB, ACTIVE | IN_BYTES)
  await until('a part is committed', async () => ((await dom.blockJobInfo('vda'))?.cur ?? 0) > 2 * MiB)
  await killQemu(root, dom)
  await whole(top, 'qcow2')
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  await dom.blockCommit('vda', undefined, undefined, 0, ACTIVE)
  await isReady(dom)
  await killQemu(root, dom)
  await whole(top, 'qcow2')
  assert.equal(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), definition)
  const failed = events.flatMap((event) => (event.kind === 'block-job' ? [event.status] : []))
  assert.deepEqual(failed, [c.VIR_DOMAIN_BLOCK_JOB_FAILED, c.VIR_DOMAIN_BLOCK_JOB_READY, c.VIR_DOMAIN_BLOCK_JOB_FAILED])

  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  await dom.blockCommit('vda', undefined, undefined, 0, ACTIVE)
  await isReady(dom)
  await dom.blockJobAbort('vda', PIVOT)
  await killQemu(root, dom)
  assert.deepEqual(await imagesOf(dom), ['base.raw'])
  await whole(join(root.folder, 'base.raw'), 'raw')
})

test('a process that is killed while it commits leaves the job to QEMU, and the next one ends it, or begins it', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const { seed, top } = await makeChain(root.folder, 'top.qcow2')
  const dom = await startPlain(root, { name: 'left', devices: diskXml('vda', top) })
  await root.conn.close()
  const worker = driverProcess(t, root.uri, { name: 'left', do: 'commit' })
  assert.equal(await worker.said, 'ready')
  await worker.kill()
  await reopen(root)
  const again = await root.conn.domainLookupByName('left')
  await jobIsOver(again)
  for (const flags of [0, c.VIR_DOMAIN_XML_INACTIVE])
    assert.deepEqual(
      (await imagesOf(again, flags)).slice(0, 2),
      flags === 0 ? ['top.qcow2', 'base.raw'] : ['top.qcow2'],
    )
  assert.equal(await backingOf(top), join(root.folder, 'base.raw'))
  await again.destroy()
  assert.equal((await checkPattern(top, 'qcow2', seed)).bad, 0)
  assert.equal(dom.uuid, again.uuid)
})

interface Taken {
  /** what is held now, as 'kind mode name' */
  held: string[]
  security: SecurityDriver
  locks: LockDriver
}

/** Drivers that remember what they gave and did not get back. */
function recorders(): Taken {
  const held: string[] = []
  const drop = (one: string): void => {
    assert.ok(held.includes(one), `'${one}' was not given`)
    held.splice(held.indexOf(one), 1)
  }
  const nameOf = (path: string, readonly: boolean): string => `${readonly ? 'read' : 'write'} ${basename(path)}`
  const isImage = (path: string): boolean => /\.(raw|qcow2)$/.test(path)
  return {
    held,
    security: {
      name: 'recorder',
      probe: () => Promise.resolve(undefined),
      setImageLabel(_def, { path, readonly }, note) {
        note('')
        if (isImage(path)) held.push(`label ${nameOf(path, readonly)}`)
        return Promise.resolve()
      },
      restoreImageLabel(_def, { path, readonly }) {
        if (isImage(path)) drop(`label ${nameOf(path, readonly)}`)
        return Promise.resolve()
      },
    },
    locks: {
      name: 'recorder',
      acquire(owner, resources) {
        for (const { path, mode } of resources) held.push(`lock ${nameOf(path, mode === 'read-only')}`)
        return Promise.resolve({ owner, resources, data: '' })
      },
      release({ resources }) {
        for (const { path, mode } of resources) drop(`lock ${nameOf(path, mode === 'read-only')}`)
        return Promise.resolve(undefined)
      },
      inquire: () => Promise.resolve(true),
    },
  }
}

test('an image that is committed to may be written to for that time, and its lock is an exclusive one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { held, security, locks } = recorders()
  const root = await testRoot(t, { security: [security], lockManager: locks })
  const { top } = await makeChain(root.folder, 'snap.qcow2', 'top.qcow2')
  const dom = await startPlain(root, { name: 'labels', devices: diskXml('vda', top) })
  const now = (): string[] => held.toSorted()
  const both = (...uses: string[]): string[] => uses.flatMap((use) => [`label ${use}`, `lock ${use}`]).toSorted()
  const atRest = both('write top.qcow2', 'read snap.qcow2', 'read mid.qcow2', 'read base.raw')
  assert.deepEqual(now(), atRest)

  await dom.blockCommit('vda', undefined, 'vda[3]', 1, IN_BYTES)
  assert.deepEqual(now(), both('write top.qcow2', 'write snap.qcow2', 'read mid.qcow2', 'write base.raw'))
  await dom.blockJobAbort('vda')
  assert.deepEqual(now(), atRest)
  await assert.rejects(
    dom.blockCommit('vda', '/nope', undefined, 0, ACTIVE),
    virError('VIR_ERR_INVALID_ARG', /'\/nope'/),
  )
  assert.deepEqual(now(), atRest)
  await dom.blockCommit('vda', undefined, 'vda[3]')
  await jobIsOver(dom)
  assert.deepEqual(now(), both('write top.qcow2', 'read snap.qcow2', 'read base.raw'))
  await dom.blockCommit('vda', undefined, undefined, 0, ACTIVE)
  await isReady(dom)
  await dom.blockJobAbort('vda', PIVOT)
  assert.deepEqual(now(), both('write base.raw'))
  await dom.destroy()
  assert.deepEqual(now(), [])
})
