/** A domain's life: how it starts, stops, restarts, pauses and is saved, with a guest that notices. */
import assert from 'node:assert/strict'
import { existsSync, lstatSync } from 'node:fs'
import { connect } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import {
  agentOf,
  assertNothingRuns,
  diskXml,
  guestXml,
  lifecycleOf,
  plainXml,
  powerOff,
  qemuPid,
  recordEvents,
  reopen,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { emptyImage, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024
const isOff = (dom: c.Domain) => async (): Promise<boolean> => !(await dom.isActive())

test('shutdown presses the button, the guest obeys, and every step is told', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const events = recordEvents(root.conn)
  const { dom } = await startGuest(t, root, { name: 'obedient', devices: '' })
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_BOOTED })
  await assert.rejects(dom.create(), virError('VIR_ERR_OPERATION_INVALID', /already running/))
  await dom.shutdown()
  await until('the domain is off', isOff(dom))
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_SHUTDOWN })
  const expected = [
    [c.VIR_DOMAIN_EVENT_DEFINED, c.VIR_DOMAIN_EVENT_DEFINED_ADDED],
    [c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_BOOTED],
    [c.VIR_DOMAIN_EVENT_SHUTDOWN, c.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST],
    [c.VIR_DOMAIN_EVENT_STOPPED, c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN],
  ]
  assert.deepEqual(
    lifecycleOf(events),
    expected.map((pair) => pair.join('/')),
  )
  assertNothingRuns(root)
})

test('reboot and reset keep the QEMU and its stream; the guest comes up again', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { name: 'again', devices: diskXml('vda', path) })
  const pid = qemuPid(root, dom)
  await guest.base('vda', base.seed, base.size)
  await guest.command('write vda 7')
  const stream = await dom.stream('vda', { bandwidth: MiB / 8 })

  await dom.reboot()
  await until('the guest goes down', () => guest.output.some((line) => line.startsWith('POWER')))
  await guest.ready()
  assert.deepEqual([qemuPid(root, dom), (await dom.getState()).state], [pid, c.VIR_DOMAIN_RUNNING])
  assert.equal((await stream.info())?.status, 'running')

  const boots = (): number => guest.output.filter((line) => line.startsWith('READY')).length
  const before = boots()
  await dom.reset()
  await until('the guest comes up again', () => boots() > before)
  assert.equal(qemuPid(root, dom), pid)
  assert.equal((await stream.info())?.status, 'running')
  await stream.setBandwidth(0)
  await stream.finished
  await guest.base('vda', base.seed, base.size)
  const { bad, written } = await guest.adopt('vda')
  assert.deepEqual({ bad, written }, { bad: 0, written: 1 })
  await dom.shutdown()
  await until('the domain is off', isOff(dom))
})

test('suspend and resume in mid-stream: the guest stands still, the stream goes on', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { name: 'still', devices: diskXml('vda', path) })
  const events = recordEvents(root.conn)
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  const stream = await dom.stream('vda', { bandwidth: MiB })
  await dom.suspend()
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER })
  await dom.suspend()
  await assert.rejects(guest.command('ping', { timeout: 300 }), /no answer/)
  const before = (await stream.info())?.offset ?? 0
  await until('the stream goes on', async () => ((await stream.info())?.offset ?? 0) > before)
  await dom.resume()
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_UNPAUSED })
  await assert.rejects(dom.resume(), virError('VIR_ERR_OPERATION_INVALID', /already running/))
  await stream.setBandwidth(0)
  await stream.finished
  await guest.stop()
  assert.equal((await guest.verify('vda')).bad, 0)
  assert.deepEqual(lifecycleOf(events), [
    `${c.VIR_DOMAIN_EVENT_SUSPENDED}/${c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED}`,
    `${c.VIR_DOMAIN_EVENT_RESUMED}/${c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED}`,
  ])
})

