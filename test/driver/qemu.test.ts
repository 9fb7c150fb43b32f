import { randomUUID } from 'node:crypto'
import { testRoot } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { driverSuite } from './suite.js'

const MiB = 1024 * 1024

/** Real QEMU, emulated CPU, no guest: a domain without a disk to boot from needs no kernel. */
driverSuite('qemu', false, async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return undefined
  const root = await testRoot(t)
  let count = 0
  const thinDisk = async (name: string): Promise<string> => {
    const base = await patternImage(root.folder, 16 * MiB)
    const path = await overlay(root.folder, base.path, { name: `${name}.qcow2` })
    return `<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>`
  }
  return {
    conn: root.conn,
    newDomainXml: async (disks = 'none') => {
      count += 1
      const name = `domain${count}`
      return `<domain type='qemu'>
  <name>${name}</name>
  <uuid>${randomUUID()}</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    ${disks === 'thin' ? await thinDisk(name) : ''}
    <console type='pty'/>
    <memballoon model='none'/>
  </devices>
</domain>`
    },
  }
})
