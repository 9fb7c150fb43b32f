import { randomUUID } from 'node:crypto'
import { testDaemon } from '../remote/support.js'
import { driverSuite } from './suite.js'

const thinDisk = `<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/thin'/>
      <backingStore type='file'><format type='raw'/><source file='/images/base'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>`

/** Everything through a daemon's unix socket; the hypervisor behind it is in memory. */
driverSuite('remote', true, async (t) => {
  const { connect } = await testDaemon(t)
  let count = 0
  return {
    conn: await connect(),
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
