/** What a guest may find changed on another host. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import { checkAbi } from '../../src/machine/abi.js'
import { virError } from '../support/domain.js'

const XHCI = `<controller type='usb' index='0' model='qemu-xhci'/>`
const SERIAL = `<controller type='virtio-serial' index='0'/>`
const ports = [1, 2, 10].map((index) => `<controller type='pci' index='${index}' model='pcie-root-port'/>`)

const domain = (...controllers: string[]): ReturnType<typeof parseDomainXml> =>
  parseDomainXml(`<domain type='qemu'><name>abi</name><uuid>7496a647-0e56-47a5-bcb6-2a4b1fb7726e</uuid><memory>65536</memory><os><type>hvm</type></os>
    <devices>${controllers.join('')}</devices></domain>`)

test('controllers may be listed in another order, but not be others', () => {
  const here = domain(...ports, XHCI, SERIAL)
  checkAbi(here, domain(SERIAL, ...[...ports].reverse(), XHCI))
  assert.throws(
    () => checkAbi(here, domain(...ports, XHCI.replace('qemu-xhci', 'nec-xhci'), SERIAL)),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /'controllers\[3\]\.model' 'nec-xhci' does not match source 'qemu-xhci'/),
  )
  assert.throws(
    () => checkAbi(here, domain(...ports, XHCI)),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /'nothing'|nothing/),
  )
})
