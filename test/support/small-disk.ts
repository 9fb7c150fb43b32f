/** A file system that is soon full. Needs root. */
import { mkdtemp, rmdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../src/util/run.js'
import type { Cleanup } from './images.js'

/** `size` as mount takes it: '12M'; `grow` makes room. */
export async function smallDisk(t: Cleanup, size: string): Promise<{ path: string; grow: () => Promise<unknown> }> {
  const path = await mkdtemp(join(tmpdir(), 'virstream-small-'))
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'virstream-test', path])
  t.after(async () => {
    await run('umount', ['-l', path])
    await rmdir(path)
  })
  return { path, grow: () => run('mount', ['-o', 'remount,size=100%', path]) }
}
