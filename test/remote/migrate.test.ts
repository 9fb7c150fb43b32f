/** Migration of a real guest between daemons, driven by the command line: one connection, and nobody of us stays. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import { ensureDaemon } from '../../src/remote/embedded.js'
import { run } from '../../src/util/run.js'
import { cli } from '../cli/run.js'
import { daemonProcess } from '../support/daemon-process.js'
import { agentOf, diskXml, guestXml, processesOf, until } from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { backingOf, type Cleanup, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { TestAuthority } from '../tunnel/pki.js'
import { assertRight } from '../support/streamed.js'

interface Host {
  folder: string
  root: string
  uri: string
}

async function host(t: Cleanup): Promise<Host> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-move-'))
  t.after(async () => {
    for (const pid of processesOf(folder)) process.kill(pid, 'SIGKILL')
    await rm(folder, { recursive: true, force: true })
  })
  const root = join(folder, 'root')
  return { folder, root, uri: `qemu:///embed?root=${root}` }
}

/** A guest with a disk of its own runs here, and nobody has the root open; XML for the other host in a file. */
async function guestAt(t: Cleanup, here: Host, there: Host): Promise<{ guest: Guest; xml: string; disk: string }> {
  const { path, size, seed } = await patternImage(here.folder)
  await run('qemu-img', ['convert', '-O', 'qcow2', path, join(here.folder, 'disk.qcow2')])
  const devices = diskXml('vda', join(here.folder, 'disk.qcow2'))
  const xml = join(there.folder, 'there.xml')
  {
    await using conn = await Connect.open(here.uri)
    const dom = await conn.domainDefineXML(await guestXml(here.folder, { devices }))
    await dom.create()
    const text = await dom.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE)
    await writeFile(xml, text.replaceAll(here.folder, there.folder))
  }
  const guest = await agentOf(t, here.folder)
  await guest.base('vda', seed, size)
  return { guest, xml, disk: join(there.folder, 'disk.qcow2') }
}

function isDaemon(pid: number): boolean {
  return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('virstreamd')
}

async function endDaemon({ root }: Host, signal: NodeJS.Signals): Promise<void> {
  const daemons = (): number[] => processesOf(root).filter(isDaemon)
  const [pid = 0] = daemons()
  process.kill(pid, signal)
  await until('the daemon has ended', () => daemons().length === 0)
}

const words = (text: string): string[] => text.split(' ')

test('a command moves a guest between two roots of this host, and daemons stay until its disk is there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await host(t), await host(t)]
  const { guest, xml, disk } = await guestAt(t, here, there)
  await guest.work('vda')
  const migrate = ['-c', here.uri, 'migrate', 'guest', there.uri, '--xml', xml]
  const moved = await cli([...migrate, ...words('--live --stream-disks --persistent --disk-bandwidth 1')])
  assert.deepEqual([moved.status, moved.stderr], [0, ''])
  assert.match(moved.stdout, /disk vda goes on being streamed there, in the background/)
  const agent = await agentOf(t, there.folder)
  assert.match((await cli(['-c', here.uri, 'domstate', 'guest', '--reason'])).stdout, /^paused \(post-copy\)/)
  assert.match((await cli(['-c', there.uri, 'stream-info', 'guest'])).stdout, /vda .* migration/)
  assert.match((await cli(['-c', here.uri, 'domjobinfo', 'guest'])).stdout, /Disk vda: +[\d.]+ [KM]?i?B of 64\.000 MiB/)
  // one daemon is asked to end, the other one is killed: those that follow go on with it
  await endDaemon(here, 'SIGTERM')
  await endDaemon(there, 'SIGKILL')
  await ensureDaemon(there.root)
  await ensureDaemon(here.root)
  const streams = async (): Promise<string> => (await cli(['-c', there.uri, 'stream-info', 'guest'])).stdout
  await until('the hosts have found each other', async () => / running$/m.test(await streams()))
  await cli(['-c', there.uri, 'blockjob', 'guest', 'vda', '--bandwidth', '0'])
  const state = async (): Promise<string> => (await cli(['-c', here.uri, 'domstate', 'guest'])).stdout
  await until('the source lets go', async () => (await state()).startsWith('shut off'), 120_000)
  await assertRight(agent)
  assert.equal(await backingOf(disk), undefined)
  const daemons = (): number[] => processesOf(here.root).concat(processesOf(there.root)).filter(isDaemon)
  await until('both daemons have ended', () => daemons().length === 0)
  assert.match((await cli(['-c', there.uri, 'list'])).stdout, /guest +running/)
})

test('two daemons on TLS move a guest over one port, back while its disk is on its way, and there again for good', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:openssl')) return
  const [here, there] = [await host(t), await host(t)]
  const { guest, xml } = await guestAt(t, here, there)
  const pki = await pkiOf(join(here.folder, 'ca'))
  const secured = ['--pki', pki, '--listen', 'tls://127.0.0.1:0']
  const [source, destination] = [
    await daemonProcess(t, here.root, secured),
    await daemonProcess(t, there.root, secured),
  ]
  const uris = [source, destination].map(({ readiness }) => (readiness.ready ? (readiness.uris[1] ?? '') : ''))
  const [from = '', to = ''] = uris.map((uri) => `${uri}?pkipath=${pki}`)
  await guest.work('vda')
  const migrate = ['-c', from, 'migrate', 'guest', to, '--xml', xml]
  const first = await cli([...migrate, ...words('--live --stream-disks --disk-bandwidth 1')])
  assert.deepEqual([first.status, first.stderr], [0, ''])
  guest[Symbol.dispose]()
  const back = await cli(['-c', from, 'migrate-rollback', 'guest'])
  assert.deepEqual([back.stdout, back.stderr], ["Domain 'guest' is back\n\n", ''])
  assert.match((await cli(['-c', from, 'list'])).stdout, /guest +running/)
  assert.doesNotMatch((await cli(['-c', to, 'list', '--all'])).stdout, /guest/)
  const moved = await cli([...migrate, ...words('--live --stream-disks --wait --verbose')])
  assert.deepEqual([moved.status, moved.stderr], [0, ''])
  assert.match(moved.stdout, /Disk vda: \[100 %\]/)
  const agent = await agentOf(t, there.folder)
  await assertRight(agent)
  assert.match((await cli(['-c', to, 'list'])).stdout, /guest +running/)
  assert.match((await cli(['-c', from, 'domstate', 'guest', '--reason'])).stdout, /^shut off \(migrated\)/)
})

/** One folder with the certificates of a host that is server and client. */
async function pkiOf(folder: string): Promise<string> {
  const authority = await TestAuthority.make(folder)
  const [server, client] = [await authority.issue('server', '/CN=host'), await authority.issue('client', '/CN=host')]
  await run('cp', [join(client, 'clientcert.pem'), join(client, 'clientkey.pem'), server])
  return server
}
