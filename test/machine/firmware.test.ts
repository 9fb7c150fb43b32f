import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { chooseFirmware, readFirmwareDescriptors, type FirmwareDescriptor } from '../../src/machine/firmware.js'
import { temporaryFolder } from '../support/images.js'

function descriptor(name: string, features: string[], machine = 'pc-q35-*'): FirmwareDescriptor {
  return {
    'interface-types': ['uefi'],
    mapping: {
      device: 'flash',
      executable: { filename: `/fw/${name}.code`, format: 'raw' },
      'nvram-template': { filename: `/fw/${name}.vars`, format: 'raw' },
    },
    targets: [{ architecture: 'x86_64', machines: [machine] }],
    features,
  }
}

const known = [descriptor('secure', ['requires-smm', 'secure-boot']), descriptor('plain', ['acpi-s3'])]

function definition(os: string, features = ''): DomainDef {
  return parseDomainXml(
    `<domain type='qemu'><name>g</name><memory>65536</memory>
      <os ${os}<type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/>${features}</features></domain>`,
  )
}

test('the first firmware that fits the machine and asks for nothing more is taken', () => {
  const def = definition("firmware='efi'>")
  chooseFirmware(def, () => known)
  assert.deepEqual(def.os.loader, { path: '/fw/plain.code', readonly: 'yes', type: 'pflash' })
  assert.deepEqual(def.os.nvram, { template: '/fw/plain.vars' })
  assert.equal(def.os.firmware, undefined)
})

test('secure boot takes a firmware that has it', () => {
  const def = definition("firmware='efi'><loader secure='yes'/>", "<smm state='on'/>")
  chooseFirmware(def, () => known)
  assert.equal(def.os.loader?.path, '/fw/secure.code')
})

test('without a firmware for the machine the start is refused, and the machine named', () => {
  const other = [descriptor('plain', [], 'pc-i440fx-*')]
  assert.throws(() => chooseFirmware(definition("firmware='efi'>"), () => other), /'pc-q35-7.2'/)
})

test('a loader that is named keeps its name, and gets the template that belongs to it', () => {
  const def = definition("><loader type='pflash' readonly='yes'>/fw/plain.code</loader><nvram>/mine.fd</nvram>")
  chooseFirmware(def, () => known)
  assert.deepEqual(def.os.nvram, { path: '/mine.fd', template: '/fw/plain.vars' })
})

test('a descriptor in a later folder replaces one of its name, an empty one hides it', async (t) => {
  const folder = await temporaryFolder(t)
  const [system, local] = [join(folder, 'a'), join(folder, 'b')]
  await mkdir(system)
  await mkdir(local)
  for (const name of ['10-one', '20-two', '30-three'])
    await writeFile(join(system, `${name}.json`), JSON.stringify(descriptor(name, [])))
  await writeFile(join(local, '10-one.json'), '')
  await writeFile(join(local, '30-three.json'), JSON.stringify(descriptor('mine', [])))
  const names = readFirmwareDescriptors([system, local, join(folder, 'none')]).map(
    (d) => d.mapping.executable?.filename,
  )
  assert.deepEqual(names, ['/fw/20-two.code', '/fw/mine.code'])
})
