/** Drives of running domains whose medium changes, and definitions of disks that do. */
import assert from 'node:assert/strict'
import * as c from '../../src/index.js'
import type { Domain } from '../../src/index.js'
import { define, refused } from './support.js'
import type { Each } from './support.js'

/** The drive of the suite's domains, which is empty when they begin. */
const drive = (source: string, more = ''): string =>
  `<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>${source && `<source file='${source}'/>`}
    <target dev='sda' bus='sata'/>${more}<readonly/></disk>`

/** Path in the drive; undefined: it is empty. */
async function mediumOf(dom: Domain, flags = 0): Promise<string | undefined> {
  const [disk = ''] = /<disk type='file' device='cdrom'>[^]*?<\/disk>/.exec(await dom.getXMLDesc(flags)) ?? []
  return /<source file='([^']*)'/.exec(disk)?.[1]
}

async function startWithDrive(opened: Parameters<typeof define>[0]): Promise<{ dom: Domain; base: string }> {
  const dom = await define(opened, 'thin')
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  const base = /<backingStore type='file'[^]*?<source file='([^']*)'/.exec(await dom.getXMLDesc())?.[1]
  assert.ok(base !== undefined)
  return { dom, base }
}

export function updates(each: Each): void {
  each('a medium comes into a drive and leaves it, in the running domain, its definition or both', async (opened) => {
    const { dom, base } = await startWithDrive(opened)
    const media = async (): Promise<(string | undefined)[]> => [
      await mediumOf(dom),
      await mediumOf(dom, c.VIR_DOMAIN_XML_INACTIVE),
    ]
    await dom.updateDevice(drive(base))
    assert.deepEqual(await media(), [base, undefined])
    await dom.updateDevice(drive(base), c.VIR_DOMAIN_AFFECT_CONFIG)
    assert.deepEqual(await media(), [base, base])
    await dom.updateDevice(drive(''), c.VIR_DOMAIN_AFFECT_LIVE | c.VIR_DOMAIN_DEVICE_MODIFY_FORCE)
    assert.deepEqual(await media(), [undefined, base])
    await dom.updateDevice(drive(base), c.VIR_DOMAIN_AFFECT_LIVE | c.VIR_DOMAIN_AFFECT_CONFIG)
    assert.ok((await dom.blockInfo('sda')).capacity > 0)
    await dom.updateDevice(drive(''))
    await dom.destroy()
    await dom.updateDevice(drive(''))
    assert.deepEqual(await media(), [undefined, undefined])
    await refused(dom.updateDevice(drive(base), c.VIR_DOMAIN_AFFECT_LIVE), 'VIR_ERR_OPERATION_INVALID', /not running/)
  })

  each('what cannot be changed while a domain runs is refused, and the drive keeps what it has', async (opened) => {
    const { dom, base } = await startWithDrive(opened)
    await dom.updateDevice(drive(base))
    const before = await dom.getXMLDesc()
    const field = 'VIR_ERR_OPERATION_UNSUPPORTED'
    await refused(dom.updateDevice(drive('/nonexistent.iso')), 'VIR_ERR_SYSTEM_ERROR', /nonexistent\.iso/)
    await refused(dom.updateDevice(drive(base, '<serial>x</serial>')), field, /cannot modify field 'serial'/)
    await refused(dom.updateDevice(drive(base).replace("'sata'", "'scsi'")), field, /cannot modify field 'bus'/)
    await refused(dom.updateDevice(drive(base).replace("'raw'", "'raw' cache='none'")), field, /field 'cache'/)
    await refused(dom.updateDevice(drive(base, "<alias name='ua-x'/>")), 'VIR_ERR_OPERATION_DENIED', /alias/)
    await refused(dom.updateDevice(drive(base).replace("'sda'", "'sdq'")), 'VIR_ERR_INTERNAL_ERROR', /'sdq' not found/)
    const config = c.VIR_DOMAIN_AFFECT_CONFIG
    const missing = drive(base).replace("'sda'", "'sdq'")
    await refused(dom.updateDevice(missing, config), 'VIR_ERR_INVALID_ARG', /target sdq doesn't exist/)
    const hard = `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/other.qcow2'/>
      <target dev='vda' bus='virtio'/></disk>`
    await refused(dom.updateDevice(hard), 'VIR_ERR_CONFIG_UNSUPPORTED', /only in removable drives/)
    await refused(dom.updateDevice("<memballoon model='none'/>"), 'VIR_ERR_CONFIG_UNSUPPORTED', /live update of device/)
    assert.equal(await dom.getXMLDesc(), before)
    await dom.destroy()
  })
}
