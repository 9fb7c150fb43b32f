/** What a root may look like after a crash, a full disk or a clumsy hand, and what is given back. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { pino } from 'pino'
import * as c from '../../src/index.js'
import {
  assertNothingRuns,
  plainXml,
  processesOf,
  reopen,
  runDirOf,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { requires } from '../support/requires.js'

const paused = c.VIR_DOMAIN_START_PAUSED
const qemu = 'program:qemu-system-x86_64'

const descriptors = (): number => readdirSync('/proc/self/fd').length

/** Writes another state into what is known of a running domain. */
function rewriteState(runDir: string, state: number, reason: number): void {
  const file = join(runDir, 'status.json')
  const status = JSON.parse(readFileSync(file, 'utf8')) as object
  writeFileSync(file, JSON.stringify({ ...status, state: { state, reason } }))
}

test('a root with damaged and foreign files opens, says what it leaves, and reuses no directory of it', async (t) => {
  if (!requires(t, qemu)) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: '' }))
  await root.conn.domainDefineXML(plainXml({ name: 'torn', devices: '' }))
  await root.conn.close()
  const etc = join(root.folder, 'root/etc/qemu')
  const run = join(root.folder, 'root/run/qemu')
  writeFileSync(join(etc, 'torn.xml'), readFileSync(join(etc, 'torn.xml'), 'utf8').slice(0, 100))
  copyFileSync(join(etc, 'guest.xml'), join(etc, 'copy.xml'))
  writeFileSync(join(etc, 'empty.xml'), '')
  writeFileSync(join(etc, 'notes.txt'), 'buy milk')
  mkdirSync(join(etc, 'folder.xml'))
  symlinkSync('/nonexistent', join(etc, 'autostart/ghost.xml'))
  const statuses = [
    '{"version":1,"phase":"run',
    'null',
    '[]',
    '{"version":1,"uuid":"x","id":"7","phase":"running","def":{}}',
  ]
  for (const [i, text] of statuses.entries()) {
    mkdirSync(join(run, String(i + 1)))
    writeFileSync(join(run, String(i + 1), 'status.json'), text)
  }
  const said: string[] = []
  const logger = pino({}, { write: (line: string) => said.push(line) })
  root.conn = await c.Connect.open(root.uri, { logger })
  assert.deepEqual(
    (await root.conn.listAllDomains()).map(({ name }) => name),
    ['guest'],
  )
  for (const left of [
    'torn.xml',
    'copy.xml',
    'empty.xml',
    '1/status.json',
    '2/status.json',
    '3/status.json',
    '4/status.json',
  ])
    assert.ok(
      said.some((line) => line.includes(`${left}'`)),
      `nothing is said of ${left}`,
    )
  const again = await root.conn.domainLookupByUUIDString(dom.uuid)
  await again.create(paused)
  assert.equal(again.id, 5)
  await again.destroy()
  assert.deepEqual(readdirSync(run).toSorted(), ['1', '2', '3', '4'])
})

test('starts that fail, stops and consoles give back every descriptor', async (t) => {
  if (!requires(t, qemu)) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: "<serial type='pty'/><console type='pty'/>" }))
  const bad = await root.conn.domainDefineXML(
    plainXml({
      name: 'bad',
      devices: '',
      attributes: "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
    }).replace('</domain>', "<qemu:commandline><qemu:arg value='-nosuch'/></qemu:commandline></domain>"),
  )
  const round = async (): Promise<void> => {
    await assert.rejects(bad.create(), virError('VIR_ERR_INTERNAL_ERROR', /nosuch/))
    await dom.create(paused)
    for (let i = 0; i < 4; i++) {
      const console = await dom.openConsole()
      console.destroy()
      await once(console, 'close')
    }
    await dom.destroy()
  }
  await round()
  await delay(100)
  const before = descriptors()
  for (let i = 0; i < 4; i++) await round()
  await until('all descriptors are closed', () => descriptors() <= before)
  assert.deepEqual(await bad.getState(), { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_FAILED })
  assertNothingRuns(root)
})

test('a start whose process died before anybody was told of the domain is ended by the next process', async (t) => {
  if (!requires(t, qemu)) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  const runDir = runDirOf(root, dom)
  await root.conn.close()
  rewriteState(runDir, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_STARTING_UP)
  await reopen(root)
  const found = await root.conn.domainLookupByName('guest')
  assert.equal(await found.isActive(), false)
  assertNothingRuns(root)
})

test('a QEMU that does not listen yet is killed when its start is broken off', async (t) => {
  if (!requires(t, qemu)) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  const runDir = runDirOf(root, dom)
  await root.conn.close()
  rewriteState(runDir, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_STARTING_UP)
  rmSync(join(runDir, 'mon.sock'))
  assert.equal(processesOf(root.folder).length, 1)
  await reopen(root)
  assertNothingRuns(root)
})

test('closing the connection waits for a destroy that is under way', async (t) => {
  if (!requires(t, qemu)) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  await Promise.all([dom.destroy(), root.conn.close()])
  assertNothingRuns(root)
})

test('on a full disk calls fail with what happened and leave nothing; with room again all goes on', async (t) => {
  if (!requires(t, qemu, 'root', 'program:mount')) return
  const mounted: string[] = []
  // before the hook that removes the folder
  t.after(() => {
    for (const path of mounted) execFileSync('umount', ['-l', path])
  })
  const root = await testRoot(t)
  const mountPoint = join(root.folder, 'small')
  mkdirSync(mountPoint)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=0700', 'tmpfs', mountPoint], { stdio: 'pipe' })
  } catch {
    t.skip('needs to run as root that may mount')
    return
  }
  mounted.push(mountPoint)
  await root.conn.close()
  root.conn = await c.Connect.open(`qemu:///embed?root=${mountPoint}`)
  const xml = plainXml({ devices: '' })
  const dom = await root.conn.domainDefineXML(xml)
  const ballast = join(mountPoint, 'ballast')
  const fill = (): void => {
    try {
      writeFileSync(ballast, Buffer.alloc(8 << 20))
    } catch {
      assert.equal(statfsSync(mountPoint).bfree, 0)
    }
  }
  fill()
  await assert.rejects(
    root.conn.domainDefineXML(plainXml({ name: 'other', devices: '' })),
    virError('VIR_ERR_SYSTEM_ERROR', /cannot write '.*other\.xml'.*No space left on device/),
  )
  await assert.rejects(root.conn.domainDefineXML(xml.replace('<vcpu>1<', '<vcpu>2<')), /No space left on device/)
  await assert.rejects(dom.create(paused), /No space left on device/)
  assert.deepEqual(
    (await root.conn.listAllDomains()).map(({ name }) => name),
    ['guest'],
  )
  assert.deepEqual(readdirSync(join(mountPoint, 'etc/qemu')).toSorted(), ['autostart', 'guest.xml'])
  assert.match(await dom.getXMLDesc(), /<vcpu[^>]*>1</)
  assert.deepEqual(readdirSync(join(mountPoint, 'run/qemu')), [])
  assert.deepEqual(processesOf(mountPoint), [])
  await root.conn.close()
  root.conn = await c.Connect.open(`qemu:///embed?root=${mountPoint}`)
  const found = await root.conn.domainLookupByName('guest')
  rmSync(ballast)
  await found.create(paused)
  fill()
  await assert.rejects(found.managedSave(), /./)
  assert.equal(await found.hasManagedSaveImage(), false)
  assert.equal(await found.isActive(), true)
  await found.destroy()
  rmSync(ballast)
  assert.equal(existsSync(join(mountPoint, 'run/lock')), true)
  await root.conn.close()
})
