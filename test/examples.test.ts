import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Connect } from '../src/index.js'
import { run } from '../src/util/run.js'
import { diskXml, plainXml, processesOf } from './support/domain.js'
import { overlay, patternImage, temporaryFolder } from './support/images.js'
import { requires } from './support/requires.js'

const repository = fileURLToPath(new URL('../..', import.meta.url))
const MiB = 1024 * 1024

function example(name: string, ...args: string[]): Promise<{ stdout: string; stderr: string }> {
  return run(process.execPath, [join(repository, 'dist/examples', `${name}.js`), ...args])
}

test('each example is under 40 lines and imports the package by its name', () => {
  const folder = join(repository, 'examples')
  const names = readdirSync(folder).filter((name) => name.endsWith('.ts'))
  assert.ok(names.length >= 3)
  for (const name of names) {
    const text = readFileSync(join(folder, name), 'utf8')
    assert.ok(text.trimEnd().split('\n').length < 40, name)
    assert.match(text, /from 'virstream'/)
    assert.doesNotMatch(text, /from '\.\.?\//)
  }
})

test('an example without arguments says how it is used', async () => {
  for (const name of [
    'stream-a-disk',
    'watch-events',
    'start-from-template',
    'security-driver',
    'lock-driver',
    'transport',
  ])
    await assert.rejects(example(name), new RegExp(`usage: ${name} URI`))
})

test('stream-a-disk streams a disk to its end', async () => {
  const { stdout } = await example('stream-a-disk', 'test:///default', 'test', 'vda')
  assert.match(stdout, /vda: 100\.0 %\nvda needs no backing image any more\n$/)
  await assert.rejects(example('stream-a-disk', 'test:///default', 'test', 'sda'), /VIR_ERR_OPERATION_INVALID/)
})

test('watch-events ends when its time is over', async () => {
  const { stdout } = await example('watch-events', 'test:///default', '1')
  assert.equal(stdout, 'watching test\n')
})

test('start-from-template starts a domain on a thin image and makes it whole, on real QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const { path } = await patternImage(folder, 16 * MiB)
  const image = join(folder, 'guest.qcow2')
  t.after(() => {
    for (const pid of processesOf(folder)) process.kill(pid, 'SIGKILL')
  })
  const { stdout } = await example('start-from-template', uri, 'guest', path, image)
  assert.match(stdout, /^guest runs after \d+ ms\n.*guest\.qcow2 holds all of the template after \d+ ms\n$/)
  await using conn = await Connect.open(uri)
  const domain = await conn.domainLookupByName('guest')
  assert.equal(await domain.isActive(), true)
  await domain.destroy()
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', path, image])
})

test('security-driver says what QEMU gets and takes back, and refuses images from elsewhere, on real QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const { path: base } = await patternImage(folder, 4 * MiB)
  const image = await overlay(folder, base)
  {
    await using conn = await Connect.open(uri)
    await conn.domainDefineXML(plainXml({ name: 'fenced', devices: diskXml('vda', image) }))
  }
  const { stdout } = await example('security-driver', uri, 'fenced', folder)
  const lines = stdout.trimEnd().split('\n')
  const images = lines.filter((line) => /gets (disk|backing)/.test(line))
  assert.deepEqual(images, [`fenced gets disk ${image}`, `fenced gets backing ${base}, read-only`])
  const [newest, oldest] = lines.slice(-2)
  assert.ok(newest?.startsWith(`fenced had ${base} since 20`), newest)
  assert.ok(oldest?.startsWith(`fenced had ${image} since 20`), oldest)
  await assert.rejects(example('security-driver', uri, 'fenced', join(folder, 'root')), /VIR_ERR_OPERATION_DENIED/)
  assert.deepEqual(processesOf(folder), [])
})

test('lock-driver starts what shares no image, and says who has the one of the others, on real QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const { path: base } = await patternImage(folder, 4 * MiB)
  const [image, other] = [await overlay(folder, base), await overlay(folder, base, { name: 'other.qcow2' })]
  {
    await using conn = await Connect.open(uri)
    await conn.domainDefineXML(plainXml({ name: 'a', devices: diskXml('vda', image) }))
    await conn.domainDefineXML(plainXml({ name: 'b', devices: diskXml('vda', image) }))
    await conn.domainDefineXML(plainXml({ name: 'c', devices: diskXml('vda', other) }))
  }
  const { stdout } = await example('lock-driver', uri, 'a', 'b', 'c')
  assert.equal(stdout, `a runs\nb does not: 'a' has ${image}\nc runs\n${other} is free\n${image} is free\n`)
  assert.deepEqual(processesOf(folder), [])
})

test('transport moves a domain by gzip, and its memory is shorter on the link, on real QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const folder = await temporaryFolder(t)
  const [uri, destination] = ['here', 'there'].map((name) => `qemu:///embed?root=${join(folder, name)}`)
  t.after(() => {
    for (const pid of processesOf(folder)) process.kill(pid, 'SIGKILL')
  })
  {
    await using conn = await Connect.open(uri ?? '')
    const dom = await conn.domainDefineXML(plainXml({ name: 'wanderer', devices: '' }))
    await dom.create()
  }
  const { stdout } = await example('transport', uri ?? '', 'wanderer', destination ?? '')
  const [, memory, onLink] = /^wanderer runs at .*\n(\d+) bytes of memory were (\d+) on the link\n$/.exec(stdout) ?? []
  assert.ok(Number(onLink) > 0 && Number(onLink) < Number(memory), stdout)
})