test('a saved guest goes on where it was, with all that it remembers', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const path = await emptyImage(root.folder, 'qcow2', 16 * MiB)
  const { dom, guest } = await startGuest(t, root, { name: 'saved', devices: diskXml('vda', path) })
  await guest.work('vda')
  await until('it has written', async () => (await guest.stat()).writes > 20)
  await guest.stop()
  const { written } = await guest.verify('vda')
  assert.ok(written > 0)
  guest[Symbol.dispose]()

  const file = join(root.folder, 'saved.state')
  await dom.save(file)
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_SAVED })
  assertNothingRuns(root)
  const restored = await root.conn.domainRestore(file)
  assert.deepEqual(await restored.getState(), { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_RESTORED })
  const second = await agentOf(t, root.folder, 'saved')
  const kept = await second.verify('vda')
  assert.deepEqual([kept.bad, kept.err, kept.written], [0, 0, written])
  second[Symbol.dispose]()

  await dom.managedSave()
  assert.equal(await dom.hasManagedSaveImage(), true)
  await assert.rejects(dom.undefine(), virError('VIR_ERR_OPERATION_INVALID', /managed save image/))
  await reopen(root)
  const again = await root.conn.domainLookupByName('saved')
  assert.equal(await again.hasManagedSaveImage(), true)
  await again.create()
  assert.equal(await again.hasManagedSaveImage(), false)
  const third = await agentOf(t, root.folder, 'saved')
  const { bad, written: still } = await third.verify('vda')
  assert.deepEqual([bad, still], [0, written])
})

test('a domain is not saved while its disk is streamed, and a broken file is not restored', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'busy', devices: diskXml('vda', path) })
  const stream = await dom.stream('vda', { bandwidth: 1 })
  const file = join(root.folder, 'busy.state')
  await assert.rejects(dom.save(file), virError('VIR_ERR_OPERATION_INVALID', /domain has active block job/))
  assert.equal(existsSync(file), false)
  await stream.stop()
  await assert.rejects(root.conn.domainRestore(path), c.VirError)
  await assert.rejects(root.conn.domainRestore('/nosuch/file'), virError('VIR_ERR_SYSTEM_ERROR', /nosuch/))
})

test('a domain can start paused, and goes when it is told to', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { name: 'waiting', devices: '' }))
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  assert.deepEqual(await dom.getState(), { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER })
  await dom.resume()
  const guest = await agentOf(t, root.folder, 'waiting')
  await powerOff(dom, guest)
})

test('on_reboot destroys, on_poweroff restarts, each where the definition says so', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const once = await startGuest(t, root, { name: 'once', devices: '', extra: '<on_reboot>destroy</on_reboot>' })
  await once.guest.command('reboot').catch(() => undefined)
  await until('the domain is off', isOff(once.dom))

  const extra = '<on_poweroff>restart</on_poweroff>'
  const { dom, guest } = await startGuest(t, root, { name: 'always', devices: '', extra })
  const pid = qemuPid(root, dom)
  await guest.command('poweroff').catch(() => undefined)
  await until('the guest goes down', () => guest.output.some((line) => line.startsWith('POWER')))
  await guest.ready()
  assert.deepEqual([qemuPid(root, dom), (await dom.getState()).state], [pid, c.VIR_DOMAIN_RUNNING])
})

test('autostart is a mark of the definition that outlives the process', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'auto', devices: '' }))
  assert.equal(await dom.getAutostart(), false)
  await dom.setAutostart(true)
  const link = join(root.folder, 'root/etc/qemu/autostart/auto.xml')
  assert.ok(lstatSync(link).isSymbolicLink())
  await reopen(root)
  const again = await root.conn.domainLookupByName('auto')
  assert.equal(await again.getAutostart(), true)
  await again.setAutostart(false)
  assert.equal(existsSync(link), false)
})

