import { randomUUID } from 'node:crypto'
import { Connect } from '../../src/index.js'
import { driverSuite } from './suite.js'

const thinDisk = `<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/thin'/>
      <backingStore type='file'><format type='raw'/><source file='/images/base'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>`

driverSuite('test', true, async (t) => {
  const conn = await Connect.open('test:///default')
  t.after(() => conn.close())
  let count = 0
  return {
    conn,
    newDomainXml: (disks = 'none') => {
      count += 1
      return Promise.resolve(`<domain type='test'>
  <name>domain${count}</name>
  <uuid>${randomUUID()}</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    ${disks === 'thin' ? thinDisk : ''}
    <console type='pty'/>
  </devices>
</domain>`)
    },
  }
})
