/** Domains that leave a libvirtd for a root of ours, and from there go on with their disks behind them. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { test } from 'node:test'
import type { TestContext } from 'node:test'
import * as c from '../../src/index.js'
import { Connect, VIR_MIGRATE_STREAM_DISKS } from '../../src/index.js'
import type { Domain } from '../../src/index.js'
import {
  agentOf,
  diskXml,
  guestXml,
  plainXml,
  reopen,
  testRoot,
  until,
  virError,
  type TestRoot,
} from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { backingOf, overlay, patternImage } from '../support/images.js'
import type { Libvirtd } from '../support/libvirtd.js'
import { daemonFor } from './support.js'

interface Owned {
  daemon: Libvirtd
  folder: string
  conn: Connect
  dom: Domain
  guest: Guest
  /** its definition for another host: its serial line is another socket there */
  there: string
}

/**
 * A guest with a disk of 64 MiB that a libvirtd has. libvirt rounds memory to whole MiB, of which QEMU's emulation loses
 * pages in a live migration (see support/guest.ts): these guests stand still while their memory goes over.
 */
async function ownedGuest(t: TestContext): Promise<Owned | undefined> {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return undefined
  const { folder } = daemon
  const { path: base, size, seed } = await patternImage(folder)
  const disk = await overlay(folder, base)
  const conn = await Connect.open(daemon.uri)
  const dom = await conn.domainDefineXML(await guestXml(folder, { devices: diskXml('vda', disk) }))
  t.after(async () => {
    await dom.destroy().catch(() => undefined)
    await conn.close()
  })
  await dom.create()
  const guest = await agentOf(t, folder)
  await guest.base('vda', seed, size)
  await guest.work('vda')
  const xml = await dom.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE)
  return { daemon, folder, conn, dom, guest, there: xml.replaceAll('guest.serial', 'moved.serial') }
}

const nothingWrong = { bad: 0, err: 0 }
async function verify(guest: Guest): Promise<{ bad: number; err: number }> {
  await guest.stop('vda')
  const { bad, err } = await guest.verify('vda')
  return { bad, err }
}

test('a guest leaves a libvirtd for a root of its host, and that for another one with its disk behind it', async (t) => {
  const owned = await ownedGuest(t)
  if (owned === undefined) return
  const { folder, dom, there, daemon } = owned
  const [here, elsewhere] = [await testRoot(t), await testRoot(t)]
  await assert.rejects(
    dom.migrate(here.conn, {}, VIR_MIGRATE_STREAM_DISKS),
    virError('VIR_ERR_ARGUMENT_UNSUPPORTED', /migrate the domain to a root of its host first/),
  )
  await assert.rejects(
    dom.migrate(here.conn, {}, c.VIR_MIGRATE_LIVE | c.VIR_MIGRATE_POSTCOPY),
    virError('VIR_ERR_ARGUMENT_UNSUPPORTED', /^a domain of libvirt cannot be migrated with VIR_MIGRATE_POSTCOPY$/),
  )
  await dom.migrateSetCompressionCache(1 << 20)
  assert.equal(await dom.migrateGetCompressionCache(), 1 << 20)
  const compressed = { compression: 'xbzrle', compressionXbzrleCache: 2 << 20 }
  const moved = await dom.migrate(here.conn, { destinationXML: there, ...compressed }, c.VIR_MIGRATE_PERSIST_DEST)
  const { compressionCache, compressionPages } = await dom.getJobStats(c.VIR_DOMAIN_JOB_STATS_COMPLETED)
  assert.deepEqual({ compressionCache, compressionPages }, { compressionCache: 2 << 20, compressionPages: 0 })
  assert.deepEqual(await moved.getState(), { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_MIGRATED })
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED })
  assert.equal(await moved.isPersistent(), true)

  // libvirtd does not know, but its QEMU cannot have the image
  await assert.rejects(daemon.virsh('start', 'guest'), /lock/)

  const [from, to] = [join(folder, 'overlay.qcow2'), join(elsewhere.folder, 'disk.qcow2')]
  const xml = await moved.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE)
  const last = xml.replace(from, to).replaceAll('moved.serial', 'last.serial')
  const arrived = await moved.migrate(elsewhere.conn, { destinationXML: last }, VIR_MIGRATE_STREAM_DISKS)
  assert.equal((await arrived.getState()).state, c.VIR_DOMAIN_RUNNING)
  await until('its disk is there', async () => (await moved.getState()).state === c.VIR_DOMAIN_SHUTOFF)
  assert.equal(await backingOf(to), undefined)

  assert.deepEqual(await verify(await agentOf(t, folder, 'last')), nothingWrong)
})

