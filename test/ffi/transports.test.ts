/** libvirtd from elsewhere: over ssh and TLS, with the wrong keys, and when the other side falls silent. */
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync } from 'node:fs'
import { chmod, chown, copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, test } from 'node:test'
import type { TestContext } from 'node:test'
import { Connect, VirError } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { until } from '../support/domain.js'
import { mayUnshare, startLibvirtd } from '../support/libvirtd.js'
import type { Libvirtd } from '../support/libvirtd.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { freePort } from '../support/ports.js'
import { newKey, sshWith, startSshd } from '../support/sshd.js'
import { TestAuthority } from '../tunnel/pki.js'

// a connection keeps no process alive, and these tests wait for events
const alive = setInterval(() => undefined, 60_000)
after(() => clearInterval(alive))

const PLAIN = "<domain type='qemu'><name>x</name><memory>65536</memory><os><type>hvm</type></os></domain>"
const SIGSTOP = 19
const SIGCONT = 18

interface Elsewhere {
  daemon: Libvirtd
  folder: string
  /** URI over ssh, with other parameters of it */
  ssh: (params?: Record<string, string>) => string
  /** URI over TLS, with the certificates in a folder */
  tls: (pkipath: string) => string
  authority: TestAuthority
}

async function elsewhere(t: TestContext): Promise<Elsewhere | undefined> {
  const programs = ['program:libvirtd', 'program:sshd', 'program:ssh', 'program:nc', 'program:openssl'] as const
  if (!requires(t, 'root', ...programs)) return undefined
  if (!(await mayUnshare())) {
    t.skip('needs mount namespaces')
    return undefined
  }
  const folder = await temporaryFolder(t)
  const authority = await TestAuthority.make(join(folder, 'ca'))
  const pki = await authority.issue('server', '/CN=127.0.0.1')
  const port = await freePort()
  mkdirSync(join(folder, 'libvirtd'))
  const daemon = await startLibvirtd(t, join(folder, 'libvirtd'), '', { port, pki })
  const sshd = await startSshd(t, join(folder, 'sshd'))
  const known = { keyfile: sshd.key, command: sshd.ssh, socket: join(daemon.runDir, 'libvirt-sock'), proxy: 'netcat' }
  const uri = `qemu+ssh://root@127.0.0.1:${sshd.port}/system`
  return {
    ...{ daemon, folder, authority },
    ssh: (params = {}) => `${uri}?${new URLSearchParams({ ...known, ...params }).toString()}`,
    tls: (pkipath) => `qemu+tls://127.0.0.1:${port}/system?pkipath=${pkipath}`,
  }
}

async function works(uri: string): Promise<void> {
  await using conn = await Connect.open(uri)
  assert.equal(await conn.getType(), 'QEMU')
  const events = conn.domainEvents()
  const dom = await conn.domainDefineXML(PLAIN)
  const { value } = await events.next()
  assert.equal(value?.kind, 'lifecycle')
  await dom.undefine()
}

test('over ssh: calls and events work; a wrong key, a strange host and a socket that is not there are errors', async (t) => {
  const there = await elsewhere(t)
  if (there === undefined) return
  const { folder, ssh } = there
  await works(ssh())
  const wrong = await newKey(join(folder, 'wrong'))
  const refusals: [string, RegExp][] = [
    [ssh({ keyfile: wrong }), /Permission denied/],
    [ssh({ command: sshWith(folder, 'stranger', '') }), /Host key verification failed/],
    [ssh({ socket: join(folder, 'nobody') }), /nobody/],
    [ssh({ command: join(folder, 'no-such-ssh') }), /no-such-ssh/],
  ]
  const refusal = async (uri: string): Promise<VirError> => {
    const error: unknown = await Connect.open(uri).catch((reason: unknown) => reason)
    assert.ok(error instanceof VirError)
    assert.equal(error.domain, 'VIR_FROM_RPC')
    return error
  }
  // where libvirt finds an ssh gone before it reads what that said, its error has no reason: so not each must have one
  for (const [uri, why] of refusals)
    await until(`${uri} is refused for ${String(why)}`, async () => why.test((await refusal(uri)).message))
})

