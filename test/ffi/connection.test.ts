/** Connections of real libvirt: open, close, errors, events, loss, memory, the end of the process. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../../src/index.js'
import { Connect, VirError } from '../../src/index.js'
import type { Credential } from '../../src/index.js'
import { library } from '../../src/ffi/library.js'
import { until } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { daemonFor, libvirtIsThere, testUri } from './support.js'

const ffi = { driver: 'ffi' }
// a connection keeps no process alive, and these tests wait for events
const alive = setInterval(() => undefined, 60_000)
after(() => clearInterval(alive))
const index = new URL('../../src/index.js', import.meta.url).href

/** Runs a script in a Node of its own, and answers what it printed; it must end by itself. */
async function script(text: string, env: Record<string, string> = {}): Promise<string> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', text], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  let out = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => (out += data.toString()))
  const timer = setTimeout(() => child.kill('SIGKILL'), 60_000)
  const [code] = (await once(child, 'close')) as [number | null]
  clearTimeout(timer)
  assert.equal(code, 0, `the script ended with ${String(code)}: ${out}`)
  return out
}

test("libvirt's test driver is opened by its library, ours without", async (t) => {
  if (!libvirtIsThere(t)) return
  const [real, own] = [await Connect.open('test:///default', ffi), await Connect.open('test:///default')]
  t.after(() => Promise.all([real.close(), own.close()]))
  assert.deepEqual([await real.getType(), await own.getType()], ['TEST', 'TEST'])
  const disks = async (conn: Connect): Promise<boolean> =>
    (await (await conn.domainLookupByName('test')).getXMLDesc()).includes('images.example.com')
  assert.deepEqual([await disks(real), await disks(own)], [false, true])
})

test('an error is that of the call, with code, domain and bare words, however many fail at once', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(testUri(daemon))
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  await Promise.all(
    Array.from({ length: 100 }, async (_, nth) => {
      await assert.rejects(nth % 2 === 0 ? dom.resume() : conn.domainLookupByID(90_000 + nth), (error) => {
        assert.ok(error instanceof VirError)
        if (nth % 2 === 0) assert.equal(error.message, "domain 'test' not paused")
        else assert.equal(error.code, 'VIR_ERR_NO_DOMAIN')
        return error.domain === 'VIR_FROM_TEST'
      })
    }),
  )
})

test('what libvirt cannot open is its own error, and what needs the library says so where it is missing', async (t) => {
  if (!libvirtIsThere(t)) return
  await assert.rejects(Connect.open('test:///no/such/file.xml', ffi), VirError)
  await assert.rejects(Connect.open('qemu+unix:///system?socket=/nonexistent'), {
    code: 'VIR_ERR_SYSTEM_ERROR',
    message: /'\/nonexistent'/,
  })
  await assert.rejects(Connect.open('virstream+none:///x'), { code: 'VIR_ERR_NO_CONNECT' })
  const folder = await temporaryFolder(t)
  const out = await script(
    `import koffi from 'koffi'
     koffi.load = () => { throw new Error('no such file') }
     const { Connect } = await import('${index}')
     const own = await Connect.open('test:///default')
     await own.close()
     console.log(await Connect.open('qemu:///system').then(() => 'opened', (error) => error.code + ' ' + error.message))`,
    { HOME: folder },
  )
  assert.match(out, /^VIR_ERR_NO_CONNECT libvirt's library 'libvirt\.so\.0' cannot be loaded.*libvirt0/)
})

test('drivers of ones own are refused where somebody else starts QEMU', async () => {
  const lockManager = {
    name: 'none',
    acquire: () => Promise.reject(new Error('never asked')),
    release: () => Promise.resolve(undefined),
    inquire: () => Promise.resolve(true),
  }
  for (const uri of ['qemu:///system', 'virstream+unix:///nonexistent'])
    for (const [option, given] of [
      ['security', { security: [] }],
      ['lockManager', { lockManager }],
    ] as const)
      await assert.rejects(Connect.open(uri, given), {
        code: 'VIR_ERR_OPERATION_UNSUPPORTED',
        message: new RegExp(`^'${option}' is not possible on a connection to '${uri.replaceAll('+', '.')}'`),
      })
})

test('what a server asks is answered, whenever the answer comes; a wrong or no answer opens nothing', async (t) => {
  if (!libvirtIsThere(t)) return
  const path = join(await temporaryFolder(t), 'node.xml')
  writeFileSync(path, "<node><auth><user password='secret'>demo</user></auth></node>")
  const asked: number[] = []
  const answering = (password: string | undefined) => ({
    ...ffi,
    authenticate: async (credentials: readonly Credential[]) => {
      await delay(20)
      asked.push(...credentials.map(({ type }) => type))
      return credentials.map(({ type }) => (type === c.VIR_CRED_AUTHNAME ? 'demo' : password))
    },
  })
  const conn = await Connect.open(`test://${path}`, answering('secret'))
  assert.deepEqual(asked, [c.VIR_CRED_AUTHNAME, c.VIR_CRED_PASSPHRASE])
  assert.equal(await conn.getType(), 'TEST')
  await conn.close()
  for (const wrong of ['guess', undefined])
    await assert.rejects(Connect.open(`test://${path}`, answering(wrong)), { code: 'VIR_ERR_AUTH_FAILED' })
  await assert.rejects(Connect.open(`test://${path}`, ffi), VirError)
})

test('a connection for reading reads only', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.openReadOnly(testUri(daemon))
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  assert.equal((await dom.getState()).state, c.VIR_DOMAIN_RUNNING)
  await assert.rejects(dom.destroy(), { code: 'VIR_ERR_OPERATION_DENIED' })
  // and libvirt itself knows: ours is not asked here
  await assert.rejects(
    library().call(
      'virDomainSuspend',
      await library().call('virDomainLookupByName', await openRaw(testUri(daemon)), 'test'),
    ),
    { code: 'VIR_ERR_OPERATION_DENIED' },
  )
})

