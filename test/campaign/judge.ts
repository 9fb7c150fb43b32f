/** After a kill: everything is as it must be, the stream goes on to its end, and then nothing is left of it. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { rename, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { pino, type Logger } from 'pino'
import * as c from '../../src/index.js'
import { native } from '../../src/native.js'
import { openLockFile } from '../../src/locking/lock-file.js'
import { processesOf, until } from '../support/domain.js'
import { headerOf } from './acts.js'
import { expectedOf, wrongBlocks } from './content.js'
import { DISK, holders, isAlive, NAME, notes, runDirs } from './place.js'
import { faults, noted, notedAfter, type Outcome, type Scene } from './scene.js'

const SOON = 15_000
const STREAMED = 40_000

/** What went wrong, in words; nothing when all is well. What was learned on the way goes to `remarks`. */
export async function judge(scene: Scene, outcome: Outcome, remarks: string[]): Promise<void> {
  const { plan, place } = scene
  assert.ok(!outcome.hung, 'our process did not come to its end')
  assert.deepEqual(notedAfter(scene, 'stale'), [], 'a domain or a stream outlives its process')
  checkFailures(scene)
  const killedHolder = plan.victim === 'qemu' || plan.victim === 'both'
  await checkHeader(scene)
  const runs = await holder(scene)
  const errors: string[] = []
  const conn = await c.Connect.open(place.uri, { logger: collect(errors) })
  try {
    const dom = await conn.domainLookupByName(NAME)
    await checkState(scene, dom, runs)
    if (runs !== undefined || !killedHolder) await checkPromises(scene, dom)
    await finish(scene, dom)
    await checkStreamed(scene, dom)
    await checkGuest(scene, dom)
    if (await dom.isActive()) await dom.destroy()
    else {
      await dom.create(c.VIR_DOMAIN_START_PAUSED)
      await dom.destroy()
    }
    const foul = errors.filter((text) => !isToBeExpected(text))
    assert.deepEqual(foul, [], 'errors in the log')
    remarks.push(...errors.filter(isToBeExpected))
  } finally {
    await conn.close()
  }
  await checkNothingLeft(scene)
  await checkContent(scene, killedHolder)
}

/** Only a kill may make a call or a stream fail; and no kill but that of QEMU, or a base that was away. */
function checkFailures(scene: Scene): void {
  const failures = notedAfter(scene, 'failed')
  const { victim } = scene.plan
  if (victim === 'qemu' || victim === 'term') return
  const allowed = victim === 'server' ? /does not answer|Failed to connect|Connection reset|Input\/output/ : /^$/
  assert.deepEqual(
    failures.filter((text) => !allowed.test(text)),
    [],
    'calls failed',
  )
}

/** The header has its base, or what it needs no more. */
async function checkHeader({ place }: Scene): Promise<void> {
  const names = await headerOf(place.image)
  assert.ok([place.backing, place.partialBase, undefined].includes(names), `the header names '${String(names)}'`)
}

/** Who has the images open, once those that were killed are gone. */
async function holder(scene: Scene): Promise<number | undefined> {
  const { place } = scene
  const killed = notedAfter(scene, 'killed').flatMap((text) => text.split(' ').map(Number))
  await until('those that were killed are gone', () => !killed.some(isAlive), SOON)
  const [pid, ...others] = holders(place)
  assert.deepEqual(others, [], 'two processes have the images')
  return pid
}

function collect(errors: string[]): Logger {
  const write = (line: string): void => {
    const { msg, err } = JSON.parse(line) as { msg: string; err?: { message?: string } }
    errors.push(err?.message === undefined ? msg : `${msg}: ${err.message}`)
  }
  return pino({ level: 'error' }, { write })
}

/** What a process may complain of that finds a stream at an end which nobody saw. */
const isToBeExpected = (text: string): boolean => /has no backing image, there is nothing to stream/.test(text)

async function checkState(scene: Scene, dom: c.Domain, runs: number | undefined): Promise<void> {
  const active = await dom.isActive()
  const now = holders(scene.place)
  const asked = (what: string): boolean => noted(scene, `answered ${what}`)
  if (asked('create') && !noted(scene, 'asked destroy') && runs !== undefined)
    assert.equal(active, true, 'a domain that had been started does not run')
  if (active) assert.equal(now.length, 1, 'a domain is called active without a process')
  if (!active && now.length === 1) assert.ok((await dom.streamDiskInfo()).length > 0, 'a process runs for nothing')
  const { state } = await dom.getState()
  assert.equal(state === c.VIR_DOMAIN_SHUTOFF, !active, `state ${state}, active ${active}`)
}

/** A stream that was begun is there, or has ended well; unless it was told to stop, or died with who had it. */
async function checkPromises(scene: Scene, dom: c.Domain): Promise<void> {
  const lines = notes(scene.place)
  const at = (what: string): number => lines.lastIndexOf(what)
  const begun = scene.plan.life === 'boot' ? at('answered create') : at('answered stream')
  if (begun < 0 || at('asked stop') > begun || at('asked stream') > begun) return
  const isThere = async (): Promise<boolean> => (await dom.streamDiskInfo()).length > 0 || (await isOver(scene))
  await until('the stream goes on', isThere, SOON).catch(() => assert.fail('a stream that had been begun is lost'))
}

