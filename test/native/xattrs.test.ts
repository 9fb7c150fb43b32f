import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { native } from '../../src/native.js'
import { errnoOf } from '../../src/error.js'

/** A file on a file system that has attributes; skips the test where neither the temporary directory nor ours has. */
function file(t: TestContext): string | undefined {
  for (const parent of [tmpdir(), process.cwd()]) {
    const directory = mkdtempSync(join(parent, 'virstream-xattr-'))
    t.after(() => rmSync(directory, { recursive: true, force: true }))
    const path = join(directory, 'file')
    writeFileSync(path, '')
    try {
      native.setxattr(path, 'user.probe', new Uint8Array(0))
      native.removexattr(path, 'user.probe')
      return path
    } catch (error) {
      if (errnoOf(error) !== 'ENOTSUP') throw error
    }
  }
  t.skip('needs a file system with user attributes')
  return undefined
}

test('an attribute is set, read, listed and removed', (t) => {
  const path = file(t)
  if (path === undefined) return
  assert.deepEqual(native.listxattr(path), [])
  assert.equal(native.getxattr(path, 'user.virstream.label'), undefined)
  const value = new Uint8Array([0, 1, 255, 0])
  native.setxattr(path, 'user.virstream.label', value)
  native.setxattr(path, 'user.virstream.empty', new Uint8Array(0))
  assert.deepEqual(native.getxattr(path, 'user.virstream.label'), value)
  assert.deepEqual(native.getxattr(path, 'user.virstream.empty'), new Uint8Array(0))
  assert.deepEqual(native.listxattr(path).sort(), ['user.virstream.empty', 'user.virstream.label'])
  native.setxattr(path, 'user.virstream.label', Buffer.from('another'))
  assert.equal(Buffer.from(native.getxattr(path, 'user.virstream.label') ?? []).toString(), 'another')
  native.removexattr(path, 'user.virstream.label')
  assert.deepEqual(native.listxattr(path), ['user.virstream.empty'])
  assert.throws(() => native.removexattr(path, 'user.virstream.label'), { code: 'ENODATA', syscall: 'lremovexattr' })
})

test('a part of a larger buffer is written as that part only', (t) => {
  const path = file(t)
  if (path === undefined) return
  native.setxattr(path, 'user.part', Buffer.from('abcdef').subarray(2, 4))
  assert.equal(Buffer.from(native.getxattr(path, 'user.part') ?? []).toString(), 'cd')
})

test('symbolic links are not followed', (t) => {
  const path = file(t)
  if (path === undefined) return
  native.setxattr(path, 'user.target', Buffer.from('x'))
  const link = `${path}-link`
  symlinkSync(path, link)
  assert.equal(native.listxattr(link).includes('user.target'), false)
  assert.throws(() => native.setxattr(link, 'user.other', Buffer.from('x')), { code: 'EPERM', path: link })
})

test('a missing file and a name outside the known spaces are errors', (t) => {
  const path = file(t)
  if (path === undefined) return
  const missing = `${path}-missing`
  assert.throws(() => native.getxattr(missing, 'user.a'), { code: 'ENOENT', syscall: 'lgetxattr', path: missing })
  assert.throws(() => native.setxattr(missing, 'user.a', new Uint8Array(0)), { code: 'ENOENT', syscall: 'lsetxattr' })
  assert.throws(() => native.removexattr(missing, 'user.a'), { code: 'ENOENT', syscall: 'lremovexattr' })
  assert.throws(() => native.listxattr(missing), { code: 'ENOENT', syscall: 'llistxattr', path: missing })
  assert.throws(() => native.setxattr(path, 'nonsense.a', new Uint8Array(0)), { code: 'ENOTSUP' })
  assert.throws(() => native.setxattr(path, 'user.a', 'text' as unknown as Uint8Array), TypeError)
})
