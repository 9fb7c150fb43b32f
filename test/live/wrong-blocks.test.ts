/**
 * While a block-stream job exists, QEMU takes a failed block status of the backing image for a success, and the guest gets
 * whatever was in the buffer. Shown on the same hardware without the driver's guard, and with it.
 */
import assert from 'node:assert/strict'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { startByHand, withoutMonitor } from '../support/by-hand.js'
import { agentOf, diskXml, qemuPid, startGuest, testRoot, until, type TestRoot } from '../support/domain.js'
import type { Guest, GuestVerify } from '../support/guest.js'
import { backingOf, overlay, patternImage, type PatternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { nbdkit, nbdUri } from '../support/servers.js'
import { assertStreamed } from '../support/streamed.js'

const MiB = 1024 * 1024

interface Setup {
  root: TestRoot
  base: PatternImage
  path: string
  /** from now on every block status fails while reads work (true), or all is well again */
  fail: (on: boolean) => void
}

/** An overlay on a base behind a server whose block status can be made to fail. */
async function setUp(t: TestContext): Promise<Setup> {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const socket = join(root.folder, 'base.nbd')
  const trigger = join(root.folder, 'fail-block-status')
  const faults = ['error-extents=EPERM', 'error-extents-rate=100%', `error-extents-file=${trigger}`]
  await nbdkit(t, socket, ['--filter=error', 'file', base.path, ...faults])
  const path = await overlay(root.folder, nbdUri({ path: socket }, ''))
  const fail = (on: boolean): void => (on ? writeFileSync(trigger, '') : rmSync(trigger))
  return { root, base, path, fail }
}

/** The guest only reads, all over the disk, for a while. */
async function readAround(guest: Guest): Promise<{ reads: number; wrong: number; errors: number; whole: GuestVerify }> {
  await guest.work('vda', 'reads')
  await until('it has read here and there', async () => (await guest.stat()).reads > 500)
  const { reads, bad: wrong, errors } = await guest.stop()
  return { reads, wrong, errors, whole: await guest.verify('vda') }
}

function hardwareWithoutGuard(pid: number): string[] {
  const argv = withoutMonitor(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1))
  const guards = argv.filter((word) => word.startsWith('{"driver":"quorum"'))
  assert.equal(guards.length, 1, 'the driver puts one guard into this chain')
  const at = argv.indexOf(guards[0] ?? '')
  return argv.toSpliced(at - 1, 2).map((word) => word.replace('"backing":"node-2-guard"', '"backing":"node-2-format"'))
}

test('without the guard a failing block status gives the guest wrong blocks and no error while its disk is streamed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:nbdkit')) return
  const { root, base, path, fail } = await setUp(t)
  const driven = await startGuest(t, root, { name: 'bare', devices: diskXml('vda', path) })
  const argv = hardwareWithoutGuard(qemuPid(root, driven.dom))
  driven.guest[Symbol.dispose]()
  await driven.dom.destroy()

  const qemu = await startByHand(t, argv, join(root.folder, 'by-hand.qmp'))
  await qemu.execute('cont')
  const guest = await agentOf(t, root.folder, 'bare')
  await guest.base('vda', base.seed, base.size)
  assert.equal((await guest.verify('vda')).bad, 0)
  // one chunk, then the job sleeps: what goes wrong is the guest's own reading
  const job = {
    'job-id': 'stream',
    device: 'node-1-format',
    speed: 1,
    'on-error': 'enospc',
    'filter-node-name': 'filter',
  }
  await qemu.execute('block-stream', job)
  const copied = async (): Promise<number> =>
    ((await qemu.execute('query-block-jobs')) as { offset: number }[])[0]?.offset ?? 0
  await until('it sleeps', async () => (await copied()) > 0)
  fail(true)
  const found = await readAround(guest)
  await qemu.kill()
  t.diagnostic(`without the guard: ${JSON.stringify(found)}`)
  assert.ok(found.wrong > 0 && found.whole.bad > 0, 'no wrong block: is this QEMU without the bug?')
  assert.deepEqual({ errors: found.errors, err: found.whole.err }, { errors: 0, err: 0 })
})

test('with the driver not one block is wrong, and the stream itself goes through', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:nbdkit')) return
  const { root, base, path, fail } = await setUp(t)
  const { dom, guest } = await startGuest(t, root, { name: 'guarded', devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  const stream = await dom.stream('vda', { bandwidth: 1, engine: 'job' })
  fail(true)
  const { reads, writes } = await guest.stat()
  await until('the guest has worked', async () => {
    const now = await guest.stat()
    return now.reads > reads + 20 && now.writes > writes + 20
  })
  await stream.setBandwidth(16 * MiB)
  await stream.finished
  const worked = await assertStreamed({ dom, guest, path, base })
  t.diagnostic(`with the guard: ${JSON.stringify(worked)}`)
})

test('with the driver a guest that reads everything meanwhile sees no wrong block either', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:nbdkit')) return
  const { root, base, path, fail } = await setUp(t)
  const { dom, guest } = await startGuest(t, root, { name: 'reading', devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  const stream = await dom.stream('vda', { bandwidth: 1, engine: 'job' })
  fail(true)
  const found = await readAround(guest)
  t.diagnostic(`with the guard: ${JSON.stringify(found)}`)
  const { bad, err } = found.whole
  assert.ok(found.reads > 20)
  assert.deepEqual({ wrong: found.wrong, errors: found.errors, bad, err }, { wrong: 0, errors: 0, bad: 0, err: 0 })
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(path), undefined)
})
