/** Everything works without privileges: the same way once more, by an ordinary user. */
import assert from 'node:assert/strict'
import { chmod, chown, mkdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { join } from 'node:path'
import { test } from 'node:test'
import { run } from '../../src/util/run.js'
import { assertNothingRuns, testRoot } from '../support/domain.js'
import { guestFiles } from '../support/guest.js'
import { backingOf, emptyImage, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024
/** 'nobody' on Debian and Ubuntu */
const USER = 65_534

const succeeds = ([program, ...args]: readonly [string, ...string[]]): Promise<boolean> =>
  run(program, args, { cwd: '/' }).then(
    () => true,
    () => false,
  )

test('an ordinary user defines, starts, streams and destroys, and may not read what is not theirs', async (t) => {
  if (!requires(t, 'root', 'program:setpriv', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  await guestFiles()
  const { folder, conn, ...root } = await testRoot(t)
  await conn.close()
  await chmod(folder, 0o755)
  const home = join(folder, 'home')
  await mkdir(home)
  const base = await patternImage(home, 32 * MiB)
  const path = await overlay(home, base.path)
  const secret = await emptyImage(folder, 'qcow2', MiB, 'secret.qcow2')
  await chmod(secret, 0o600)
  for (const owned of [home, base.path, path]) await chown(owned, USER, USER)

  const script = fileURLToPath(new URL('../support/user-way.js', import.meta.url))
  const privileges = [`--reuid=${USER}`, `--regid=${USER}`, '--clear-groups', '--inh-caps=-all', '--bounding-set=-all']
  const readable = ['setpriv', ...privileges, '--', process.execPath, '--check', script] as const
  if (!(await succeeds(readable))) {
    t.skip('needs a checkout that every user can read')
    return
  }
  const env = { PATH: process.env['PATH'], HOME: home, TMPDIR: home, LANG: 'C' }
  const args = [...privileges, '--', process.execPath, script, home, path, secret]
  const { stdout } = await run('setpriv', args, { timeout: 120_000, env, cwd: '/' })
  assert.equal(stdout.trim(), 'done')
  assert.equal(await backingOf(path), undefined)
  assertNothingRuns({ folder: home, conn, ...root })
})
