import { randomUUID } from 'node:crypto'
import { after, before } from 'node:test'
import { Connect } from '../../src/index.js'
import { mayUnshare, startLibvirtd } from '../support/libvirtd.js'
import type { Libvirtd } from '../support/libvirtd.js'
import { overlay, patternImage, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { driverSuite } from './suite.js'

const MiB = 1024 * 1024

let daemon: { folder: string; libvirtd: Libvirtd } | undefined
const ends: (() => unknown)[] = []

before(async () => {
  if (process.getuid?.() !== 0 || !(await mayUnshare())) return
  const t = { after: (end: () => unknown) => void ends.unshift(end) }
  const folder = await temporaryFolder(t)
  daemon = { folder, libvirtd: await startLibvirtd(t, folder, '') }
})

after(async () => {
  for (const end of ends) await end()
})

/** Real libvirt with real QEMU, as the `qemu` driver is tested: what both do is what libvirt does. */
driverSuite('ffi', false, async (t) => {
  if (!requires(t, 'root', 'program:libvirtd', 'program:qemu-system-x86_64', 'program:qemu-img')) return undefined
  if (daemon === undefined) {
    t.skip('needs mount namespaces')
    return undefined
  }
  const { folder, libvirtd } = daemon
  const conn = await Connect.open(libvirtd.uri)
  t.after(async () => {
    for (const dom of await conn.listAllDomains()) {
      if (await dom.isActive()) await dom.destroy()
      if (await dom.isPersistent().catch(() => false)) await dom.undefine(1)
    }
    await conn.close()
  })
  const thinDisk = async (name: string): Promise<string> => {
    const base = await patternImage(folder, 16 * MiB)
    const path = await overlay(folder, base.path, { name: `${name}.qcow2` })
    return `<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>`
  }
  return {
    conn,
    // QEMU's own words about how libvirt starts and ends it
    alsoTold: [
      ['4/0', '2/0'],
      ['6/2', '5/1'],
    ],
    newDomainXml: async (disks = 'none') => {
      const uuid = randomUUID()
      return `<domain type='qemu'>
  <name>domain-${uuid.slice(0, 8)}</name>
  <uuid>${uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    ${disks === 'thin' ? await thinDisk(uuid) : ''}
    <console type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>`
    },
  }
})
