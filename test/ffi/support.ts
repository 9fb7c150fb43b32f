/** What the tests of real libvirt share. */
import type { TestContext } from 'node:test'
import koffi from 'koffi'
import { mayUnshare, startLibvirtd } from '../support/libvirtd.js'
import type { Libvirtd } from '../support/libvirtd.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'

/** Skips the test where libvirt's library is not installed. */
export function libvirtIsThere(t: TestContext): boolean {
  try {
    koffi.load('libvirt.so.0')
    return true
  } catch (error) {
    if (process.env['VIRSTREAM_REQUIRE'] === 'all') throw error
    t.skip("needs libvirt's library libvirt.so.0")
    return false
  }
}

/** A libvirtd of the test's own; undefined, and the test is skipped, where there can be none. */
export async function daemonFor(t: TestContext): Promise<(Libvirtd & { folder: string }) | undefined> {
  if (!requires(t, 'root', 'program:libvirtd', 'program:qemu-system-x86_64', 'program:qemu-img')) return undefined
  if (!(await mayUnshare())) {
    t.skip('needs mount namespaces')
    return undefined
  }
  const folder = await temporaryFolder(t)
  return { folder, ...(await startLibvirtd(t, folder, '')) }
}

/** URI of libvirt's test driver in the daemon. */
export function testUri(daemon: Libvirtd, path = '/default'): string {
  return daemon.uri.replace('qemu+unix:///system', `test+unix://${path}`)
}