/** A connection of libvirt for reading, without anything of ours around it. */
async function openRaw(uri: string): Promise<bigint> {
  return library().call('virConnectOpenAuth', uri, null, 1)
}

test('events come in order, in this process and from a daemon', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  for (const uri of ['test:///default', testUri(daemon)]) {
    const conn = await Connect.open(uri, ffi)
    const events = conn.domainEvents({ kinds: ['lifecycle'] })
    const dom = await conn.domainLookupByName('test')
    await dom.suspend()
    await dom.resume()
    await dom.destroy()
    const heard: number[] = []
    for await (const event of events) {
      if (event.kind !== 'lifecycle') continue
      assert.equal(event.domain.uuid, dom.uuid)
      heard.push(event.event)
      if (event.event === c.VIR_DOMAIN_EVENT_STOPPED) break
    }
    assert.deepEqual(heard, [c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_STOPPED], uri)
    if (uri !== 'test:///default') await dom.create()
    await conn.close()
  }
})

test('several who ask at once for a domain that only an event has named are all answered', async (t) => {
  if (!libvirtIsThere(t)) return
  const [changing, hearing] = [await Connect.open('test:///default', ffi), await Connect.open('test:///default', ffi)]
  t.after(() => Promise.all([changing.close(), hearing.close()]))
  const events = hearing.domainEvents({ kinds: ['lifecycle'] })
  const dom = await changing.domainLookupByName('test')
  await dom.suspend()
  const { value: event } = await events.next()
  assert.equal(event?.kind, 'lifecycle')
  const answers = await Promise.all([1, 2, 3].map(() => event.domain.getXMLDesc()))
  assert.deepEqual(new Set(answers), new Set([await dom.getXMLDesc()]))
  await dom.resume()
})

test('when the daemon goes, listeners hear it, calls fail, and it can be closed', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(testUri(daemon))
  const events = conn.domainEvents()
  const dom = await conn.domainLookupByName('test')
  daemon.kill()
  const heard: string[] = []
  for await (const event of events) heard.push(event.kind)
  assert.deepEqual(heard, ['close'])
  await assert.rejects(dom.getState(), VirError)
  await conn.close()
})

test('a server that never answers keeps neither the event loop nor the end of the process waiting', async (t) => {
  if (!libvirtIsThere(t)) return
  const folder = await temporaryFolder(t)
  const path = join(folder, 'silent')
  const server = createServer().listen(path)
  t.after(() => server.close())
  const out = await script(
    `const { Connect } = await import('${index}')
     for (let i = 0; i < 6; i++) void Connect.open('qemu+unix:///system?socket=${path}')
     await new Promise((resolve) => setTimeout(resolve, 200))
     const { readFile } = await import('node:fs/promises')
     console.log((await readFile('/etc/hostname')).length > 0)
     process.exit(0)`,
  )
  assert.equal(out, 'true\n')
})

test('a process with an open connection ends when it has nothing else to do', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const uri = testUri(daemon)
  const out = await script(
    `const { Connect } = await import('${index}')
     const conn = await Connect.open('${uri}')
     conn.on('lifecycle', () => undefined)
     console.log((await conn.listAllDomains()).length)`,
  )
  assert.equal(out, '1\n')
})

test('a second thread is told that libvirt is taken, and may have it once the first has ended', async (t) => {
  if (!libvirtIsThere(t)) return
  const body = `import('${index}').then(({ Connect }) => Connect.open('test:///default', { driver: 'ffi' }))
    .then((conn) => conn.getType(), (error) => error.code)
    .then(async (text) => (await import('node:worker_threads')).parentPort.postMessage(text))`
  const out = await script(
    `import { Worker } from 'node:worker_threads'
     const ask = () => new Promise((resolve, reject) => {
       const worker = new Worker(${JSON.stringify(body)}, { eval: true })
       let text
       worker.once('message', (said) => { text = said; void worker.terminate() })
       worker.once('error', reject)
       worker.once('exit', () => resolve(text))
     })
     console.log(await ask())
     const { Connect } = await import('${index}')
     const conn = await Connect.open('test:///default', { driver: 'ffi' })
     console.log(await ask(), await conn.getType())
     await conn.close()`,
  )
  assert.equal(out, 'TEST\nVIR_ERR_OPERATION_UNSUPPORTED TEST\n')
})

/** Resident memory, KiB. */
const resident = (): number => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
const descriptors = (): number => readdirSync('/proc/self/fd').length

test('calls and connections leave nothing behind', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const uri = testUri(daemon)
  const openAndClose = async (): Promise<void> => {
    const conn = await Connect.open(uri)
    await conn.listAllDomains()
    await conn.close()
  }
  const conn = await Connect.open(uri)
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  const calls = (): Promise<unknown> => Promise.all(Array.from({ length: 50 }, () => dom.getXMLDesc()))
  for (let i = 0; i < 10; i++) await Promise.all([openAndClose(), calls()])
  await delay(100)
  const before = { fds: descriptors(), memory: resident() }
  for (let i = 0; i < 40; i++) await Promise.all([openAndClose(), calls()])
  await until('all descriptors are closed', () => descriptors() <= before.fds)
  assert.equal(library().pending, 0)
  assert.ok(resident() - before.memory < 32 * 1024, `from ${before.memory} to ${resident()} KiB`)
})
