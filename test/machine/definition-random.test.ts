import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { VirError } from '../../src/error.js'
import { assignAliases } from '../../src/machine/alias.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { devicesOf } from '../../src/machine/devices.js'
import { diskXml, domainXml, testCaps } from './definition-caps.js'

/** Numbers that look random and are the same in every run (a linear congruential generator). */
function numbers(seed: number): (below: number) => number {
  let state = seed * 2654435761 + 1
  return (below) => {
    state = (state * 1103515245 + 12345) % 2147483648
    return Math.floor((state / 2147483648) * below)
  }
}

const letters = 'abcdefghijklmnopqrstuvwxyz'

/** A domain of any number of devices of any kind, some with an address of their own. */
function randomXml(seed: number): string {
  const pick = numbers(seed)
  const machine = pick(2) === 0 ? 'pc' : 'q35'
  const disks = Array.from({ length: pick(20) }, (_, nth) => {
    const letter = letters.charAt(nth)
    const [prefix, bus] =
      [
        ['vd', 'virtio'],
        ['sd', 'scsi'],
        ['sd', 'sata'],
        ['sd', 'usb'],
      ][pick(4)] ?? []
    const address = bus === 'virtio' && pick(4) === 0 ? `<address type='pci' bus='0' slot='${3 + pick(25)}'/>` : ''
    return diskXml(`${prefix ?? ''}${letter}`, bus ?? '', address)
  })
  const kinds = [
    () => `<interface type='user'><model type='${['virtio', 'e1000', 'e1000e'][pick(3)] ?? ''}'/></interface>`,
    () => `<channel type='unix'><target type='virtio' name='c${pick(1e9)}'/></channel>`,
    () => "<rng model='virtio'><backend model='random'/></rng>",
    () => "<input type='tablet' bus='virtio'/>",
    () => "<serial type='pty'><target type='pci-serial'/></serial>",
    () => `<controller type='scsi' model='${['virtio-scsi', 'lsilogic'][pick(2)] ?? ''}'/>`,
    () => "<video><model type='virtio'/></video>",
  ]
  const others = Array.from({ length: pick(30) }, () => kinds[pick(kinds.length)]?.() ?? '')
  return domainXml(`<controller type='usb' model='qemu-xhci' ports='15'/>${disks.join('')}${others.join('')}`, {
    machine,
  })
}

/** Every address; drives of different buses have places of their own. */
function places(xml: string): string[] {
  return devicesOf(parseDomainXml(xml)).flatMap(({ kind, device }) => {
    const bus = kind === 'disk' && device.address?.type === 'drive' ? device.bus : ''
    return device.address ? [JSON.stringify({ ...device.address, bus_: bus, multifunction: undefined })] : []
  })
}

test('however devices are mixed, each has a place of its own, and keeps it', () => {
  let completed = 0
  for (let seed = 0; seed < 400; seed++) {
    let def
    try {
      def = parseDomainXml(randomXml(seed))
      prepareDefinition(def, testCaps)
    } catch (error) {
      assert.ok(error instanceof VirError && error.code === 'VIR_ERR_XML_ERROR', `seed ${seed}: ${String(error)}`)
      continue
    }
    completed++
    const xml = formatDomainXml(def, { inactive: true })
    assert.deepEqual(new Set(places(xml)).size, places(xml).length, `seed ${seed}: two devices share a place`)
    const again = parseDomainXml(xml)
    prepareDefinition(again, testCaps)
    assert.equal(formatDomainXml(again, { inactive: true }), xml, `seed ${seed}: something moved`)
    assignAliases(again)
    for (const { kind, device } of devicesOf(again)) assert.ok(device.alias, `seed ${seed}: a ${kind} has no alias`)
  }
  assert.ok(completed > 200, `${completed} could be completed`)
})

test('absurd numbers are refused at once', () => {
  const absurd = [
    domainXml("<controller type='pci' index='4000000000' model='pci-bridge'/>"),
    domainXml(diskXml('sda', 'scsi', "<address type='drive' controller='4000000000'/>")),
    domainXml(diskXml('sdzzzzzz', 'scsi')),
    domainXml(Array.from({ length: 9000 }, () => "<interface type='user'/>").join('')),
  ]
  for (const xml of absurd) {
    const start = process.cpuUsage()
    assert.throws(() => {
      prepareDefinition(parseDomainXml(xml), testCaps)
    }, VirError)
    assert.ok(process.cpuUsage(start).user < 5_000_000)
  }
})
