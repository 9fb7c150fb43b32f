import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmod, link, mkdir, open, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import type { TestContext } from 'node:test'
import type { StorageSource } from '../../src/conf/domain-def.js'
import { resolveBackingChain } from '../../src/storage/chain.js'
import { run } from '../../src/util/run.js'
import { emptyImage, overlay, temporaryFolder } from '../support/images.js'
import { startNbdkit, startQemuNbd } from '../support/nbd-server.js'
import { findProgram, requires } from '../support/requires.js'

const MiB = 1024 * 1024

function image(path: string, format = 'qcow2'): StorageSource {
  return { type: 'file', path, format }
}

/** [what, format] from the top down */
function shape(source: StorageSource): string[] {
  const list: string[] = []
  for (let one: StorageSource | null | undefined = source; one; one = one.backingStore) {
    const name = one.type === 'network' ? `${one.protocol} ${one.name ?? ''}` : `${one.type} ${one.path}`
    list.push(`${name} ${one.format ?? ''}`)
    if (one.backingStore === undefined) list.push('open end')
  }
  return list
}

/** Points the header of a qcow2 image to what qemu-img would refuse. */
async function rename(path: string, backing: string, format = 'qcow2'): Promise<void> {
  await run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', backing, '-F', format, path])
}

test('a chain of qcow2 and QED images over a raw one is followed to its end', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const raw = await emptyImage(folder, 'raw', MiB, 'base')
  const qed = await overlay(folder, raw, { format: 'qed' })
  const middle = await overlay(folder, 'overlay.qed', { backingFormat: 'qed', name: 'middle' })
  await mkdir(join(folder, 'sub'))
  const top = await overlay(join(folder, 'sub'), '../middle', { backingFormat: 'qcow2', name: 'top' })
  const source = image(top)
  await resolveBackingChain(source)
  assert.deepEqual(shape(source), [
    `file ${top} qcow2`,
    `file ${folder}/sub/../middle qcow2`,
    `file ${folder}/sub/../overlay.qed qed`,
    `file ${raw} raw`,
  ])
  assert.ok(middle.endsWith('/middle') && qed.endsWith('/overlay.qed'))
})

test('a raw image is taken for raw, whatever it looks like', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB)
  const evil = await overlay(folder, base, { name: 'evil' })
  const source = image(evil, 'raw')
  await resolveBackingChain(source)
  assert.equal(source.backingStore, null)

  const above = await overlay(folder, evil, { backingFormat: 'raw', name: 'above' })
  const top = image(above)
  await resolveBackingChain(top)
  assert.deepEqual(shape(top), [`file ${above} qcow2`, `file ${evil} raw`])
})

test('what the XML says about the chain is taken as it is', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base')
  const other = await emptyImage(folder, 'raw', MiB, 'other')
  const path = await overlay(folder, base)
  const ended: StorageSource = { ...image(path), backingStore: null }
  await resolveBackingChain(ended)
  assert.equal(ended.backingStore, null)

  const given: StorageSource = { ...image(path), backingStore: image(other, 'raw') }
  await resolveBackingChain(given)
  assert.deepEqual(shape(given), [`file ${path} qcow2`, `file ${other} raw`])

  const formless: StorageSource = { ...image(path), backingStore: { type: 'file', path: other } }
  await assert.rejects(resolveBackingChain(formless), { code: 'VIR_ERR_OPERATION_INVALID' })
})

test('a header that names a backing image without its format is refused, and says what to do', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'qcow2', MiB, 'base')
  const top = await overlay(folder, base, { format: 'qed', backingFormat: 'qcow2' })
  const source = image(top, 'qed')
  await assert.rejects(resolveBackingChain(source), {
    code: 'VIR_ERR_OPERATION_INVALID',
    message: new RegExp(`^format of backing image '${base}' of image '${top}' was not specified.*<backingStore>`),
  })
  assert.equal(source.backingStore, undefined)
})

