import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { TestContext } from 'node:test'

/** What a test may need of the machine that it runs on. */
export type Requirement =
  'root' | 'kvm' | 'selinux' | 'apparmor' | `program:${string}` | `file:${string}` | `env:${string}`

/** What no machine of ours is sure to have: these may be skipped even where nothing else may. */
const optional: readonly Requirement[] = ['root', 'kvm', 'selinux', 'apparmor', 'env:LIBVIRT_SOURCE']

function isAccessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return true
  } catch {
    return false
  }
}

/** The absolute path of a program on PATH (or in the sbin directories, which a user's PATH may lack). */
export function findProgram(name: string): string | undefined {
  const directories = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin']
  return directories.map((directory) => join(directory, name)).find((path) => isAccessible(path, constants.X_OK))
}

function isSelinuxOn(): boolean {
  return existsSync('/sys/fs/selinux/enforce')
}

function isApparmorOn(): boolean {
  const parameter = '/sys/module/apparmor/parameters/enabled'
  return existsSync(parameter) && readFileSync(parameter, 'utf8').startsWith('Y')
}

function lacks(what: Requirement): string | undefined {
  const rest = what.slice(what.indexOf(':') + 1)
  if (what === 'root') return process.getuid?.() === 0 ? undefined : 'needs to run as root'
  if (what === 'kvm') return isAccessible('/dev/kvm', constants.R_OK | constants.W_OK) ? undefined : 'needs /dev/kvm'
  if (what === 'selinux') return isSelinuxOn() ? undefined : 'needs a kernel with SELinux on'
  if (what === 'apparmor') return isApparmorOn() ? undefined : 'needs a kernel with AppArmor on'
  if (what.startsWith('program:')) return findProgram(rest) === undefined ? `needs the program ${rest}` : undefined
  if (what.startsWith('file:')) return existsSync(rest) ? undefined : `needs the file ${rest}`
  return process.env[rest] === undefined ? `needs the environment variable ${rest}` : undefined
}

/**
 * Whether the machine has all of `what`; otherwise skips the test, which then must return: `if (!requires(t, 'root')) return`.
 * With VIRSTREAM_REQUIRE=all in the environment (as under CI) a missing thing fails the test instead, unless it is one
 * that CI need not have.
 */
export function requires(t: TestContext, ...what: Requirement[]): boolean {
  for (const one of what) {
    const lacking = lacks(one)
    if (lacking === undefined) continue
    if (process.env['VIRSTREAM_REQUIRE'] === 'all' && !optional.includes(one)) {
      throw new Error(`this test ${lacking}, and no test may be skipped for that here`)
    }
    t.skip(lacking)
    return false
  }
  return true
}
