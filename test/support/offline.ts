/** Storage daemons that stream without a guest, as a test finds them. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Domain } from '../../src/index.js'
import { processesOf, type TestRoot } from './domain.js'

export const offlineDir = (root: TestRoot): string => join(root.folder, 'root/run/offline')

/** The storage daemon that streams; there is one. */
export function daemonPid(root: TestRoot): number {
  const files = readdirSync(offlineDir(root)).flatMap((name) =>
    ['pid', 'qemu/pid'].map((file) => join(offlineDir(root), name, file)),
  )
  const file = files.find((path) => existsSync(path))
  assert.ok(file !== undefined, 'a daemon runs')
  return Number(readFileSync(file, 'utf8'))
}

export function assertNoDaemon(root: TestRoot, others: readonly (number | undefined)[] = []): void {
  assert.deepEqual(
    processesOf(root.folder).filter((pid) => !others.includes(pid)),
    [],
  )
  assert.deepEqual(readdirSync(offlineDir(root)), [])
}

export const offsetOf = async (dom: Domain): Promise<number> => (await dom.streamDiskInfo())[0]?.offset ?? -1