test('over TLS: calls and events work; the certificates of strangers are errors on either side', async (t) => {
  const there = await elsewhere(t)
  if (there === undefined) return
  const { folder, tls, authority } = there
  const own = await authority.issue('client', '/CN=alice')
  await works(tls(own))
  const stranger = await TestAuthority.make(join(folder, 'other'), 'Other CA')
  const foreign = await stranger.issue('client', '/CN=alice')
  await assert.rejects(Connect.open(tls(foreign)), { name: 'VirError', message: /certificate/ })
  // one that trusts the server, but that the server does not trust
  await copyFile(join(own, 'cacert.pem'), join(foreign, 'cacert.pem'))
  await assert.rejects(Connect.open(tls(foreign)), VirError)
  await assert.rejects(Connect.open(tls(join(folder, 'nothing'))), { name: 'VirError', message: /cacert\.pem/ })
})

test('a daemon that goes, or falls silent, is noticed on every way, and what waits for it fails', async (t) => {
  const there = await elsewhere(t)
  if (there === undefined) return
  const { daemon, ssh, tls, authority } = there
  const uris = [daemon.uri, ssh(), tls(await authority.issue('client', '/CN=alice'))]
  const lose = async (how: () => void): Promise<void> => {
    const conns = await Promise.all(uris.map((uri) => Connect.open(uri)))
    const heard = conns.map(async (conn) => {
      for await (const event of conn.domainEvents()) return event.kind
      return undefined
    })
    how()
    // several at once: libvirt 9.0 by itself would let but one of them fail
    const waiting = conns.flatMap((conn) =>
      [conn.listAllDomains(), conn.getVersion(), conn.getHostname(), conn.listAllDomains()].map((call) =>
        assert.rejects(call, VirError),
      ),
    )
    assert.deepEqual(await Promise.all(heard), ['close', 'close', 'close'])
    await Promise.all(waiting)
    await Promise.all(conns.map((conn) => conn.close()))
  }
  // it counts as gone after 40 s
  await lose(() => daemon.kill(SIGSTOP))
  daemon.kill(SIGCONT)
  await lose(() => daemon.kill())
})

test("an ordinary user has domains in a libvirtd of their own, which is started for them by 'qemu:///session'", async (t) => {
  if (!requires(t, 'root', 'program:setpriv', 'program:libvirtd', 'program:qemu-system-x86_64')) return
  const [user, folder] = [65_534, await temporaryFolder(t)]
  await chmod(folder, 0o755)
  const [home, runtime, script] = [join(folder, 'home'), join(folder, 'run'), join(folder, 'script.mjs')]
  for (const own of [home, runtime]) {
    await mkdir(own, { mode: 0o700 })
    await chown(own, user, user)
  }
  const index = new URL('../../src/index.js', import.meta.url)
  await writeFile(
    script,
    `const { Connect } = await import('${index.href}')
     const conn = await Connect.open('qemu:///session')
     const dom = await conn.domainDefineXML("${PLAIN}")
     await dom.create(1)
     console.log((await dom.getState()).state)
     await dom.destroy()
     await dom.undefine()
     await conn.close()`,
  )
  const as = [`--reuid=${user}`, `--regid=${user}`, '--clear-groups', '--']
  const readable = run('setpriv', [...as, process.execPath, '--check', index.pathname])
  if (
    await readable.then(
      () => false,
      () => true,
    )
  ) {
    t.skip('needs a checkout that every user can read')
    return
  }
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: home, XDG_RUNTIME_DIR: runtime, LC_ALL: 'C' }
  try {
    const { stdout } = await run('setpriv', [...as, process.execPath, script], { timeout: 60_000, env, cwd: '/' })
    assert.equal(stdout, '3\n')
  } finally {
    // it would wait for others for two minutes
    process.kill(Number(readFileSync(join(runtime, 'libvirt/libvirtd.pid'), 'utf8')))
  }
})
