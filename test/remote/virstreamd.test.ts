/** The daemon as a process: killed, ended, started twice; roots that are used through it without anybody's knowing. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import { ensureDaemon } from '../../src/remote/embedded.js'
import { cli } from '../cli/run.js'
import { refused } from '../driver/support.js'
import { daemonProcess } from '../support/daemon-process.js'
import { diskXml, plainXml, processesOf, until } from '../support/domain.js'
import { backingOf, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { testFolder } from './support.js'

const MiB = 1024 * 1024

interface TestPlace {
  folder: string
  root: string
  uri: string
}

async function place(t: TestContext): Promise<TestPlace> {
  const folder = await testFolder(t)
  const root = join(folder, 'root')
  t.after(() => {
    for (const pid of processesOf(folder)) process.kill(pid, 'SIGKILL')
  })
  return { folder, root, uri: `qemu:///embed?root=${root}` }
}

test('a domain and its stream outlive a daemon that is killed; the next one has both', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { folder, root, uri } = await place(t)
  const base = await patternImage(folder, 64 * MiB)
  const path = await overlay(folder, base.path)
  const first = await daemonProcess(t, root)
  assert.deepEqual(first.readiness, { ready: true, uris: [`virstream+unix://${root}/run/virstreamd.sock`] })

  const conn = await Connect.open(uri)
  t.after(() => conn.close())
  const dom = await conn.domainDefineXML(plainXml({ name: 'kept', devices: diskXml('vda', path) }))
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  await dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_START, { bandwidth: 2 * MiB })
  const events = conn.domainEvents({ kinds: ['control-error'] })
  await first.end('SIGKILL')
  assert.equal((await events.next()).value?.kind, 'close')
  await refused(dom.getState(), 'VIR_ERR_RPC')

  const second = await daemonProcess(t, root)
  assert.equal(second.readiness.ready, true, 'the socket that was left there is in nobody\u2019s way')
  const again = await Connect.open(uri)
  t.after(() => again.close())
  const found = await again.domainLookupByName('kept')
  assert.equal((await found.getState()).state, c.VIR_DOMAIN_PAUSED)
  const stream = await found.attachStream('vda')
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(path), undefined)

  const { status } = await second.end('SIGTERM')
  assert.equal(status, 0)
  const direct = await Connect.open(uri)
  t.after(() => direct.close())
  const still = await direct.domainLookupByName('kept')
  assert.equal(await still.isActive(), true, 'a daemon that ends leaves domains as they are')
  await still.destroy()
})

test('commands and read-only users on a root that a daemon has go through it, a second daemon does not', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const { folder, root, uri } = await place(t)
  const daemon = await daemonProcess(t, root)
  const xml = join(folder, 'd.xml')
  await writeFile(xml, plainXml({ name: 'served', devices: '' }))
  assert.match((await cli(['-c', uri, 'define', xml])).stdout, /'served' defined/)
  assert.match((await cli(['-c', uri, '-r', 'list', '--all'])).stdout, /served +shut off/)
  assert.match((await cli(['-c', uri, '-r', 'undefine', 'served'])).stderr, /VIR_ERR_OPERATION_DENIED/)

  const other = await daemonProcess(t, root)
  assert.equal(other.readiness.ready, false)
  const { status, stderr } = await other.end()
  assert.equal(status, 1)
  assert.match(
    stderr,
    new RegExp(`error: root '${root}' is in use by process '${daemon.pid}' .VIR_ERR_OPERATION_INVALID`),
  )
  // what a daemon's client cannot bring along is refused as ever
  await refused(Connect.open(uri, { security: [] }), 'VIR_ERR_OPERATION_INVALID', /in use/)
  daemon.child.kill('SIGHUP')
  assert.match((await cli(['-c', uri, 'undefine', 'served'])).stdout, /has been undefined/)
  assert.equal((await daemon.end('SIGINT')).status, 0)
})

test('a daemon for a while is started once, serves, and ends when nobody needs it', async (t) => {
  const { root, uri } = await place(t)
  const daemon = await daemonProcess(t, root, ['--until-idle', '1'])
  await ensureDaemon(root)
  {
    await using conn = await Connect.open(uri)
    assert.deepEqual(await conn.listAllDomains(), [])
  }
  assert.equal((await daemon.end()).status, 0)
  const holder = await Connect.open(uri)
  await refused(ensureDaemon(root), 'VIR_ERR_OPERATION_INVALID', /in use by process/)
  await holder.close()
  await ensureDaemon(root)
  await using through = await Connect.open(uri)
  assert.deepEqual(await through.listAllDomains(), [])
  assert.match(await readFile(join(root, 'log/virstreamd.log'), 'utf8'), /"ready"/)
})

test('a command that waits for events fails when its connection breaks', async (t) => {
  const { root, uri } = await place(t)
  const daemon = await daemonProcess(t, root)
  const listeners = process.listenerCount('SIGINT')
  const waiting = cli(['-c', uri, 'event', '--event', 'block-job'])
  await until('it waits', () => process.listenerCount('SIGINT') > listeners)
  await daemon.end('SIGKILL')
  const { status, stdout, stderr } = await waiting
  assert.equal(status, 1)
  assert.match(stdout, /^event 'close': the connection broke: .*\n$/)
  assert.match(stderr, /^error: the connection broke: .*\n$/)
})

test('settings stand in a file of the root, and wrong ones keep a daemon from starting', async (t) => {
  const { folder, root } = await place(t)
  await mkdir(join(root, 'etc'), { recursive: true })
  const settings = join(root, 'etc/virstreamd.json')
  await writeFile(settings, '{ "port": 1 }')
  const wrong = await daemonProcess(t, root)
  assert.match((await wrong.end()).stderr, /there is no setting 'port' \(VIR_ERR_CONF_SYNTAX\)/)
  await writeFile(settings, JSON.stringify({ unix: join(folder, 'more'), listen: ['tcp://127.0.0.1:0'] }))
  const right = await daemonProcess(t, root)
  assert.ok(right.readiness.ready)
  assert.equal(right.readiness.uris.length, 3)
  for (const uri of right.readiness.uris) {
    await using conn = await Connect.open(uri)
    assert.equal(await conn.getType(), 'QEMU')
  }
  assert.equal((await right.end('SIGTERM')).status, 0)
})

const listener = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', chr(0), 1))
print('bound', flush=True)
print(s.recv(4096).decode(), flush=True)
print(s.recv(4096).decode(), flush=True)
`

test('systemd is told that the daemon is ready, and that it ends', async (t) => {
  if (!requires(t, 'program:python3')) return
  const { folder, root } = await place(t)
  for (const socket of [join(folder, 'notify'), `@virstream-test-${process.pid}`]) {
    const systemd = spawn('python3', ['-c', listener, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.after(() => systemd.kill('SIGKILL'))
    let said = ''
    systemd.stdout.on('data', (chunk) => (said += String(chunk)))
    const over = once(systemd, 'close')
    await until('systemd listens', () => said !== '')
    const daemon = await daemonProcess(t, root, [], { NOTIFY_SOCKET: socket })
    await daemon.end('SIGTERM')
    await over
    assert.match(said, /^bound\nREADY=1\nSTATUS=serves virstream.*\nSTOPPING=1\n$/)
  }
})

test('a command line that is none is refused before anything is opened', async (t) => {
  const { root } = await place(t)
  const wrong = await daemonProcess(t, root, ['--until-idle', 'soon'])
  assert.match((await wrong.end()).stderr, /--until-idle must be a whole number/)
  const level = await daemonProcess(t, root, ['--log-level', 'loud'])
  assert.match((await level.end()).stderr, /^error: --log-level must be one of trace, .*, silent, not 'loud'\n$/)
  const socket = await daemonProcess(t, root, ['--unix', 'here.sock'])
  assert.match(
    (await socket.end()).stderr,
    /a unix socket needs an absolute path, not 'here.sock' \(VIR_ERR_INVALID_ARG\)/,
  )
  const relative = await daemonProcess(t, 'not/absolute')
  assert.match((await relative.end()).stderr, /root must be an absolute path/)
})