test('chains that loop are found, whatever the names', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'qcow2', MiB, 'base')
  const a = await overlay(folder, base, { backingFormat: 'qcow2', name: 'a' })
  const b = await overlay(folder, a, { backingFormat: 'qcow2', name: 'b' })
  await symlink(b, join(folder, 'symbolic'))
  await link(b, join(folder, 'hard'))
  for (const name of [b, 'symbolic', 'hard', './b', 'file:b']) {
    await rename(a, name)
    const source = image(b)
    const expected = {
      code: 'VIR_ERR_INTERNAL_ERROR',
      message: /^backing chain of '.*\/b' loops: '.*' is in it twice$/,
    }
    await assert.rejects(resolveBackingChain(source), expected, name)
    assert.equal(source.backingStore, undefined)
  }
  await rename(a, 'a')
  await assert.rejects(resolveBackingChain(image(a)), /loops/)
})

test('a chain is followed so far and no farther', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  let path = await emptyImage(folder, 'raw', MiB, '0')
  for (let i = 1; i <= 4; i++) {
    path = await overlay(folder, path, { name: String(i), backingFormat: i === 1 ? 'raw' : 'qcow2' })
  }
  await resolveBackingChain(image(path), { maxDepth: 5 })
  const error = { code: 'VIR_ERR_INTERNAL_ERROR', message: /has more than 4 images/ }
  await assert.rejects(resolveBackingChain(image(path), { maxDepth: 4 }), error)
})

test('missing images are named, with the image that needs them', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const missing = join(folder, 'missing')
  await assert.rejects(resolveBackingChain(image(missing)), {
    code: 'VIR_ERR_SYSTEM_ERROR',
    message: `Cannot access storage file '${missing}': No such file or directory`,
  })
  const top = await overlay(folder, await emptyImage(folder, 'raw', MiB))
  await rename(top, missing, 'raw')
  await assert.rejects(resolveBackingChain(image(top)), {
    code: 'VIR_ERR_SYSTEM_ERROR',
    message: `Cannot access backing file '${missing}' of storage file '${top}': No such file or directory`,
  })
})

test('an image that we may not read is refused', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const path = await emptyImage(folder, 'qcow2', MiB)
  await chmod(path, 0)
  if (process.getuid?.() === 0) {
    // root may read everything: ask as somebody else
    await chmod(folder, 0o755)
    const setpriv = findProgram('setpriv')
    if (setpriv === undefined || !requires(t, 'program:setpriv')) return
    const module = new URL('../../src/storage/chain.js', import.meta.url).href
    const script = `import(${JSON.stringify(module)}).then((m) => m.resolveBackingChain(${JSON.stringify(image(path))})).then(
      () => console.log('resolved'), (error) => console.log(error.code, error.message))`
    const args = ['--reuid=65534', '--regid=65534', '--clear-groups', process.execPath, '-e', script]
    const said = execFileSync(setpriv, args, { encoding: 'utf8' })
    assert.equal(said, `VIR_ERR_SYSTEM_ERROR Cannot access storage file '${path}': Permission denied\n`)
    return
  }
  await assert.rejects(resolveBackingChain(image(path)), {
    code: 'VIR_ERR_SYSTEM_ERROR',
    message: /Permission denied$/,
  })
})

async function listen(t: TestContext, path: string): Promise<void> {
  const server = createServer()
  t.after(() => server.close())
  await new Promise<void>((resolve) => server.listen(path, resolve))
}

test('what is no image is not even opened', { timeout: 20_000 }, async (t) => {
  const folder = await temporaryFolder(t)
  const fifo = join(folder, 'fifo')
  execFileSync('mkfifo', [fifo])
  const socket = join(folder, 'socket')
  await listen(t, socket)
  const cases: [path: string, what: string][] = [
    [folder, 'a directory'],
    [fifo, 'a pipe'],
    [socket, 'a socket'],
    ['/dev/zero', 'a character device'],
  ]
  for (const [path, what] of cases) {
    for (const format of ['raw', 'qcow2']) {
      await assert.rejects(resolveBackingChain(image(path, format)), {
        code: 'VIR_ERR_CONFIG_UNSUPPORTED',
        message: `'${path}' is ${what}, not an image`,
      })
    }
  }
})

