import assert from 'node:assert/strict'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { makeFolder } from '../../src/util/folders.js'

test('a folder is made with all above it, private, and may be there already', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'virstream-folders-'))
  t.after(() => rm(folder, { recursive: true }))
  const path = join(folder, 'a/b/c')
  makeFolder(path)
  makeFolder(path)
  assert.equal((await stat(join(folder, 'a/b'))).mode & 0o777, 0o700)
  await writeFile(join(folder, 'file'), '')
  assert.throws(() => makeFolder(join(folder, 'file')), { code: 'EEXIST' })
  assert.throws(() => makeFolder(join(folder, 'file/below')), { code: 'ENOTDIR' })
})

test('where nothing can be made that is an error', () => {
  assert.throws(() => makeFolder('/proc/nothing/here'), { code: 'ENOENT' })
})