async function isOver({ plan, place }: Scene): Promise<boolean> {
  const names = await headerOf(place.image)
  return names === undefined || (plan.life === 'partial' && names === place.partialBase)
}

/** Whatever streams gets to its end; what does not is begun again, until the image needs nothing any more. */
async function finish(scene: Scene, dom: c.Domain): Promise<void> {
  const end = performance.now() + STREAMED
  for (;;) {
    if (performance.now() > end)
      assert.fail(`it is not streamed in ${STREAMED} ms: ${JSON.stringify(await dom.streamDiskInfo())}`)
    const streams = await dom.streamDiskInfo()
    if (streams.length > 0) {
      await dom.blockJobSetSpeed(DISK, 0).catch(() => undefined)
      await delay(50)
    } else if ((await headerOf(scene.place.image)) === undefined) return
    else if (!(await isGoingOn(scene, dom))) await again(scene, dom)
  }
}

/** Between two processes a stream is nowhere. */
async function isGoingOn(scene: Scene, dom: c.Domain): Promise<boolean> {
  for (let tries = 0; tries < 10; tries++) {
    if ((await dom.streamDiskInfo()).length > 0 || (await headerOf(scene.place.image)) === undefined) return true
    await delay(20)
  }
  return false
}

async function again({ plan, place }: Scene, dom: c.Domain): Promise<void> {
  if (!(await dom.isActive()) && plan.afterwards === 'start') {
    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    if (plan.life === 'boot') return
  }
  const { engine } = plan
  await dom.streamDisk(DISK, 0, c.VIR_STREAM_DISK_START, { engine }).catch(async (error: unknown) => {
    // what the start had taken over may be at its end by now
    if ((await headerOf(place.image)) !== undefined) throw error
  })
}

/** No definition names a base, no QEMU has one open, and the base is as it was. */
async function checkStreamed(scene: Scene, dom: c.Domain): Promise<void> {
  const { images, place, plan } = scene
  assert.doesNotMatch(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/, 'the inactive definition')
  if (await dom.isActive()) {
    assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/, 'the live definition')
    const ask = async (execute: string): Promise<string> => dom.qemuMonitorCommand(JSON.stringify({ execute }))
    const nodes = JSON.parse(await ask('query-named-block-nodes')) as { return: { 'node-name': string }[] }
    const own = /^node-1-/
    assert.deepEqual(
      nodes.return.map((node) => node['node-name']).filter((name) => !own.test(name)),
      [],
      'QEMU has nodes of images that left the chain',
    )
    assert.deepEqual(JSON.parse(await ask('query-block-exports')), { return: [] }, 'an export is left')
    assert.deepEqual(JSON.parse(await ask('query-jobs')), { return: [] }, 'a job is left')
  } else {
    await until('the storage daemon has ended', () => holders(place).length === 0, SOON)
  }
  if (plan.access === 'labels') for (const path of images.slice(1)) await checkOwner(path)
}

async function checkOwner(path: string): Promise<void> {
  const { uid, gid } = await stat(path)
  const remembered = native.listxattr(path).filter((name) => name.startsWith('trusted.libvirt.'))
  assert.deepEqual([path, uid, gid, ...remembered], [path, process.getuid?.(), process.getgid?.()], 'a label is left')
}

/** A guest that lived through all that has seen nothing of it. */
async function checkGuest({ guest, plan }: Scene, dom: c.Domain): Promise<void> {
  if (guest === undefined || plan.victim === 'qemu' || plan.victim === 'both' || !(await dom.isActive())) return
  const { bad, err } = await guest.verify()
  assert.deepEqual({ bad, err, alerts: guest.guest.alerts }, { bad: 0, err: 0, alerts: [] }, 'the guest complains')
}

async function checkNothingLeft(scene: Scene): Promise<void> {
  const { place, server, images, plan } = scene
  const left = processesOf(place.folder).filter((pid) => pid !== server?.pid && isAlive(pid))
  assert.deepEqual(left, [], 'processes are left')
  assert.deepEqual(runDirs(place), [], 'run directories are left')
  if (plan.access === 'labels') for (const path of images) await checkOwner(path)
  const locks = join(place.folder, 'root/lib/lock')
  for (const name of existsSync(locks) ? readdirSync(locks) : []) {
    const fd = openLockFile(join(locks, name))
    const held = native.testLock(fd, { type: 'write', start: 0, length: 1 })
    native.close(fd)
    assert.equal(held, undefined, `the lock ${name} is held`)
  }
}

/** Without the base: every block holds what it must. */
async function checkContent(scene: Scene, lossy: boolean): Promise<void> {
  const { place, base, guest } = scene
  for (const path of scene.images.slice(1)) await rename(path, `${path}.away`)
  assert.equal(await faults(place.image, lossy), undefined)
  const expected = guest?.expected ?? expectedOf(place, lossy)
  const { wrong } = await wrongBlocks(place, base.seed, expected, guest !== undefined)
  const words = wrong.slice(0, 5).map(({ block, holds }) => {
    const must = expected.get(block)
    return `${block} holds ${holds} and not ${must === undefined ? 'the base' : 'since' in must ? `write ${must.since} or later` : [...must].join(' or ')}`
  })
  assert.equal(wrong.length, 0, `${wrong.length} blocks are wrong: ${words.join('; ')}`)
}