test('an image of another format than declared is refused, by name', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  for (const format of ['vmdk', 'vdi', 'vhdx', 'qed']) {
    const path = await emptyImage(folder, format, MiB)
    await assert.rejects(resolveBackingChain(image(path)), {
      code: 'VIR_ERR_INTERNAL_ERROR',
      message: `image '${path}' is declared as 'qcow2' but is '${format}'`,
    })
    await resolveBackingChain(image(path, format))
  }
  const text = join(folder, 'text')
  await writeFile(text, 'x'.repeat(5000))
  await assert.rejects(resolveBackingChain(image(text)), /is declared as 'qcow2' but has no such header$/)
  await assert.rejects(resolveBackingChain(image(text, 'vdi')), /is declared as 'vdi' but has no such header$/)
  const empty = join(folder, 'empty')
  await writeFile(empty, '')
  await assert.rejects(resolveBackingChain(image(empty, 'qed')), /is declared as 'qed' but has no such header$/)
})

test('an image whose data lie in another file is refused', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const path = join(folder, 'image')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', `data_file=${folder}/data`, path, '1M'])
  const error = { code: 'VIR_ERR_CONFIG_UNSUPPORTED', message: /external data files are not supported/ }
  await assert.rejects(resolveBackingChain(image(path)), error)
})

test('a base behind NBD is followed: raw ends the chain unasked, qcow2 is asked for', async (t) => {
  if (!requires(t, 'program:qemu-img', 'program:qemu-nbd')) return
  const folder = await temporaryFolder(t)
  const raw = await emptyImage(folder, 'raw', MiB, 'raw')
  const served = await overlay(folder, raw, { name: 'served' })
  const server = await startQemuNbd(t, { image: served, format: 'raw', export: 'an export', socket: join(folder, 's') })
  const top = await overlay(folder, server.uri, { backingFormat: 'qcow2', name: 'top' })
  const source = image(top)
  await resolveBackingChain(source)
  assert.deepEqual(shape(source), [`file ${top} qcow2`, 'nbd an export qcow2', `file ${raw} raw`])

  await rename(top, server.uri, 'raw')
  const ending = image(top)
  await resolveBackingChain(ending)
  assert.deepEqual(shape(ending), [`file ${top} qcow2`, 'nbd an export raw'])

  await rename(top, server.uri, 'qed')
  const error = {
    code: 'VIR_ERR_INTERNAL_ERROR',
    message: /^image 'nbd\+unix:.*' is declared as 'qed' but has no such header$/,
  }
  await assert.rejects(resolveBackingChain(image(top)), error)

  await server.kill()
  await rename(top, server.uri, 'qcow2')
  await assert.rejects(resolveBackingChain(image(top)), {
    code: 'VIR_ERR_OPERATION_FAILED',
    message:
      /^cannot read image 'nbd\+unix:\/\/\/an%20export\?socket=.*': Failed to connect to .*(refused|No such file)/,
  })
})

test('a server that takes the connection and says nothing does not hold us up for longer than was said', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const socket = join(folder, 's')
  await listen(t, socket)
  const source: StorageSource = {
    ...{ type: 'network', protocol: 'nbd', hosts: [{ transport: 'unix', socket }] },
    format: 'qcow2',
  }
  const error = { code: 'VIR_ERR_OPERATION_TIMEOUT', message: /did not answer in time$/ }
  await assert.rejects(resolveBackingChain(source, { timeout: 300 }), error)
  await assert.rejects(resolveBackingChain(source, { signal: AbortSignal.timeout(100) }), {
    code: 'VIR_ERR_OPERATION_ABORTED',
  })
})

test('an image behind TCP, served by nbdkit from inside a file, is read', async (t) => {
  if (!requires(t, 'program:qemu-img', 'program:nbdkit')) return
  const folder = await temporaryFolder(t)
  const path = await emptyImage(folder, 'qcow2', 3 * MiB)
  const server = await startNbdkit(t, { plugin: ['file', path] })
  const source: StorageSource = { ...server.source, format: 'qcow2' }
  await resolveBackingChain(source)
  assert.equal(source.backingStore, null)
})

test('images inside a slice of a file are found there', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base')
  const inner = await overlay(folder, base, { name: 'inner' })
  const outer = join(folder, 'outer')
  execFileSync('dd', [`if=${inner}`, `of=${outer}`, 'bs=64k', 'seek=1', 'status=none'])
  const file = await open(outer)
  const size = (await file.stat()).size - 65536
  await file.close()
  const source: StorageSource = { ...image(outer), slice: { offset: 65536, size } }
  await resolveBackingChain(source)
  assert.deepEqual(shape(source), [`file ${outer} qcow2`, `file ${base} raw`])
})
