import assert from 'node:assert/strict'
import { closeSync, mkdtempSync, openSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { native, type ProcessExit, type SpawnOptions } from '../../src/native.js'

/** A directory that goes when the test ends. */
export function scratch(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'virstream-native-'))
  t.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** Descriptors that this process has open. */
export function openFds(): number {
  return readdirSync('/proc/self/fd').length
}

/** Handles are closed at the end of a turn of the event loop, and those of a worker some time after it. */
export async function assertNoMoreFds(than: number): Promise<void> {
  for (let tries = 0; tries < 500 && openFds() > than; tries++) await delay(10)
  assert.ok(openFds() <= than, `${openFds()} descriptors, not ${than}`)
}

export function exitOf(pid: number): Promise<ProcessExit> {
  return new Promise((resolve) => native.watchProcess(pid, resolve))
}

/** Runs a program to its end, with standard output and error in a file, and answers what it wrote. */
export async function run(
  t: TestContext,
  file: string,
  args: string[],
  options: Partial<SpawnOptions> = {},
): Promise<ProcessExit & { output: string }> {
  const path = join(scratch(t), 'output')
  const output = openSync(path, 'w')
  const input = openSync('/dev/null', 'r')
  const { fds = [], ...rest } = options
  try {
    const pid = native.spawn({
      file,
      args: [file, ...args],
      env: { PATH: '/usr/bin:/bin:/usr/sbin:/sbin' },
      fds: [{ source: input, target: 0 }, { source: output, target: 1 }, { source: output, target: 2 }, ...fds],
      ...rest,
    })
    const exit = await exitOf(pid)
    return { ...exit, output: readFileSync(path, 'utf8') }
  } finally {
    closeSync(output)
    closeSync(input)
  }
}

export const sh = '/bin/sh'
export const standardFds = [0, 1, 2].map((fd) => ({ source: fd, target: fd }))
