/** Roots whose QEMUs run as another user than we are. Needs root. */
import assert from 'node:assert/strict'
import { chmod, mkdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { native } from '../../src/native.js'
import { run } from '../../src/util/run.js'
import { reopen, testRoot } from './domain.js'
import { overlay, patternImage } from './images.js'

const MiB = 1024 * 1024

/** libvirt's user where the host has it, else one that every host has. */
export async function otherUser(): Promise<{ name: string; uid: number; gid: number }> {
  for (const name of ['libvirt-qemu', 'nobody']) {
    const found = await run('getent', ['passwd', name]).catch(() => undefined)
    const [, , uid, gid] = found?.stdout.split(':') ?? []
    if (uid !== undefined && gid !== undefined) return { name, uid: Number(uid), gid: Number(gid) }
  }
  throw new Error("the host has neither a user 'libvirt-qemu' nor 'nobody'")
}

/** A root whose QEMUs run as another user, in a folder that he may enter. */
export async function dacRoot(t: TestContext) {
  const user = await otherUser()
  const root = await testRoot(t)
  await chmod(root.folder, 0o755)
  await mkdir(join(root.folder, 'root/etc'), { recursive: true })
  await writeFile(join(root.folder, 'root/etc/qemu.json'), JSON.stringify({ security: ['dac'], user: user.name }))
  await reopen(root)
  return { ...root, root, user, theirs: `${user.uid}:${user.gid}` }
}

/** An overlay on a base, both readable by root only. */
export async function privateImages(folder: string, size = 32 * MiB) {
  const base = await patternImage(folder, size)
  const path = await overlay(folder, base.path)
  await Promise.all([chmod(base.path, 0o600), chmod(path, 0o600)])
  return { base, path }
}

export async function ownerOf(path: string): Promise<string> {
  const { uid, gid } = await stat(path)
  return `${uid}:${gid}`
}

const rememberedOn = (path: string): string[] =>
  native.listxattr(path).filter((name) => name.startsWith('trusted.libvirt.'))

export async function assertGivenBack(...paths: string[]): Promise<void> {
  for (const path of paths) assert.deepEqual([path, await ownerOf(path), ...rememberedOn(path)], [path, '0:0'])
}
