import assert from 'node:assert/strict'
import { test } from 'node:test'
import { VIR_DOMAIN_START_PAUSED } from '../../src/index.js'
import { guestXml, testRoot } from '../support/domain.js'
import { emptyImage } from '../support/images.js'
import { requires } from '../support/requires.js'

interface Block {
  qdev?: string
  inserted?: { bps_rd: number; iops: number }
}

test('what has no place on a command line is said over the monitor: I/O limits, a cable that is out, the path of a pty', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const path = await emptyImage(root.folder, 'qcow2', 1 << 20)
  const devices = `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${path}'/>
      <target dev='vda' bus='virtio'/><iotune><read_bytes_sec>1048576</read_bytes_sec><total_iops_sec>100</total_iops_sec></iotune></disk>
    <interface type='user'><model type='virtio'/><link state='down'/></interface>
    <channel type='pty'><target type='virtio' name='org.example.0'/></channel>`
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { devices }))
  await dom.create(VIR_DOMAIN_START_PAUSED)
  const ask = async (command: string, flags = 0) => dom.qemuMonitorCommand(command, flags)
  const blocks = (JSON.parse(await ask('{"execute":"query-block"}')) as { return: Block[] }).return
  const disk = blocks.find((block) => block.qdev?.includes('virtio-disk0'))
  assert.deepEqual([disk?.inserted?.bps_rd, disk?.inserted?.iops], [1048576, 100])
  assert.match(await ask('info network', 1), /net0/)
  assert.match(await dom.getXMLDesc(), /<channel type='pty'>\s*<source path='\/dev\/pts\/\d+'\/>/)
})
