/** QEMU as another user than we are: what it uses is his as long as it runs, and only as long. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, readFile, readlink, stat, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import {
  Connect,
  type Domain,
  type LockDriver,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_INACTIVE,
  VirError,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import {
  agentOf,
  assertNothingRuns,
  diskXml,
  guestXml,
  plainXml,
  powerOff,
  reopen,
  runDirOf,
  startPlain,
  testRoot,
  type TestRoot,
  until,
  virError,
} from '../support/domain.js'
import { assertGivenBack, dacRoot, ownerOf, privateImages } from '../support/dac.js'
import { backingOf, checkImage, overlay } from '../support/images.js'
import { killerOf } from '../support/killer.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

const pidOf = async (root: TestRoot, dom: Domain): Promise<number> =>
  Number(await readFile(join(runDirOf(root, dom), 'qemu/pid'), 'utf8'))

const shutOff = (dom: Domain): Promise<void> =>
  until('the domain is shut off', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)

test('a guest runs as another user on images of root, is streamed, and everything goes back to its owner', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs, user } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const dom = await root.conn.domainDefineXML(await guestXml(folder, { devices: diskXml('vda', path) }))
  await dom.create()
  const guest = await agentOf(t, folder)
  const status = await readFile(`/proc/${await pidOf(root, dom)}/status`, 'utf8')
  assert.match(status, new RegExp(`^Uid:(\\t${user.uid}){4}$`, 'm'))
  assert.match(status, new RegExp(`^Gid:(\\t${user.gid}){4}$`, 'm'))
  assert.match(status, /^CapEff:\t0+$/m)
  assert.deepEqual([await ownerOf(path), await ownerOf(base.path)], [theirs, theirs])
  assert.equal((await stat(join(runDirOf(root, dom), 'status.json'))).uid, 0)
  const live = await dom.getXMLDesc(0)
  assert.match(live, new RegExp(`<seclabel type='dynamic' model='dac' relabel='yes'>\\s*<label>\\+${user.uid}:`))
  assert.doesNotMatch(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), /seclabel/)

  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(path), undefined)
  await assertGivenBack(base.path)
  assert.equal(await ownerOf(path), theirs)
  await guest.stop()
  assert.deepEqual((await guest.verify('vda')).bad, 0)
  await powerOff(dom, guest)
  await assertGivenBack(path, base.path)
  assertNothingRuns(root)
  await checkImage(path)
})

test('when QEMU is killed, and when we are, the owners come back', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const dom = await startPlain(root, { devices: diskXml('vda', path) })
  assert.equal(await ownerOf(path), theirs)
  process.kill(await pidOf(root, dom), 'SIGKILL')
  await shutOff(dom)
  await assertGivenBack(path, base.path)

  await dom.create()
  const pid = await pidOf(root, dom)
  await root.conn.close()
  await killerOf(t, pid)()
  assert.equal(await ownerOf(path), theirs)
  await reopen(root)
  await assertGivenBack(path, base.path)
  assertNothingRuns(root)
})

test('a process that takes a domain over gives back what an earlier one granted', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  await startPlain(root, { devices: diskXml('vda', path) })
  // nobody asks for labels any more
  await writeFile(join(folder, 'root/etc/qemu.json'), '{}')
  await reopen(root)
  const dom = await root.conn.domainLookupByName('guest')
  assert.equal(await ownerOf(base.path), theirs)
  await (
    await dom.stream('vda')
  ).finished
  await assertGivenBack(base.path)
  await dom.destroy()
  await assertGivenBack(path)
})

test('a start that fails leaves every owner as it was', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const missing = `<serial type='file'><source path='${join(folder, 'no-folder/log')}'/></serial>`
  await assert.rejects(
    startPlain(root, { devices: diskXml('vda', path) + missing }),
    virError('VIR_ERR_SYSTEM_ERROR', /no-folder/),
  )
  await assertGivenBack(path, base.path)
  const refused = `<qemu:commandline><qemu:arg value='-no-such-option'/></qemu:commandline>`
  await assert.rejects(
    startPlain(root, {
      name: 'refused',
      devices: diskXml('vda', path),
      attributes: "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
      extra: refused,
    }),
    virError('VIR_ERR_INTERNAL_ERROR', /no-such-option/),
  )
  await assertGivenBack(path, base.path)
})

test('two domains share a base, which goes back when the second one has ended', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const other = await overlay(folder, base.path, { name: 'other.qcow2' })
  const one = await startPlain(root, { name: 'one', devices: diskXml('vda', path) })
  const two = await startPlain(root, { name: 'two', devices: diskXml('vda', other) })
  await one.destroy()
  assert.deepEqual([await ownerOf(path), await ownerOf(base.path)], ['0:0', theirs])
  await two.destroy()
  await assertGivenBack(path, other, base.path)
})

test('settings that are wrong keep the root closed and say what is wrong', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  await mkdir(join(root.folder, 'root/etc'), { recursive: true })
  const settings = join(root.folder, 'root/etc/qemu.json')
  for (const [text, message] of [
    ['{', /is not JSON/],
    ['{"securty": []}', /there is no setting 'securty'/],
    [
      '{"security": ["smack"]}',
      /setting 'security' must be equal to one of the allowed values: dac, selinux, apparmor, not 'smack'$/,
    ],
    ['{"security": ["dac", "dac"]}', /setting 'security' must NOT have duplicate items/],
    ['{"user": "nobody"}', /setting 'user' needs 'dac' in 'security'/],
  ] as const) {
    await writeFile(settings, text)
    await assert.rejects(reopen(root), virError('VIR_ERR_CONF_SYNTAX', message))
  }
  await writeFile(settings, '{"security": ["dac"], "user": "nobody-of-this-name"}')
  await assert.rejects(reopen(root), virError('VIR_ERR_CONFIG_UNSUPPORTED', /'dac' cannot be used/))
  await writeFile(settings, '{"security": "none"}')
  await reopen(root)
})

test('locks come before labels and go after them, each while the process stands still or is gone', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs, user } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const said: string[] = []
  let lost = ''
  const lockManager: LockDriver = {
    name: 'witness',
    async acquire(owner, resources, state) {
      const [{ path, mode } = { path: '', mode: '' }] = resources
      const program = await readlink(`/proc/${owner.pid}/exe`)
      said.push(`${mode} ${basename(path)} of ${await ownerOf(path)}, ${program === process.execPath}, ${state ?? ''}`)
      return { owner, resources, data: mode, state: `for ${mode}` }
    },
    async release({ owner, resources }) {
      const [{ path } = { path: '' }] = resources
      const running = existsSync(`/proc/${owner.pid}/exe`) ? 'running' : 'gone'
      said.push(`released ${basename(path)} of ${await ownerOf(path)}, ${running}`)
      return undefined
    },
    inquire: ({ data }) => Promise.resolve(lost !== data),
  }

  await root.conn.close()
  root.conn = await Connect.open(root.uri, { lockManager })
  const dom = await startPlain(root, { devices: diskXml('vda', path) })
  const pid = await pidOf(root, dom)
  assert.match(await readlink(`/proc/${pid}/exe`), /qemu/)
  assert.match(await readFile(`/proc/${pid}/status`, 'utf8'), new RegExp(`^Uid:\\t${user.uid}\\t`, 'm'))
  const names = [basename(path), basename(base.path)]
  assert.deepEqual(said.splice(0), [`exclusive ${names[0]} of 0:0, true, `, `read-only ${names[1]} of 0:0, true, `])
  assert.equal(await ownerOf(path), theirs)
  await (
    await dom.stream('vda')
  ).finished
  assert.deepEqual(said.splice(0), [`released ${names[1]} of 0:0, running`])
  await root.conn.close()
  lost = 'exclusive'
  root.conn = await Connect.open(root.uri, { lockManager })
  assert.deepEqual(said.splice(0), [`exclusive ${names[0]} of ${theirs}, false, for exclusive`])
  await (await root.conn.domainLookupByName('guest')).destroy()
  assert.deepEqual(said.splice(0), [`released ${names[0]} of 0:0, gone`])
  await (await root.conn.domainLookupByName('guest')).create()
  assert.deepEqual(said.splice(0), [`exclusive ${names[0]} of 0:0, true, `])
})

test('an image that is locked elsewhere keeps the domain from starting, and nothing is changed', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder } = await dacRoot(t)
  const { base, path } = await privateImages(folder)
  const released: string[] = []
  const lockManager: LockDriver = {
    name: 'refuser',
    acquire(owner, resources) {
      if (resources[0]?.mode === 'read-only')
        return Promise.reject(new VirError('VIR_ERR_RESOURCE_BUSY', 'VIR_FROM_LOCKING', 'held by another'))
      return Promise.resolve({ owner, resources })
    },
    release({ resources }) {
      released.push(...resources.map((resource) => resource.path))
      return Promise.resolve(undefined)
    },
    inquire: () => Promise.resolve(true),
  }
  await root.conn.close()
  root.conn = await Connect.open(root.uri, { lockManager })
  await assert.rejects(
    startPlain(root, { devices: diskXml('vda', path) }),
    virError('VIR_ERR_RESOURCE_BUSY', /held by another/),
  )
  assert.deepEqual(released, [path])
  await assertGivenBack(path, base.path)
  assertNothingRuns(root)
})

test('when our process is killed in mid-stream the next one finishes it and gives everything back', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder, 16 * MiB)
  await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  await root.conn.close()
  const index = new URL('../../src/index.js', import.meta.url).href
  const script = `import { Connect } from '${index}'
    const conn = await Connect.open('${root.uri}')
    const dom = await conn.domainLookupByName('guest')
    await dom.create(1)
    await dom.stream('vda', { bandwidth: ${2 * MiB} })
    process.kill(process.pid, 'SIGKILL')`
  await assert.rejects(run(process.execPath, ['--input-type=module', '-e', script]), { reason: 'signal' })
  assert.deepEqual([await ownerOf(path), await ownerOf(base.path)], [theirs, theirs])
  root.conn = await Connect.open(root.uri)
  const dom = await root.conn.domainLookupByName('guest')
  const stream = await dom.attachStream('vda')
  await stream.setBandwidth(0)
  await stream.finished
  await assertGivenBack(base.path)
  await dom.destroy()
  await assertGivenBack(path)
  await checkImage(path)
})

test('when our process is killed while it starts a domain, at whatever point, the next one leaves no trace', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder } = await dacRoot(t)
  const { base, path } = await privateImages(folder, MiB)
  await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  await root.conn.close()
  const index = new URL('../../src/index.js', import.meta.url).href
  // dies at the Nth label (of the folder, the log, the disk, its base): before, while or after it is set
  const script = `import { Connect, securityDriver } from '${index}'
    const [at, when] = process.argv.slice(1)
    let count = 0
    const die = (now) => now === when && count === Number(at) && process.kill(process.pid, 'SIGKILL')
    const dac = await securityDriver('dac', JSON.parse(process.env.DAC))
    const fuse = { ...dac, setImageLabel: async (def, target, note) => {
      count++
      die('before')
      await dac.setImageLabel(def, target, (state) => { note(state); die('noted') })
      die('after')
    } }
    const conn = await Connect.open('${root.uri}', { security: [fuse] })
    await (await conn.domainLookupByName('guest')).create(1)`
  const { user } = JSON.parse(await readFile(join(folder, 'root/etc/qemu.json'), 'utf8')) as { user: string }
  const env = { ...process.env, DAC: JSON.stringify({ user }) }
  for (const [at, when] of [
    [1, 'after'],
    [2, 'noted'],
    [3, 'before'],
    [3, 'noted'],
    [4, 'noted'],
    [4, 'after'],
  ] as const) {
    const args = ['--input-type=module', '-e', script, String(at), when]
    await assert.rejects(run(process.execPath, args, { env }), { reason: 'signal' }, `${at} ${when}`)
    root.conn = await Connect.open(root.uri)
    await assertGivenBack(path, base.path)
    assertNothingRuns(root)
    await root.conn.close()
  }
})

test('a guest is saved and comes back as the other user, and the host says which models it has', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder, MiB)
  assert.match(await root.conn.getCapabilities(), /<secmodel>\s*<model>dac<\/model>\s*<doi>0<\/doi>\s*<\/secmodel>/)
  const dom = await startPlain(root, { devices: diskXml('vda', path) })
  const saved = join(folder, 'guest.save')
  await dom.save(saved)
  await assertGivenBack(path, base.path)
  assert.doesNotMatch(await readFile(saved, 'latin1'), /<seclabel/)
  await root.conn.domainRestore(saved)
  assert.equal(await ownerOf(path), theirs)
  await dom.destroy()
  await assertGivenBack(path, base.path)
})
