import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { formatDeviceXml, parseDeviceXml } from '../../src/conf/device-xml.js'
import { VirError } from '../../src/error.js'

const folder = join(import.meta.dirname, '../../../test/data/conf')

test('every device of a definition can be read by itself and comes back as it stands in the definition', () => {
  const kinds = new Set<string>()
  for (const name of ['desktop.out.xml', 'devices.out.xml', 'disks.out.xml', 'server.out.xml']) {
    const xml = readFileSync(join(folder, name), 'utf8')
    for (const [text] of xml.matchAll(/^ {4}<(\w+)[\s/>](?:[^\n]*\/>\n|[\s\S]*?\n {4}<\/\1>\n)/gm)) {
      const device = text.replace(/^ {4}/gm, '')
      try {
        const parsed = parseDeviceXml(device)
        kinds.add(parsed.kind)
        assert.equal(formatDeviceXml(parsed, { secure: true }), device)
      } catch (error) {
        if (!(error instanceof VirError)) throw error
        assert.match(error.message, /not supported|no device/)
      }
    }
  }
  assert.deepEqual([...kinds].sort(), [
    'channel',
    'console',
    'controller',
    'disk',
    'graphics',
    'input',
    'interface',
    'memballoon',
    'panic',
    'rng',
    'serial',
    'video',
    'watchdog',
  ])
})

test('a password goes out with a device only when it is asked for', () => {
  const device = parseDeviceXml("<graphics type='vnc' passwd='s3cret'/>")
  assert.doesNotMatch(formatDeviceXml(device), /s3cret/)
  assert.match(formatDeviceXml(device, { secure: true }), /s3cret/)
})

test('what is no device, or none that we model, is refused by its name', () => {
  const refuses = (xml: string, code: string, says: RegExp): void => {
    assert.throws(
      () => parseDeviceXml(xml),
      (error) => error instanceof VirError && error.code === code && says.test(error.message),
    )
  }
  refuses('<domain/>', 'VIR_ERR_XML_ERROR', /'domain', which is no device/)
  refuses('<emulator/>', 'VIR_ERR_XML_ERROR', /no device/)
  refuses("<hostdev mode='subsystem'/>", 'VIR_ERR_CONFIG_UNSUPPORTED', /'hostdev' are not supported/)
  refuses("<disk type='volume'><source pool='p' volume='v'/></disk>", 'VIR_ERR_CONFIG_UNSUPPORTED', /'disk'/)
  refuses("<disk><target dev='vda'/></disk>", 'VIR_ERR_NO_SOURCE', /'vda'/)
  refuses('<disk', 'VIR_ERR_XML_DETAIL', /not well-formed/)
})