/** Migrates in a process of its own, which dies at once when `method` of the migration's link is called. */
async function migrateAndDie(daemon: Libvirtd, here: TestRoot, there: string, method: 'open' | 'last'): Promise<void> {
  const source = (file: string): string => new URL(`../../src/${file}`, import.meta.url).href
  const script = `
    const { Connect } = await import('${source('index.js')}')
    const { MigrationLink } = await import('${source('migration/link.js')}')
    const known = MigrationLink.prototype.${method}
    MigrationLink.prototype.${method} = async function (...args) {
      if ('${method}' === 'open') {
        const channel = await known.apply(this, args)
        return channel.once('drain', () => process.kill(process.pid, 'SIGKILL'))
      }
      process.kill(process.pid, 'SIGKILL')
    }
    const [from, to] = [await Connect.open('${daemon.uri}'), await Connect.open('${here.uri}')]
    await (await from.domainLookupByName('guest')).migrate(to, { destinationXML: process.env.THERE }, 0)`
  await here.conn.close()
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: 'inherit',
    env: { ...process.env, THERE: there },
  })
  const [, signal] = (await once(child, 'exit')) as [number | null, string | null]
  assert.equal(signal, 'SIGKILL')
  await reopen(here)
}

test('what fails before the guest has gone leaves it to its libvirtd, as it was', async (t) => {
  const owned = await ownedGuest(t)
  if (owned === undefined) return
  const { daemon, dom, guest, there } = owned
  const here = await testRoot(t)
  const goesOn = async (how: string): Promise<void> => {
    await until(how, async () => (await dom.getState()).state === c.VIR_DOMAIN_RUNNING)
    assert.deepEqual(await here.conn.listAllDomains(), [], how)
    // libvirtd has no job of it any more
    await dom.suspend()
    await dom.resume()
  }
  const other = there.replace("model='qemu-xhci'", "model='piix3-uhci'")
  await assert.rejects(dom.migrate(here.conn, { destinationXML: other }), virError('VIR_ERR_CONFIG_UNSUPPORTED', /./))
  await goesOn('the destination refused it')

  const migrating = dom.migrate(here.conn, { destinationXML: there, bandwidth: 1 })
  await Promise.all([
    assert.rejects(migrating, virError('VIR_ERR_OPERATION_ABORTED', /cancel/)),
    until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0).then(() => dom.abortJob()),
  ])
  await goesOn('it was called off')

  await migrateAndDie(daemon, here, there, 'open')
  await goesOn('our process died while memory went over')
  assert.deepEqual(await verify(guest), nothingWrong)
})

test('a process that dies before it lets the guest run leaves it on both sides, and neither can run beside the other', async (t) => {
  const owned = await ownedGuest(t)
  if (owned === undefined) return
  const { daemon, dom, guest, there } = owned
  const here = await testRoot(t)
  await migrateAndDie(daemon, here, there, 'last')
  assert.equal((await dom.getState()).state, c.VIR_DOMAIN_PAUSED)
  const [waiting] = await here.conn.listAllDomains()
  assert.equal((await waiting?.getState())?.state, c.VIR_DOMAIN_PAUSED)
  await assert.rejects(dom.resume(), /lock/)
  await waiting?.destroy()
  await dom.resume()
  assert.deepEqual(await verify(guest), nothingWrong)
})

test('a guest whose CPU nobody chose has the same one at the root, down to its features', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const libvirtd = await Connect.open(daemon.uri)
  const root = await testRoot(t)
  t.after(() => libvirtd.close())
  const chosen = "<cpu mode='maximum'/>"
  const dom = await libvirtd.domainDefineXML(plainXml({ name: 'plain', devices: '' }).replace(chosen, ''))
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  t.after(() => dom.destroy().catch(() => undefined))
  const cpu = /<cpu[^]*<\/cpu>/
  const [asked, had] = [
    cpu.exec(await dom.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE))?.[0],
    cpu.exec(await dom.getXMLDesc())?.[0],
  ]
  assert.match(had ?? '', /check='full'/)
  // the definition for the destination may say either
  for (const destinationXML of [undefined, await dom.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE)]) {
    const params = destinationXML === undefined ? {} : { destinationXML }
    const ours = await dom.migrate(root.conn, params, c.VIR_MIGRATE_LIVE | c.VIR_MIGRATE_PERSIST_DEST)
    assert.equal(cpu.exec(await ours.getXMLDesc())?.[0], had)
    assert.equal(cpu.exec(await ours.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE))?.[0], asked)
    await ours.destroy()
    await ours.undefine()
    if (destinationXML === undefined) await dom.create(c.VIR_DOMAIN_START_PAUSED)
  }
})