test('a transient domain is gone when it stops, and stays when it is defined meanwhile', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const xml = plainXml({ name: 'passing', devices: '' })
  const dom = await root.conn.domainCreateXML(xml, c.VIR_DOMAIN_START_PAUSED)
  assert.equal(await dom.isPersistent(), false)
  await assert.rejects(dom.setAutostart(true), virError('VIR_ERR_OPERATION_INVALID', /transient/))
  await reopen(root)
  const found = await root.conn.domainLookupByName('passing')
  await found.destroy()
  await assert.rejects(found.getState(), virError('VIR_ERR_NO_DOMAIN', /passing/))

  const second = await root.conn.domainCreateXML(xml, c.VIR_DOMAIN_START_PAUSED)
  await root.conn.domainDefineXML(xml)
  assert.equal(await second.isPersistent(), true)
  await second.undefine()
  assert.equal(await second.isActive(), true)
  await second.destroy()
  assert.deepEqual(await root.conn.listAllDomains(), [])
})

test('UEFI: the firmware starts, with a variable store of the domain’s own', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'file:/usr/share/OVMF/OVMF_CODE_4M.fd')) return
  const root = await testRoot(t)
  const store = join(root.folder, 'vars.fd')
  const loader = `<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>${store}</nvram></os>`
  const xml = plainXml({ name: 'uefi', devices: "<serial type='pty'/>", memory: 262_144 }).replace('</os>', loader)
  const dom = await root.conn.domainDefineXML(xml)
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  assert.ok(existsSync(store))
  const line = await dom.openConsole()
  let text = ''
  line.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')))
  await dom.resume()
  await until('the firmware speaks', () => /UEFI|BdsDxe|PXE|Shell/.test(text))
  line.destroy()
  await dom.destroy()
  await assert.rejects(dom.undefine(), virError('VIR_ERR_OPERATION_INVALID', /nvram/))
  await dom.undefine(c.VIR_DOMAIN_UNDEFINE_NVRAM)
  assert.equal(existsSync(store), false)
})

test('a console on a pty has one session at a time', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const xml = await guestXml(root.folder, { name: 'lines', devices: '' })
  const pty = xml.replace(/<serial type='unix'>.*<\/serial>/, "<serial type='pty'/><console type='pty'/>")
  const dom = await root.conn.domainDefineXML(pty)
  await dom.create()
  assert.match(await dom.getXMLDesc(0), /<console type='pty' tty='\/dev\/pts\/\d+'/)
  const line = await dom.openConsole()
  let text = ''
  line.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')))
  await until('the guest is up', () => text.includes('READY'))
  const busy = virError('VIR_ERR_OPERATION_FAILED', /Active console session exists for this domain/)
  await assert.rejects(dom.openConsole(), busy)
  line.write('#1 ping\n')
  await until('it answers', () => text.includes('#1 ok'))
  const closed = new Promise((resolve) => line.once('close', resolve))
  const forced = await dom.openConsole(undefined, c.VIR_DOMAIN_CONSOLE_FORCE)
  await closed
  forced.destroy()
  await assert.rejects(dom.openConsole('serial7'), virError('VIR_ERR_INTERNAL_ERROR', /serial7/))
})

test('VNC listens on a unix socket, or on a TCP port that is given out', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const path = join(root.folder, 'vnc.sock')
  const banner = async (at: { path: string } | { port: number }): Promise<string> => {
    const socket = connect(at)
    const [bytes] = (await once(socket, 'data')) as [Buffer]
    socket.destroy()
    return bytes.toString('latin1')
  }
  const unix = `<graphics type='vnc' socket='${path}'/>`
  await startPlain(root, { name: 'unix', devices: unix })
  assert.match(await banner({ path }), /^RFB 003/)

  const tcp = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>"
  const ports: number[] = []
  // at once: neither QEMU listens yet when ports are given out
  const domains = await Promise.all(['first', 'second'].map((name) => startPlain(root, { name, devices: tcp })))
  for (const dom of domains) {
    const port = Number(/<graphics type='vnc' port='(\d+)' autoport='yes'/.exec(await dom.getXMLDesc(0))?.[1])
    assert.match(await banner({ port }), /^RFB 003/)
    assert.match(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /port='-1' autoport='yes'/)
    ports.push(port)
  }
  assert.notEqual(ports[0], ports[1])
})
