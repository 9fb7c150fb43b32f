import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { Connect } from '../../src/index.js'
import { driverSuite } from './suite.js'
import { refused } from './support.js'

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

test('the test driver streams disks of running domains only', async (t) => {
  const conn = await Connect.open('test:///default')
  t.after(() => conn.close())
  const dom = await conn.domainDefineXML(
    `<domain type='test'><name>off</name><uuid>${randomUUID()}</uuid><memory>1024</memory>
      <os><type arch='x86_64'>hvm</type></os><devices>${thinDisk}</devices></domain>`,
  )
  await refused(dom.blockPull('vda'), 'VIR_ERR_OPERATION_INVALID', /domain is not running/)
})
