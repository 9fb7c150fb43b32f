/** The driver's state of a root with nothing in it, for parts of the driver whose QEMU is scripted. */
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { pino } from 'pino'
import { CapabilitiesCache } from '../../src/machine/capabilities-cache.js'
import { Transports } from '../../src/migration/transports.js'
import { Qemu } from '../../src/qemu/core/qemu.js'
import { Root } from '../../src/qemu/core/root.js'
import { SecurityStack } from '../../src/security/security-stack.js'
import { temporaryFolder } from '../support/images.js'

/** `emitted`: what listeners would have heard. */
export async function bareQemu(t: TestContext): Promise<{ qemu: Qemu; emitted: { kind: string }[] }> {
  const root = Root.open(join(await temporaryFolder(t), 'root'))
  t.after(() => root.release())
  const emitted: { kind: string }[] = []
  const host = {
    logger: pino({ level: 'silent' }),
    emit: (event: { kind: string }) => void emitted.push(event),
    readOnly: false,
  }
  const migrations = {
    beforeStart: () => Promise.resolve(),
    diskPulled: () => Promise.resolve(),
    guestEnded: () => undefined,
    daemonDied: () => undefined,
  }
  const capabilities = new CapabilitiesCache({ cacheDir: root.cacheDir, nvramDir: root.nvramDir })
  const access = { security: new SecurityStack([], () => undefined), locks: undefined }
  return { qemu: new Qemu(host, root, capabilities, access, new Transports(), () => migrations), emitted }
}
