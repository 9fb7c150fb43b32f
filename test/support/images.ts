/** Images for tests, in a folder that is removed when the test ends. */
import { statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { run } from '../../src/util/run.js'
import { writePattern } from './pattern.js'

/** What of `TestContext` is needed; `{ after }` of node:test serves a whole file. */
export type Cleanup = Pick<TestContext, 'after'>

/** A fresh folder, removed after the test. VIRSTREAM_TEST_DIR says where, default the system's temporary folder. */
export async function temporaryFolder(t: Cleanup): Promise<string> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-test-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}

export interface PatternImage {
  path: string
  seed: number
  /** bytes */
  size: number
}

/** A raw base image with the pattern of `seed`. */
export async function patternImage(folder: string, size = 64 * 1024 * 1024, seed = 7): Promise<PatternImage> {
  const path = join(folder, `base-${seed}.raw`)
  await writePattern(path, seed, size)
  return { path, seed, size }
}

export interface OverlayOptions {
  format?: 'qcow2' | 'qed'
  backingFormat?: string
  /** bytes; default: as the base image */
  size?: number
  name?: string
}

/** A thin overlay by qemu-img; `base` is a path or what else QEMU takes as a backing file. */
export async function overlay(folder: string, base: string, options: OverlayOptions = {}): Promise<string> {
  const { format = 'qcow2', backingFormat = 'raw', size, name = `overlay.${format}` } = options
  const path = join(folder, name)
  const args = ['create', '-q', '-f', format, '-b', base, '-F', backingFormat, path]
  await run('qemu-img', size === undefined ? args : [...args, String(size)])
  return path
}

/** An empty image of any format that qemu-img makes. */
export async function emptyImage(
  folder: string,
  format: string,
  size: number,
  name = `image.${format}`,
): Promise<string> {
  const path = join(folder, name)
  await run('qemu-img', ['create', '-q', '-f', format, path, String(size)])
  return path
}

/** What the header of an image says of its backing image; undefined: it has none. The image may be in use. */
export async function backingOf(path: string): Promise<string | undefined> {
  const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', path])
  return (JSON.parse(stdout) as { 'backing-filename'?: string })['backing-filename']
}

/** Fails when qemu-img finds anything wrong with the image, leaks included. */
export async function checkImage(path: string, format = 'qcow2'): Promise<void> {
  await run('qemu-img', ['check', '-q', '-f', format, path])
}

/** Bytes that a file takes up, whatever of its metadata is still in QEMU's caches. */
export const bytesOnDisk = (path: string): number => statSync(path).blocks * 512

/** Bytes that the topmost image of a chain holds itself, as its metadata on disk says. The image may be in use. */
export async function ownBytes(path: string): Promise<number> {
  const { stdout } = await run('qemu-img', ['map', '-U', '--output=json', path])
  const extents = JSON.parse(stdout) as { length: number; depth: number; present?: boolean }[]
  return extents.reduce((sum, { length, depth, present }) => (depth === 0 && present !== false ? sum + length : sum), 0)
}
